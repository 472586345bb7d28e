"""The ledger on both databases: what it writes down, refuses and remembers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, cast

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.exc import IntegrityError

from billing_pipeline.database import open_database, writing
from billing_pipeline.errors import ConfigurationError
from billing_pipeline.ledger import queries
from billing_pipeline.ledger.account import bind, known_meters
from billing_pipeline.ledger.events import (
    Outcome,
    Outgoing,
    change_state,
    claim,
    deliverable,
    mark_interrupted,
)
from billing_pipeline.ledger.evidence import (
    Checked,
    ExpectedFigure,
    expected_figures,
    record_checks,
)
from billing_pipeline.ledger.ledger import Ledger
from billing_pipeline.ledger.plans import write_plan
from billing_pipeline.ledger.tables import history, meter_events
from billing_pipeline.rules.holds import Hold, HoldReason
from billing_pipeline.rules.model import Cell, Meter, MeterEvent, MeterSpec, State
from billing_pipeline.rules.planning import DayPlan
from tests.rules.support import DAY, END, NOW, SUM

CELL = Cell(DAY, "örg", SUM.event_name)
SPEC = MeterSpec(SUM.event_name, SUM.formula, SUM.measure)
NO_CUSTOMER = Hold(CELL, 7, 7, HoldReason.NO_CUSTOMER)


def event(revision: int = 1, value: int = 7) -> MeterEvent:
    return MeterEvent(CELL, revision, "cus_1", value, value, END - 3600 + revision)


def write(ledger: Ledger, *planned: MeterEvent | Hold, now: datetime = NOW) -> None:
    plan = DayPlan(DAY)
    for each in planned:
        plan.add(each.cell, [each])
    with ledger.planning() as writer:
        write_plan(writer, plan, lambda cell: True, "snapshot", now)


def send(ledger: Ledger, state: State, **facts: Any) -> None:
    ids = [outgoing.id for outgoing in ledger.read(deliverable, [DAY])]
    ledger.write(claim, ids, NOW)
    outcomes = [Outcome(id, state, **facts) for id in ids]
    ledger.write(change_state, outcomes, NOW, was={State.SENDING})


def the_deliverable(ledger: Ledger) -> Outgoing:
    [outgoing] = ledger.read(deliverable, [DAY])
    return outgoing


def unverified(ledger: Ledger) -> Sequence[ExpectedFigure]:
    return ledger.read(expected_figures, [DAY], {SUM.event_name: False}, unverified_only=True)


@pytest.fixture
def ledger(engine: Engine) -> Ledger:
    return Ledger(engine, "run-1")


def test_every_change_of_state_is_kept_with_time_run_and_request(ledger: Ledger) -> None:
    write(ledger, event())
    send(ledger, State.ACCEPTED, request_id="req_9")
    story = ledger.read(queries.story, CELL)
    assert [(h["from_state"], h["to_state"]) for h in story.history] == [
        (None, "planned"),
        ("planned", "sending"),
        ("sending", "accepted"),
    ]
    assert {h["run"] for h in story.history} == {"run-1"}
    assert story.history[-1]["request_id"] == "req_9"
    assert datetime.fromisoformat(story.history[-1]["at"]) == NOW
    [kept] = story.events
    assert (kept["state"], kept["attempts"], kept["request_id"]) == ("accepted", 1, "req_9")
    assert kept["identifier"] == event().identifier


def test_the_database_refuses_a_second_event_for_a_revision(ledger: Ledger) -> None:
    write(ledger, event())
    send(ledger, State.ACCEPTED)
    with pytest.raises(IntegrityError):
        write(ledger, event())


def test_the_database_refuses_a_second_unresolved_event_of_a_cell(ledger: Ledger) -> None:
    write(ledger, event(1))
    with pytest.raises(IntegrityError):
        write(ledger, event(2))
    send(ledger, State.ACCEPTED)
    write(ledger, event(2))


def test_an_event_that_a_crash_left_in_sending_becomes_ambiguous(ledger: Ledger) -> None:
    write(ledger, event())
    outgoing = the_deliverable(ledger)
    ledger.write(claim, [outgoing.id], NOW)
    assert ledger.read(deliverable, [DAY]) == []
    assert ledger.write(mark_interrupted, NOW + timedelta(hours=1)) == 1
    found = the_deliverable(ledger)
    assert found.state is State.AMBIGUOUS
    assert found.first_attempt_at == NOW
    assert found.event == outgoing.event


def test_the_first_attempt_stays_the_first(ledger: Ledger) -> None:
    write(ledger, event())
    send(ledger, State.AMBIGUOUS)
    outgoing = the_deliverable(ledger)
    ledger.write(claim, [outgoing.id], NOW + timedelta(hours=5))
    ledger.write(mark_interrupted, NOW + timedelta(hours=6))
    found = the_deliverable(ledger)
    assert found.first_attempt_at == NOW
    assert found.last_attempt_at == NOW + timedelta(hours=5)


def test_a_hold_is_kept_changed_and_released_with_its_history(ledger: Ledger) -> None:
    write(ledger, NO_CUSTOMER)
    write(ledger, NO_CUSTOMER, now=NOW + timedelta(hours=1))
    [hold] = ledger.read(queries.holds_of, [DAY])
    assert (hold.value, hold.reason, hold.since) == (7, "no_customer", NOW)
    write(ledger, replace(NO_CUSTOMER, value=9, target=9))
    assert [h.value for h in ledger.read(queries.holds_of, [DAY])] == [9]
    write(ledger, event())
    assert ledger.read(queries.holds_of, [DAY]) == []
    details = [(h["to_state"], h["detail"]) for h in ledger.read(queries.story, CELL).history]
    assert details == [
        ("held", "no_customer: value 7"),
        ("held", "no_customer: value 9"),
        ("released", "released"),
        ("planned", "value 7"),
    ]


def test_a_hold_without_usage_any_more_is_withdrawn_and_stays_on_record(ledger: Ledger) -> None:
    write(ledger, NO_CUSTOMER)
    write(ledger)
    assert ledger.read(queries.counts, [DAY])["held"] == 0
    assert "withdrawn" in ledger.read(queries.story, CELL).history[-1]["detail"]


def test_counts_cover_every_state(ledger: Ledger) -> None:
    write(ledger, event())
    counts = ledger.read(queries.counts, [DAY])
    assert counts == {str(state): int(state is State.PLANNED) for state in State}


def test_agreement_verifies_and_is_remembered(ledger: Ledger) -> None:
    write(ledger, event(1, 7))
    send(ledger, State.ACCEPTED)
    [expected] = unverified(ledger)
    assert (expected.expected, expected.certain, expected.pending) == (7, None, (7,))
    ledger.write(record_checks, [Checked(expected, "7", "agrees")], NOW)
    assert unverified(ledger) == []
    write(ledger, event(2, -3))
    send(ledger, State.ACCEPTED)
    [expected] = unverified(ledger)
    assert (expected.expected, expected.certain, expected.pending) == (4, 7, (-3,))
    ledger.write(record_checks, [Checked(expected, "7", "lagging")], NOW)
    ledger.write(record_checks, [Checked(expected, "9", "mismatch")], NOW)
    [look] = ledger.read(queries.checks, [DAY], "mismatch")
    assert (look["expected"], look["reported"]) == (4, "9")


def test_the_account_guard_refuses_another_account_mode_or_meter(ledger: Ledger) -> None:
    ledger.write(bind, "acct_1", False, [SUM], NOW)
    ledger.write(bind, "acct_1", False, [SUM], NOW)
    ledger.write(bind, None, False, [SUM], NOW)  # a restricted key: the meters' ids vouch for it
    with pytest.raises(ConfigurationError, match="acct_2"):
        ledger.write(bind, "acct_2", False, [SUM], NOW)
    with pytest.raises(ConfigurationError, match="live"):
        ledger.write(bind, "acct_1", True, [SUM], NOW)
    write(ledger, event())
    send(ledger, State.ACCEPTED)
    with pytest.raises(ConfigurationError, match="mtr_2"):
        ledger.write(bind, None, False, [replace(SUM, meter_id="mtr_2")], NOW)
    with ledger.engine.begin() as connection:
        assert connection.scalar(text("SELECT account_id FROM account")) == "acct_1"


def test_meters_are_known_as_last_seen_and_as_specified_before(ledger: Ledger) -> None:
    assert ledger.read(known_meters, [SPEC]) == [replace(SUM, meter_id=None)]
    seen = Meter(SUM.event_name, SUM.formula, SUM.measure, "day", "c", "v", "mtr_1")
    ledger.write(bind, "acct_1", False, [seen], NOW)
    assert ledger.read(known_meters, [SPEC]) == [seen]


def test_naive_times_are_refused(ledger: Ledger) -> None:
    with pytest.raises(Exception, match="without a time zone"):
        write(ledger, event(), now=datetime(2026, 3, 11))  # noqa: DTZ001


def test_a_failed_plan_leaves_nothing_behind(ledger: Ledger) -> None:
    def killed_while_planning() -> None:
        with ledger.planning() as writer:
            write_plan(writer, DayPlan(DAY, events=[event()]), lambda cell: True, None, NOW)
            raise RuntimeError("killed here")

    with pytest.raises(RuntimeError):
        killed_while_planning()
    with ledger.engine.begin() as connection:
        assert connection.execute(select(meter_events)).all() == []
        assert connection.execute(select(history)).all() == []


def test_migrating_twice_changes_nothing(engine: Engine) -> None:
    open_database(engine.url.render_as_string(hide_password=False)).dispose()
    with writing(engine) as connection:
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == "0001"
        assert connection.scalar(text("SELECT version_num FROM stripe_events_version")) == "0001"


def test_the_migrations_build_the_tables_that_the_code_describes(engine: Engine) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    from billing_pipeline.database import metadata
    from webhook_handler.tables import metadata as events

    def ours(name: str | None, kind: str, _parents: Any) -> bool:
        return kind != "table" or name != "stripe_events_version"

    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"include_name": ours})
        assert compare_metadata(context, cast(Any, [metadata, events])) == []


def test_a_database_that_cannot_be_used_is_named_without_its_password() -> None:
    with pytest.raises(ConfigurationError) as failure:
        open_database("postgresql+psycopg://me:geheim@127.0.0.1:1/x?connect_timeout=2")
    assert "127.0.0.1" in str(failure.value)
    assert "geheim" not in str(failure.value)
    with pytest.raises(ConfigurationError, match="mysql"):
        open_database("mysql://x/y")
