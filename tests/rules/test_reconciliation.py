"""Each step from readings to invoice: what differs, and whether its causes come to just that."""

from __future__ import annotations

import pytest

from billing_pipeline.rules.holds import HoldReason
from billing_pipeline.rules.model import Meter, RecordedEvent, State, Usage
from billing_pipeline.rules.reconciliation import Cause, CellFacts, Reconciled, SegmentHold, Step
from billing_pipeline.rules.segments import Segment
from tests.rules.support import END, LAST, NOON, START, SUM, halves


def recorded(
    revision: int, value: int, state: State = State.VERIFIED, at: int = START + 100
) -> RecordedEvent:
    return RecordedEvent(revision, "cus", value, value, at + revision, state)


def facts(meter: Meter = SUM, units: int = 10, **known: object) -> CellFacts:
    return CellFacts(meter, Segment(START, END, Usage(units, units)), **known)  # type: ignore[arg-type]


def test_figures_that_agree_have_no_difference_and_need_no_cause() -> None:
    figures = Reconciled(7, 7, 7, 7, 7.0, 7)
    assert set(figures.differences.values()) == {0}
    assert figures.unexplained == []


@pytest.mark.parametrize(
    ("causes", "unexplained"),
    [
        ((), [Step.LEDGER]),
        ((Cause(Step.LEDGER, "on hold", -3),), []),
        ((Cause(Step.LEDGER, "on hold", -2),), [Step.LEDGER]),
        ((Cause(Step.LEDGER, "on hold", -2), Cause(Step.LEDGER, "refused", -1)), []),
        ((Cause(Step.LEDGER, "of unknown size", None),), []),
        ((Cause(Step.INVOICE, "of another step", -3),), [Step.LEDGER]),
    ],
)
def test_causes_explain_just_their_amount(
    causes: tuple[Cause, ...], unexplained: list[Step]
) -> None:
    assert Reconciled(10, 10, 7, 7, 7.0, 7, causes).unexplained == unexplained


def test_a_foreign_event_is_one_difference_not_two() -> None:
    # Somebody else sent 5 to the meter; the invoice bills them.
    figures = Reconciled(10, 10, 10, 10, 15.0, 15)
    assert figures.unexplained == [Step.STRIPE]


def test_usage_outside_the_period_in_its_first_minute_is_no_difference() -> None:
    assert Reconciled(10, 10, 10, 13, 13.0, 10).unexplained == []


def test_a_missing_figure_is_not_compared() -> None:
    assert set(Reconciled(10, 10, 10).differences) == {Step.SNAPSHOT, Step.LEDGER}


def test_a_cell_that_is_reported_has_no_causes() -> None:
    assert facts(recorded=[recorded(1, 8), recorded(2, 2)]).causes() == []
    assert facts(recorded=[recorded(1, 8), recorded(2, 2)]).reported == 10


def test_a_hold_explains_its_amount_and_no_more() -> None:
    holds = [SegmentHold(HoldReason.PERIOD_CLOSED, 0, 3)]
    [cause] = facts(recorded=[recorded(1, 7)], holds=holds).causes()
    assert (cause.step, cause.amount) == (Step.LEDGER, -3)
    # Another unit is missing: nobody knows why, so it is not explained away.
    amounts = [cause.amount for cause in facts(recorded=[recorded(1, 6)], holds=holds).causes()]
    assert amounts == [-3]


def test_an_unresolved_event_an_adjustment_and_a_refusal_add_up() -> None:
    found = facts(
        recorded=[recorded(1, 4), recorded(2, 1, State.AMBIGUOUS)],
        adjusted=-2,
        refused="no such customer",
    ).causes()
    assert [cause.amount for cause in found] == [-2, -1, -3]
    assert sum(cause.amount or 0 for cause in found) == 4 - 10


def test_a_segment_takes_the_hold_that_begins_in_it() -> None:
    morning, afternoon = halves(5, 5)
    holds = [SegmentHold(HoldReason.SUBSCRIPTION_ENDED, NOON, 5)]
    assert CellFacts(SUM, morning, holds=holds).causes() == []
    assert [c.amount for c in CellFacts(SUM, afternoon, holds=holds).causes()] == [-5]


def test_on_a_meter_that_keeps_one_value_a_reason_has_no_amount() -> None:
    gate = [SegmentHold(HoldReason.GATE_CLOSED, 0, 0)]
    # A zero that waits: the period still ends with the value of an earlier day.
    [reason] = facts(LAST, 0, holds=gate).reasons()
    assert reason.amount is None
    assert facts(LAST, 2, recorded=[recorded(1, 2)], holds=gate).reasons() == []
    assert facts(LAST, 2, recorded=[recorded(1, 2)]).causes() == []
