"""What starts runs between the daily ones: readings that changed, usage left unfinished, what
Stripe has said, and periods about to close.

All ask the state of things, not an event log, so nothing slips past them; their cursor only
remembers what was last asked for and when, to keep from asking again at every tick. What stays
undone is asked for again after a while.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import date, datetime, timedelta

import dagster as dg

from billing_pipeline.defs.jobs import apply_stripe_events, bill_days, report_days
from billing_pipeline.defs.resources import Billing
from billing_pipeline.defs.specs import READINGS, STRIPE_EVENTS
from billing_pipeline.ledger import queries
from billing_pipeline.operations.context import Context
from billing_pipeline.operations.day_inputs import unfinished_days
from billing_pipeline.operations.periods import closing_days
from billing_pipeline.stripe_facts import OLDEST_REPORTED
from billing_pipeline.usage.activity import DAY_ERRORS
from billing_pipeline.usage.sources.day_files import list_day

ASK_AGAIN = timedelta(hours=1)
ASK_AGAIN_SOON = timedelta(minutes=10)
"""Where an invoice is about to become final, or a run was to take a minute."""
GRACE = timedelta(minutes=15)
"""A day that has just ended is the schedule's."""

OLDER_AT_ONCE = 10
"""Older days looked at in one tick: a year of them in about half an hour."""

TURN = "older"
"""Where the cursor keeps whose turn it is among the older days."""

RANGE = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")


@dg.sensor(job=bill_days, minimum_interval_seconds=60)
def changed_readings(
    context: dg.SensorEvaluationContext, billing: dg.ResourceParam[Billing]
) -> dg.SensorResult:
    """Bill again the days of the last 34 whose files changed, or that were never counted.

    Older days that were counted are looked at in turn, a few at a time: what comes for them can
    only be carried into the current period, but it must not go unnoticed.
    """
    with billing.open("changed_readings") as ctx:
        before = json.loads(context.cursor) if context.cursor else {}
        older, following = _older_days(ctx, before.pop(TURN, None))
        reasons, seen = _changed(ctx, [*older, *_reportable_days(ctx)])
        asked, cursor = _not_asked_lately(json.dumps(before), reasons, ctx.clock())
        if following is not None:
            # What was asked for in another turn is remembered until it is looked at again.
            recent = _reportable_days(ctx)[0].isoformat()
            looked_at = {day.isoformat() for day in older}
            kept = {d: was for d, was in before.items() if d < recent and d not in looked_at}
            turn = {TURN: following.isoformat()}
            cursor = json.dumps({**kept, **json.loads(cursor), **turn})
    return dg.SensorResult(
        run_requests=_requests(asked),
        asset_events=[event for event in seen if date.fromisoformat(str(event.partition)) in asked],
        cursor=cursor,
    )


@dg.sensor(job=report_days, minimum_interval_seconds=300)
def unfinished_usage(
    context: dg.SensorEvaluationContext, billing: dg.ResourceParam[Billing]
) -> dg.SensorResult:
    """Finish the days not planned from their snapshot, unresolved, unverified, or held no more."""
    with billing.open("unfinished_usage") as ctx:
        reasons = dict.fromkeys(unfinished_days(ctx), "unfinished")
        asked, cursor = _not_asked_lately(context.cursor, reasons, ctx.clock())
    return dg.SensorResult(run_requests=_requests(asked), cursor=cursor)


@dg.sensor(job=apply_stripe_events, minimum_interval_seconds=30)
def stripe_event_sensor(
    context: dg.SensorEvaluationContext, billing: dg.ResourceParam[Billing]
) -> dg.SensorResult:
    """Show the events that Stripe sent, and start one run for all that are due.

    The run key is made of what is due and of how often anything was asked for: a tick repeated
    after a crash asks for the same key and starts nothing, and a run that died is replaced.
    """
    with billing.open("stripe_event_sensor") as ctx:
        now = ctx.clock()
        due = [(event.id, event.attempts) for event in ctx.inbox.due(now)]
        counts = ctx.inbox.counts()
        # What the checks of the asset show: when a person has fixed it, they turn green.
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
    """Bring what is missing of a period whose invoice is a draft, before that becomes final."""
    with billing.open("closing_periods") as ctx:
        reasons = {day: ", ".join(ids) for day, ids in closing_days(ctx).items()}
        asked, cursor = _not_asked_lately(context.cursor, reasons, ctx.clock(), ASK_AGAIN_SOON)
    return dg.SensorResult(run_requests=_requests(asked), cursor=cursor)


def _older_days(ctx: Context, turn: str | None) -> tuple[list[date], date | None]:
    """A few counted days that Stripe takes nothing for any more, and where the next look begins.

    A day whose files are all gone is left alone: they were archived.
    """
    first = ctx.settings.billing_start_day
    last = _reportable_days(ctx)[0] - timedelta(days=1)
    if first > last:
        return [], None
    at = first if turn is None else date.fromisoformat(turn)
    days = [at + timedelta(days=n) for n in range(OLDER_AT_ONCE) if at + timedelta(days=n) <= last]
    found = []
    for day in days:
        with suppress(*DAY_ERRORS):
            if ctx.usage.snapshot_id(day) is not None and list_day(ctx.readings, day).files:
                found.append(day)
    following = at + timedelta(days=OLDER_AT_ONCE)
    return found, following if following <= last else first


def _changed(
    ctx: Context, days: Iterable[date]
) -> tuple[dict[date, str], list[dg.AssetObservation]]:
    """Of these days those to count again, with a mark of what lies there, and what was seen."""
    reasons: dict[date, str] = {}
    seen = []
    for day in days:
        files = 0
        try:
            inputs = list_day(ctx.readings, day)
            files = len(inputs.files)
            listing = json.dumps([(f.name, f.size, f.modified) for f in inputs.files])
            current = ctx.usage.is_current(day)
        except DAY_ERRORS as error:  # the run it starts will say so, on its day
            listing, current = str(error), False
        if not current:
            reasons[day] = hashlib.sha256(listing.encode()).hexdigest()[:16]
            seen.append(
                dg.AssetObservation(
                    READINGS.key,
                    partition=day.isoformat(),
                    metadata={"files": files},
                )
            )
    return reasons, seen


def _reportable_days(ctx: Context) -> list[date]:
    """The finished days that Stripe still takes events for."""
    now = ctx.clock()
    last = (now - GRACE).date() - timedelta(days=1)
    first = max((now - OLDEST_REPORTED).date(), ctx.settings.billing_start_day)
    return [first + timedelta(days=n) for n in range((last - first).days + 1)]


def _not_asked_lately(
    cursor: str | None,
    reasons: Mapping[date, str],
    now: datetime,
    again: timedelta = ASK_AGAIN,
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
