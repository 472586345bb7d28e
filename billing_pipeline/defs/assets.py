"""The assets of a usage day, made by one step that takes the days of a run one by one.

    readings → sensor_activity → usage_snapshot → meter_events → verification

There is one step, because a day that cannot be counted must not hold back another one: between
steps, Dagster would skip all days of a run because of one. Each day's materializations and check
results are logged for its own partition. The days that can be done are done, and the run fails at
the end with the list of the others.
"""

from collections.abc import Generator, Iterator, Mapping
from datetime import date
from typing import Any

import dagster as dg

from billing_pipeline.defs import metadata, specs
from billing_pipeline.defs.partitions import usage_days
from billing_pipeline.defs.resources import Billing, DayOutcome, RunOutcome
from billing_pipeline.errors import ConfigurationError
from billing_pipeline.ledger import queries
from billing_pipeline.operations.bill import count_usage, counted_already, report_days, verify_days
from billing_pipeline.operations.context import Actor, Context
from billing_pipeline.operations.gate import approve_gate, closed_gates
from billing_pipeline.operations.periods import period_ends_in
from billing_pipeline.operations.preview import dry_run
from billing_pipeline.rules.planning import PlanOptions
from billing_pipeline.rules.timestamps import is_over
from billing_pipeline.usage.activity import DAY_ERRORS, count_day
from billing_pipeline.usage.messages import day_error
from billing_pipeline.usage.snapshot import Snapshot
from billing_pipeline.usage.sources.day_files import folder_name

Events = Iterator[Any]


STRIPE_RETRIES, STRIPE_RETRY_SECONDS = 3, 120
"""While Stripe cannot be reached, a run is retried this often; then the sensors take over."""


BY_TAG = "billing/by"
"""The run tag that names who started a run."""

STARTERS = ("dagster/schedule_name", "dagster/sensor_name", "dagster/backfill", "user")
"""Dagster's own tags that name a starter, if that tag is missing."""


BY_ITSELF = ("dagster/schedule_name", "dagster/sensor_name")
"""Tags of runs that no person started. They do not report again what a person undid."""


class BillingConfig(dg.Config):
    """Options of a run."""

    retry_rejected: bool = False
    """Report again what Stripe refused, once the cause is fixed in Stripe."""
    reason: str = ""
    """Reason for this run, recorded in the audit trail."""
    recount: bool = False
    """Count days again even if their files have not changed."""
    dry_run: bool = False
    """Count and plan without changing anything; the plan is shown as metadata."""
    approve_gate: str = ""
    """Reason to let the days of this run through the gate although their counts are implausible."""
    verify_wait_seconds: float = 30.0
    """Seconds to wait for Stripe's summaries to catch up before the run ends."""


@dg.multi_asset(
    name="bill_usage_days",
    specs=[specs.SENSOR_ACTIVITY, specs.USAGE_SNAPSHOT, specs.METER_EVENTS, specs.VERIFICATION],
    check_specs=[
        specs.CONSERVATION,
        specs.COMPLETENESS,
        specs.PLAUSIBILITY,
        specs.DELIVERY,
        specs.AGREEMENT,
    ],
    partitions_def=usage_days,
    backfill_policy=dg.BackfillPolicy.single_run(),
    can_subset=True,
    pool="billing",
)
def bill_usage_days(
    context: dg.AssetExecutionContext, config: BillingConfig, billing: dg.ResourceParam[Billing]
) -> Events:
    """Count the days of this run, report their usage to Stripe, and verify it there."""
    selected = {key.to_user_string() for key in context.selected_asset_keys}
    days = [date.fromisoformat(key) for key in context.partition_keys]
    billing.outcome = RunOutcome()
    try:
        with billing.open(context.run.run_id) as ctx:
            if config.dry_run:
                yield from _preview(ctx, billing, days, config)
                return
            if selected & {"sensor_activity", "usage_snapshot"}:
                days = yield from _count(ctx, billing, days, selected, recount=config.recount)
            if "meter_events" in selected:
                by = Actor(_started_by(context.run.tags), config.reason)
                by_a_person = not set(context.run.tags) & set(BY_ITSELF)
                yield from _report(ctx, billing, days, config, by, by_a_person=by_a_person)
            if "verification" in selected:
                yield from _verify(ctx, billing, days, config)
    except ConfigurationError as error:
        billing.outcome.configuration_error = str(error)
        raise dg.Failure(str(error), allow_retries=False) from None
    _raise_what_failed(billing)


