"""What a preview shows is what a run does: the same plan, over arbitrary worlds."""

from __future__ import annotations

import tempfile
from pathlib import Path
from random import Random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing_pipeline.errors import ConfigurationError
from billing_pipeline.ledger import queries
from billing_pipeline.ledger.events import recorded_events
from billing_pipeline.operations.bill import apply_events, deliver_days, report_days
from billing_pipeline.operations.context import contact_stripe
from billing_pipeline.operations.preview import preview_days
from billing_pipeline.rules.model import Cell
from billing_pipeline.rules.planning import PlanOptions
from billing_pipeline.sandbox.faults import Faults
from billing_pipeline.simulation import runner
from billing_pipeline.simulation.world import World

Planned = set[tuple[Cell, int, int, int, str]]

histories = st.lists(
    st.tuples(st.sampled_from(sorted(set(runner.STEPS))), st.integers(0, 2**32)),
    min_size=4,
    max_size=25,
)


def planned_events(world: World, run: str) -> Planned:
    """(cell, revision, value, timestamp, customer) of what a run planned."""
    context = world.context(run)
    ours = {(cell, r) for cell, r, _ in context.ledger.read(queries.planned_by, run)}
    days = sorted({cell.usage_day for cell, _ in ours})
    found = context.ledger.read(recorded_events, days)
    return {
        (cell, e.revision, e.value, e.timestamp, e.customer)
        for day in days
        for cell, events in found[day].items()
        for e in events
        if (cell, e.revision) in ours
    }


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(history=histories, seed=st.integers(0, 400), by_hand=st.booleans())
def test_a_run_writes_what_the_preview_showed(
    history: list[tuple[str, int]], seed: int, by_hand: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder, runner.no_backoff():
        world = World(Path(folder), runner.template_database(), seed)
        try:
            for name, detail in history:
                getattr(world, name)(Random(detail))
            world.crash_points.disarm()
            world.sandbox.faults = Faults()
            days = [*world.days(), world.clock().date()]
            # A run first applies stored events and resolves what an earlier run left.
            before = world.context("before")
            try:
                meters = contact_stripe(before).meters
            except ConfigurationError:
                return  # an inactive meter refuses every run
            apply_events(before)
            deliver_days(before, meters, days, None, leftovers=True)
            options = PlanOptions(report_undone=by_hand)
            preview = preview_days(before, days, options=options)
            outcome = report_days(world.context("the run"), days, options=options)
            written = planned_events(world, "the run")
            held = before.ledger.read(queries.holds_of, days, zeros=True)
        finally:
            world.close()
    shown = {
        (e.cell, e.revision, e.value, e.timestamp, e.customer)
        for plan in preview.plans.values()
        for e in plan.events
    }
    more = {cell for plan in preview.plans.values() for cell in plan.unfinished}
    assert shown <= written
    assert {cell for cell, *_ in written - shown} <= more  # the segments that follow
    assert set(preview.missing) | preview.errors.keys() == outcome.not_planned.keys()
    holds = {
        (h.cell, h.start, str(h.reason), h.value)
        for plan in preview.plans.values()
        for h in plan.holds
    }
    planned = preview.plans.keys() - {cell.usage_day for cell in more}
    on_hold = {(h.cell, h.start, h.reason, h.value) for h in held if h.cell.usage_day in planned}
    assert {hold for hold in holds if hold[0].usage_day in planned} == on_hold
