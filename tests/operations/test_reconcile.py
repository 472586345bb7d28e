"""A month from readings to invoice lines: every difference has a cause."""

from __future__ import annotations

import csv
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from billing_pipeline.errors import ConfigurationError
from billing_pipeline.operations.adjust import approve, open_adjustments
from billing_pipeline.operations.context import Actor
from billing_pipeline.operations.reconcile.month import keep, reconcile_month
from billing_pipeline.operations.reconcile.rows import Reconciliation, Row
from billing_pipeline.operations.undo import undo_run
from billing_pipeline.rules.reconciliation import Step
from tests.closed_period import CLOSED, LATEST
from tests.support import LAST, SUM, World


def reconciled(world: World, month: date = CLOSED) -> Reconciliation:
    return reconcile_month(world.context(), month.replace(day=1))


def row(found: Reconciliation, meter: str = SUM, organization: str = "acme") -> Row:
    [one] = [
        r
        for r in found.rows
        if (r.meter, r.organizations) == (meter, (organization,)) and r.period.days[-1] == CLOSED
    ]
    return one


def test_an_invoiced_period_agrees_at_every_step(closed: World) -> None:
    found = reconciled(closed)
    assert found.is_right
    figures = row(found).figures
    assert (figures.readings, figures.snapshot, figures.ledger) == (30, 30, 30)
    assert (figures.stripe, figures.invoiced) == (30, 30)
    assert row(found, LAST).figures.invoiced == 1
    assert row(found).status == "final"
    assert found.verified.share == 1.0
    assert found.verified.hours is not None


def test_late_readings_of_a_closed_period_are_a_difference_with_its_cause(closed: World) -> None:
    closed.write_readings(CLOSED, {"acme": {"s": 17}})
    # Not counted yet: the readings are ahead of the snapshot.
    found = reconciled(closed)
    assert row(found).figures.differences[Step.SNAPSHOT] == -7
    assert "changed after they were counted" in row(found).figures.causes[0].text
    assert found.is_right
    closed.bill([CLOSED])
    found = reconciled(closed)
    assert row(found).figures.differences[Step.LEDGER] == -7
    assert "period closed" in row(found).figures.causes[0].text
    assert found.is_right
    assert found.verified.verified < found.verified.cells
    # Adjusted in the current period: each period has a cause, and together they add up.
    [waiting] = [w for w in open_adjustments(closed.context()) if w.cell.event_name == SUM]
    approve(closed.context(), waiting.id, "the gateway was offline")
    closed.bill([LATEST])
    found = reconciled(closed)
    assert found.is_right
    assert row(found).figures.differences[Step.LEDGER] == -7
    found = reconciled(closed, closed.clock().date())
    assert [r.figures.differences[Step.LEDGER] for r in found.rows if r.meter == SUM][-1] == 7
    assert found.is_right


def test_a_wrong_invoice_is_red(closed: World) -> None:
    [invoice] = closed.sandbox.billing.invoices.values()
    line = next(i for i in invoice["lines"]["data"] if i["metadata"]["event_name"] == SUM)
    line["quantity"] = 29
    found = reconciled(closed)
    assert not found.is_right
    assert row(found).figures.unexplained == [Step.INVOICE]
    assert row(found, LAST).is_right


def test_usage_that_stripe_lost_or_added_is_red(closed: World) -> None:
    victim = next(e for e in closed.sandbox.account.events if e.event_name == SUM and e.value == 10)
    victim.cancelled = True
    assert row(reconciled(closed)).figures.unexplained == [Step.STRIPE, Step.INVOICE]
    victim.cancelled, victim.value = False, 15
    assert row(reconciled(closed)).figures.differences[Step.STRIPE] == 5


def test_usage_without_a_customer_has_a_row(closed: World) -> None:
    day = CLOSED - timedelta(days=1)
    closed.write_readings(day, {"acme": {"s": 10}, "stranger": {"x": 3}})
    closed.bill([day])
    found = reconciled(closed, day)
    [stranger] = [r for r in found.rows if r.organizations == ("stranger",) and r.meter == SUM]
    assert (stranger.period.customer, stranger.status) == (None, "none")
    assert (stranger.figures.readings, stranger.figures.ledger) == (3, 0)
    assert "no Stripe customer" in stranger.figures.causes[0].text
    assert found.is_right


def test_an_undone_run_is_a_cause(closed: World) -> None:
    closed.write_readings(LATEST, {"acme": {"s": 12}})
    closed.bill([LATEST], closed.context("mistake"))
    undo_run(closed.context("undoing"), "mistake", Actor("ann", "wrong file"))
    found = reconciled(closed, closed.clock().date())
    assert found.is_right
    texts = [c.text for r in found.rows for c in r.figures.causes if c.step is Step.LEDGER]
    assert any("wrong file" in text for text in texts)


def test_the_row_of_a_cancelled_subscription_without_an_invoice_explains_the_loss(
    closed: World,
) -> None:
    [subscription] = closed.sandbox.billing.subscriptions.values()
    closed.sandbox.billing.cancel(subscription["id"], {})
    closed.apply()
    closed.advance(days=4)
    found = reconciled(closed, LATEST)
    cut_short = [
        r for r in found.rows if r.period.billing is not None and r.period.billing.cut_short
    ]
    assert {r.status for r in cut_short} == {"missing"}
    assert all(r.is_right for r in cut_short)
    assert any("invoice_now" in c.text for r in cut_short for c in r.figures.causes)


def test_the_row_of_a_paused_subscription_says_that_it_makes_no_invoice(closed: World) -> None:
    [subscription] = closed.sandbox.billing.subscriptions.values()
    closed.sandbox.billing.change_subscription(
        subscription["id"], "customer.subscription.updated", status="paused"
    )
    closed.apply()
    end = subscription["items"]["data"][0]["current_period_end"]
    closed.advance(seconds=end + 4 * 86_400 - closed.sandbox.clock())
    found = reconciled(closed, datetime.fromtimestamp(end, UTC).date())
    paused = [r for r in found.rows if r.status == "missing" and r.period.end == end]
    assert paused
    assert all(r.is_right for r in paused)
    messages = {c.text for r in paused for c in r.figures.causes if c.step is Step.INVOICE}
    assert messages == {"its subscription is paused in Stripe, which makes no invoice for it"}


def test_without_a_key_the_known_figures_are_compared(
    closed: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STRIPE_SECRET_KEY")
    found = reconciled(closed)
    assert row(found).figures.stripe is None
    assert row(found).figures.ledger == 30
    assert found.is_right


def test_a_broken_file_is_named_as_a_problem_and_is_not_a_smaller_figure(closed: World) -> None:
    folder = closed.home / "readings" / f"reading_date={CLOSED}"
    (folder / "late.parquet").write_bytes(b"PAR1 cut off")
    found = reconciled(closed)
    assert not found.is_right
    assert any("late.parquet" in problem for problem in found.problems)


def test_the_rows_are_kept_as_a_file(closed: World) -> None:
    context = closed.context()
    found = reconcile_month(context, CLOSED.replace(day=1))
    with Path(keep(context, found)).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(found.rows)
    assert {r["invoiced"].removesuffix(".0") for r in rows if r["status"] == "final"} == {"1", "30"}


def test_a_month_that_has_not_begun_is_refused(world: World) -> None:
    with pytest.raises(ConfigurationError, match="has not begun"):
        reconcile_month(world.context(), date(2999, 1, 1))