def _count(
    ctx: Context, billing: Billing, days: list[date], selected: set[str], *, recount: bool
) -> Generator[Any, None, list[date]]:
    """Count each day that has changed; returns the days whose checks passed."""
    ready = []
    for number, day in enumerate(days, start=1):
        outcome = billing.outcome.days[day] = DayOutcome()
        try:
            known = None if recount else counted_already(ctx, day)
            yield from _count_one(ctx, day, selected, known, outcome)
            if is_over(day, ctx.clock()) or period_ends_in(ctx, day):
                ready.append(day)
            elif selected & {"meter_events", "verification"}:
                outcome.error = "the day is not over yet: counted, but not reported"
        except DAY_ERRORS as error:
            outcome.error = day_error(error, ctx.settings.memory_limit)
            if "usage_snapshot" in selected:
                yield _checked(specs.CONSERVATION, day, False, {"error": outcome.error})
        if billing.progress is not None:
            billing.progress("counting", number, len(days))
    return ready


def _count_one(
    ctx: Context, day: date, selected: set[str], known: Snapshot | None, outcome: DayOutcome
) -> Events:
    """Count a day, or tell of its `known` snapshot as if it had just been taken."""
    if "sensor_activity" in selected:
        counted = (
            known.counted if known else count_day(ctx.engine, ctx.readings, ctx.snapshots, day)
        )
        outcome.counted = counted
        yield dg.AssetObservation(
            specs.READINGS.key,
            partition=day.isoformat(),
            metadata={
                "folder": dg.MetadataValue.path(ctx.readings.path(folder_name(day))),
                "files": len(counted.files),
                "rows": counted.rows_read,
            },
            tags={"dagster/data_version": counted.activity_id},
        )
        yield _materialized(
            specs.SENSOR_ACTIVITY, day, metadata.of_activity(ctx, counted), counted.activity_id
        )
    if "usage_snapshot" in selected:
        snapshot = known or count_usage(ctx, day)
        outcome.counted, outcome.snapshot_id = snapshot.counted, snapshot.snapshot_id
        yield _materialized(
            specs.USAGE_SNAPSHOT, day, metadata.of_snapshot(ctx, snapshot), snapshot.snapshot_id
        )
        conserved = {"rows_read": snapshot.counted.rows_read}
        yield _checked(specs.CONSERVATION, day, snapshot.counted.conserved, conserved)
        over = is_over(day, ctx.clock())
        # Where a billing period has ended inside today, that part of it can be reported already.
        segment = not over and period_ends_in(ctx, day)
        yield _checked(
            specs.COMPLETENESS,
            day,
            over,
            {"at": ctx.clock().isoformat()},
            dg.AssetCheckSeverity.WARN if segment else dg.AssetCheckSeverity.ERROR,
        )


def _started_by(tags: Mapping[str, str]) -> str:
    """Who started a run: a person, a schedule, a sensor."""
    if BY_TAG in tags:
        return tags[BY_TAG]
    found = [f"{name.partition('/')[2] or name} {tags[name]}" for name in STARTERS if name in tags]
    return ", ".join(found) or "Dagster"


def _preview(ctx: Context, billing: Billing, days: list[date], config: BillingConfig) -> Events:
    """A dry run: each day's plan as an observation, and no materialization."""
    options = PlanOptions(config.retry_rejected, report_undone=True)
    preview = dry_run(ctx, days, options=options, progress=billing.progress)
    for day in days:
        lines = [line for line in preview.lines if line.day == day]
        why = preview.errors.get(day) or preview.causes[day].text
        yield dg.AssetObservation(
            specs.METER_EVENTS.key,
            partition=day.isoformat(),
            metadata=metadata.of_preview(lines, why),
            description="dry run: nothing was changed or sent",
        )
    for day, error in preview.errors.items():
        billing.outcome.days[day] = DayOutcome(error=error)
    _raise_what_failed(billing)


