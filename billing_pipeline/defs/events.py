"""Stripe events in Dagster: applying the stored ones, and finding those that were missed."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import dagster as dg

from billing_pipeline.defs import metadata, specs
from billing_pipeline.defs.resources import Billing
from billing_pipeline.errors import ConfigurationError
from billing_pipeline.ledger import queries
from billing_pipeline.operations.bill import apply_events
from billing_pipeline.operations.periods import unbilled
from billing_pipeline.stripe_events.backstop import fetch_missed


@dg.multi_asset(
    name="apply_events",
    specs=[specs.SUBSCRIPTIONS],
    check_specs=[specs.EVENTS_APPLIED, specs.METER_ERRORS, specs.UNBILLED, specs.CONTRADICTIONS],
)
def subscriptions(
    context: dg.AssetExecutionContext, billing: dg.ResourceParam[Billing]
) -> Iterator[Any]:
    """Apply every stored Stripe event that is due, each with its mark in one transaction."""
    try:
        with billing.open(context.run.run_id) as ctx:
            applied = apply_events(ctx)
            reports = ctx.ledger.read(queries.open_reports, ctx.clock())
            late = unbilled(ctx)
            known = ctx.customers.known(ctx.settings.billing_customers_file)
    except ConfigurationError as error:
        raise dg.Failure(str(error), allow_retries=False) from None
    troubled = applied.failed | applied.postponed
    yield dg.MaterializeResult(
        asset_key=specs.SUBSCRIPTIONS.key,
        metadata=metadata.of_applied(applied),
        check_results=[
            dg.AssetCheckResult(
                passed=not troubled,
                check_name=specs.EVENTS_APPLIED.name,
                severity=dg.AssetCheckSeverity.ERROR
                if applied.failed
                else dg.AssetCheckSeverity.WARN,
                metadata={"errors": metadata.table(
                    [{"event": id, "error": error} for id, error in troubled.items()])},
            ),
            dg.AssetCheckResult(
                passed=not reports,
                check_name=specs.METER_ERRORS.name,
                metadata={"reports": metadata.table(
                    [{name: r[name] for name in ("code", "errors", "matched", "meter_id",
                                                 "window_start", "window_end", "message")}
                     for r in reports])},
            ),
            dg.AssetCheckResult(
                passed=not late,
                check_name=specs.UNBILLED.name,
                metadata={"events": metadata.table(
                    [{name: e[name] for name in ("day", "organization_id", "meter", "value",
                                                 "accepted_at", "invoice", "finalized_at")}
                     for e in late])},
            ),
            dg.AssetCheckResult(
                passed=not known.contradictions(),
                check_name=specs.CONTRADICTIONS.name,
                severity=dg.AssetCheckSeverity.WARN,
                metadata={"contradictions": metadata.table(
                    [{"what": message} for message in known.contradictions()])},
            ),
        ],
    )  # fmt: skip


class BackstopConfig(dg.Config):
    """How far back to look."""

    hours: float = 96.0
    """Hours. Stripe retries webhooks for three days; one day more finds what it gave up."""


@dg.op
def find_missed_events(
    context: dg.OpExecutionContext, config: BackstopConfig, billing: dg.ResourceParam[Billing]
) -> None:
    """Store the events that Stripe lists and no webhook delivered."""
    with billing.open(context.run_id) as ctx:
        now = ctx.clock()
        since = now - timedelta(hours=config.hours)
        listed, missing = fetch_missed(ctx.inbox, ctx.gateway, since, now)
    context.log.info(f"{listed} events listed since {since:%Y-%m-%d %H:%M}, {len(missing)} missed")
    context.add_output_metadata({"listed": listed, "missed": len(missing)})
