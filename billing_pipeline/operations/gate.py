"""The gate: days whose counts are implausible, and letting one through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from billing_pipeline.errors import ConfigurationError
from billing_pipeline.ledger import decisions
from billing_pipeline.ledger.queries import days_at_gate
from billing_pipeline.operations.context import Context
from billing_pipeline.operations.day_inputs import SpanInputs, judge_gate
from billing_pipeline.rules.eligibility import NO_PAYERS
from billing_pipeline.rules.gate import Finding


@dataclass(frozen=True)
class ClosedGate:
    """A day that waits at the gate, with what is implausible about it."""

    day: date
    snapshot_id: str
    findings: list[Finding]


def closed_gates(context: Context, days: Sequence[date] | None = None) -> list[ClosedGate]:
    """The days (None: all) whose counts wait for a person. Raises DAY_ERRORS."""
    span, found = SpanInputs(context, (), NO_PAYERS, {}), []
    with context.ledger.reading() as connection:
        for day in days_at_gate(connection) if days is None else days:
            snapshot = context.usage.snapshot(day)
            if snapshot is not None and (findings := judge_gate(span, connection, snapshot)):
                found.append(ClosedGate(day, snapshot.snapshot_id, findings))
    return found


def approve_gate(context: Context, day: date, reason: str) -> list[Finding]:
    """Let a day through as it was counted; returns what was implausible about it.

    A later count of other readings is judged again. Raises ConfigurationError if the day does not
    wait at the gate, or no reason is given.
    """
    if not reason.strip():
        raise ConfigurationError("an approval needs a reason: it stays on record")
    found = closed_gates(context, [day])
    if not found:
        raise ConfigurationError(
            f"the gate of {day} is open, or the day is not counted: there is nothing to approve"
        )
    context.ledger.write(
        decisions.write_approval, day, found[0].snapshot_id, reason.strip(), context.clock()
    )
    return found[0].findings