def _report(
    ctx: Context,
    billing: Billing,
    days: list[date],
    config: BillingConfig,
    by: Actor,
    *,
    by_a_person: bool,
) -> Events:
    """Report the days; each gets its own materialization and check."""
    if config.approve_gate:
        for gate in closed_gates(ctx, days):
            approve_gate(ctx, gate.day, config.approve_gate)
    reporting = report_days(
        ctx,
        days,
        by=by,
        options=PlanOptions(config.retry_rejected, report_undone=by_a_person),
        progress=billing.progress,
    )
    billing.outcome.reporting = reporting
    for day, error in reporting.not_planned.items():
        billing.outcome.days.setdefault(day, DayOutcome()).error = error
    for day, version in reporting.planned_from.items():
        facts = metadata.of_events(ctx, day)
        yield _materialized(specs.METER_EVENTS, day, facts, version)
        findings = reporting.gates.get(day, [])
        yield _checked(
            specs.PLAUSIBILITY,
            day,
            not findings,
            {
                "implausible": metadata.table(
                    [{"organization": f.organization_id or "(all)", "why": f.text}
                     for f in findings]
                )
            },
        )  # fmt: skip
        waiting = sum(facts[s] for s in ("planned", "sending", "ambiguous", "held"))
        refused = len(ctx.ledger.read(queries.rejected, [day]))
        yield _checked(
            specs.DELIVERY,
            day,
            not waiting and not refused,
            {"waiting_or_held": waiting, "refused": refused},
        )


def _verify(ctx: Context, billing: Billing, days: list[date], config: BillingConfig) -> Events:
    """Verify the days; what still lags is a warning, a difference that lasts an error."""
    report = verify_days(
        ctx, days, wait_seconds=config.verify_wait_seconds, progress=billing.progress
    )
    billing.outcome.verification = report
    for day in days:
        facts = metadata.of_verification(ctx, day)
        yield _materialized(specs.VERIFICATION, day, facts)
        unconfirmed = ctx.ledger.read(queries.counts, [day])["accepted"]
        yield _checked(
            specs.AGREEMENT,
            day,
            not facts["mismatch"] and not unconfirmed,
            {"mismatched": facts["mismatch"], "unconfirmed": unconfirmed},
            severity=dg.AssetCheckSeverity.ERROR
            if facts["mismatch"]
            else dg.AssetCheckSeverity.WARN,
        )


def _raise_what_failed(billing: Billing) -> None:
    failed = {day: o.error for day, o in billing.outcome.days.items() if o.error}
    lines = [f"{day}: {error}" for day, error in sorted(failed.items())]
    stopped = billing.outcome.reporting.stopped
    if stopped:
        lines.append(f"delivery stopped: {stopped}; the rest stays planned")
    if lines:
        failure = dg.Failure("\n".join(lines), allow_retries=False)
        # Stripe may come back soon; a broken file stays broken until somebody fixes it.
        if stopped and not billing.outcome.reporting.denied and billing.unattended:
            raise dg.RetryRequested(STRIPE_RETRIES, STRIPE_RETRY_SECONDS) from failure
        raise failure


def _materialized(
    spec: dg.AssetSpec, day: date, facts: dict[str, Any], version: str = ""
) -> dg.AssetMaterialization:
    return dg.AssetMaterialization(
        spec.key,
        partition=day.isoformat(),
        metadata=facts,
        tags={"dagster/data_version": version} if version else {},
    )


def _checked(
    spec: dg.AssetCheckSpec,
    day: date,
    passed: bool,
    facts: dict[str, Any],
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR,
) -> dg.AssetCheckEvaluation:
    return dg.AssetCheckEvaluation(
        asset_key=spec.asset_key,
        check_name=spec.name,
        passed=passed,
        metadata=facts,
        severity=severity,
        partition=day.isoformat(),
        blocking=spec.blocking,
    )
