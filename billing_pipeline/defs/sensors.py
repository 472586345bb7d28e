"""Sensors: runs between the daily ones, for changed readings, unfinished usage, Stripe events that
are due, and periods that are about to close.

Sensors look at the state of things, not at a log of events, so nothing slips past them. Their
cursor only remembers which runs were asked for, and when, so that they do not ask at every tick.
A day that stays unfinished is asked for again after a while.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import date, datetime, timedelta

import dagster as dg

from billing_pipeline.defs.jobs import apply_stripe_events, bill_days, report_days
from billing_pipeline.defs.resources import Billing
from billing_pipeline.defs.specs import READINGS, STRIPE_EVENTS
from billing_pipeline.ledger import queries
from billing_pipeline.operations.changes import changed_days, older_days, reportable_days
from billing_pipeline.operations.day_inputs import unfinished_days
from billing_pipeline.operations.periods import closing_days

ASK_AGAIN = timedelta(hours=1)
ASK_AGAIN_SOON = timedelta(minutes=10)
"""For invoices that are about to become final, and for runs that take a minute."""

TURN = "older"
"""The cursor's key for where the next look at older days begins."""

RANGE = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")


@dg.sensor(job=bill_days, minimum_interval_seconds=60)
def changed_readings(
    context: dg.SensorEvaluationContext, billing: dg.ResourceParam[Billing]
) -> dg.SensorResult:
    """Bill again the days of the last 34 whose files changed, or that were never counted.

    Older days that were counted are looked at in turn, a few at a time. Late readings of such days
    are billed only by an adjustment, but they must not go unnoticed.
    """
    with billing.open("changed_readings") as ctx:
        before = json.loads(context.cursor) if context.cursor else {}
        older, following = older_days(ctx, before.pop(TURN, None))
        changed = changed_days(ctx, [*older, *reportable_days(ctx)])
        reasons = {each.day: each.mark for each in changed}
        asked, cursor = _not_asked_lately(json.dumps(before), reasons, ctx.clock())
        if following is not None:
            # Older days of other looks are remembered until they are looked at again.
            recent = reportable_days(ctx)[0].isoformat()
            looked_at = {day.isoformat() for day in older}
            kept = {d: was for d, was in before.items() if d < recent and d not in looked_at}
            turn = {TURN: following.isoformat()}
            cursor = json.dumps({**kept, **json.loads(cursor), **turn})
    return dg.SensorResult(
        run_requests=_requests(asked),
        asset_events=[
            dg.AssetObservation(
                READINGS.key, partition=each.day.isoformat(), metadata={"files": each.files}
            )
            for each in changed
            if each.day in asked
        ],
        cursor=cursor,
    )


@dg.sensor(job=report_days, minimum_interval_seconds=300)
def unfinished_usage(
    context: dg.SensorEvaluationContext, billing: dg.ResourceParam[Billing]
) -> dg.SensorResult:
    """Finish days that are stale, or have events that are unresolved or not verified yet."""
    with billing.open("unfinished_usage") as ctx:
        reasons = dict.fromkeys(unfinished_days(ctx), "unfinished")
        asked, cursor = _not_asked_lately(context.cursor, reasons, ctx.clock())
    return dg.SensorResult(run_requests=_requests(asked), cursor=cursor)


@dg.sensor(job=apply_stripe_events, minimum_interval_seconds=30)
def stripe_event_sensor(
    context: dg.SensorEvaluationContext, billing: dg.ResourceParam[Billing]
) -> dg.SensorResult:
    """Show the stored Stripe events, and start one run for all that are due.

    The run key is made of the events that are due and of how often runs were asked for. A tick that
    is repeated after a crash asks for the same key and starts nothing; a run that died is replaced.
    """
    with billing.open("stripe_event_sensor") as ctx:
        now = ctx.clock()
        due = [(event.id, event.attempts) for event in ctx.inbox.due(now)]
        counts = ctx.inbox.counts()
        # When a person has fixed what the asset's checks show, they turn green.
        trouble = [r["event_id"] for r in ctx.ledger.read(queries.open_reports, now)]
        trouble += ctx.customers.known(ctx.settings.billing_customers_file).contradictions()
    before = json.loads(context.cursor) if context.cursor else {}
    wanted = due or trouble != before.get("trouble", [])
    what = hashlib.sha256(json.dumps([due, trouble]).encode()).hexdigest()[:16]
    asked_at, times = before.get("at", now.isoformat()), before.get("times", 0)
    same = what == before.get("what")
    if not same or now - datetime.fromisoformat(asked_at) >= ASK_AGAIN_SOON:
        asked_at, times = now.isoformat(), times + 1
    seen = [dg.AssetMaterialization(STRIPE_EVENTS.key, metadata={**counts})]
    return dg.SensorResult(
        run_requests=[dg.RunRequest(run_key=f"{what}-{times}")] if wanted else [],
        asset_events=seen if counts != before.get("counts") else [],
        cursor=json.dumps(
            {"what": what, "at": asked_at, "times": times, "counts": counts, "trouble": trouble}
        ),
    )


@dg.sensor(job=bill_days, minimum_interval_seconds=30)
def closing_periods(
    context: dg.SensorEvaluationContext, billing: dg.ResourceParam[Billing]
) -> dg.SensorResult:
    """Bill what is missing of a period whose invoice is a draft, before the invoice is final."""
    with billing.open("closing_periods") as ctx:
        reasons = {day: ", ".join(ids) for day, ids in closing_days(ctx).items()}
        asked, cursor = _not_asked_lately(context.cursor, reasons, ctx.clock(), ASK_AGAIN_SOON)
    return dg.SensorResult(run_requests=_requests(asked), cursor=cursor)


def _not_asked_lately(
    cursor: str | None, reasons: Mapping[date, str], now: datetime, again: timedelta = ASK_AGAIN
) -> tuple[list[date], str]:
    """The days to ask for now, and the cursor that remembers it."""
    before: dict[str, list[str]] = json.loads(cursor) if cursor else {}
    asked, after = [], {}
    for day, reason in sorted(reasons.items()):
        then = before.get(day.isoformat())
        if then is None or then[0] != reason or now - datetime.fromisoformat(then[1]) >= again:
            asked.append(day)
            then = [reason, now.isoformat()]
        after[day.isoformat()] = then
    return asked, json.dumps(after)


def _requests(days: Iterable[date]) -> list[dg.RunRequest]:
    """One run per unbroken range of days. No run key: a key is spent for ever, also by a run
    that failed, and a day may well change twice in the same way."""
    ranges: list[tuple[date, date]] = []
    for day in days:
        if ranges and ranges[-1][1] + timedelta(days=1) == day:
            ranges[-1] = (ranges[-1][0], day)
        else:
            ranges.append((day, day))
    return [
        dg.RunRequest(tags=dict(zip(RANGE, (first.isoformat(), last.isoformat()), strict=True)))
        for first, last in ranges
    ]
