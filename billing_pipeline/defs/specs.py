"""The assets and their checks as people see them: descriptions, owners, columns."""

from __future__ import annotations

import warnings

import dagster as dg

from billing_pipeline.defs.partitions import billing_months, usage_days

OWNERS = ["team:billing"]


def _columns(**columns: tuple[str, str]) -> dict[str, dg.TableSchema]:
    return {
        "dagster/column_schema": dg.TableSchema(
            columns=[
                dg.TableColumn(name, kind, description=description)
                for name, (kind, description) in columns.items()
            ]
        )
    }


READINGS = dg.AssetSpec(
    "readings",
    description=(
        "One row per measurement of one sensor at one instant, in files by UTC day, "
        "written by others. Only observed here."
    ),
    group_name="readings",
    owners=OWNERS,
    kinds={"parquet", "csv", "json"},
    partitions_def=usage_days,
    metadata=_columns(
        organization_id=("string", "who operates the sensor; string, integer or UUID in files"),
        sensor_id=("string", "which sensor; string, integer or UUID in files"),
        recorded_at=("timestamp", "when it was measured; UTC where no zone is given"),
        value=("any", "what was measured; optional, used to tell duplicates apart"),
    ),
)

SENSOR_ACTIVITY = dg.AssetSpec(
    "sensor_activity",
    deps=[READINGS],
    description="One row per sensor and UTC day: its distinct readings, duplicates removed.",
    group_name="usage",
    owners=OWNERS,
    kinds={"duckdb", "parquet"},
    partitions_def=usage_days,
    skippable=True,
    metadata=_columns(
        usage_day=("date", "UTC day"),
        organization_id=("string", ""),
        sensor_id=("string", ""),
        readings=("int64", "distinct instants with a reading"),
        first_at=("timestamp", "first reading of the day, UTC"),
        last_at=("timestamp", "last reading of the day, UTC"),
        exact_duplicates=("int64", "rows removed: same instant, same value"),
        conflicting_duplicates=("int64", "rows removed: same instant, another value"),
    ),
)

USAGE_SNAPSHOT = dg.AssetSpec(
    "usage_snapshot",
    deps=[SENSOR_ACTIVITY],
    description="One row per organization and UTC day: active sensors and reading volume, exact.",
    group_name="usage",
    owners=OWNERS,
    kinds={"duckdb", "parquet"},
    partitions_def=usage_days,
    skippable=True,
    metadata=_columns(
        usage_day=("date", "UTC day"),
        organization_id=("string", ""),
        active_sensors=("int64", "sensors with a reading in the window that ends with the day"),
        reading_volume=("int64", "readings of the day, duplicates removed"),
        exact_duplicates=("int64", "rows removed: same instant, same value"),
        conflicting_duplicates=("int64", "rows removed: same instant, another value"),
        snapshot_id=("string", "hash of content and inputs"),
    ),
)

METER_EVENTS = dg.AssetSpec(
    "meter_events",
    deps=[USAGE_SNAPSHOT],
    description=(
        "One row per report about an organization's meter and UTC day, written to the ledger "
        "before it is sent to Stripe."
    ),
    group_name="stripe",
    owners=OWNERS,
    kinds={"stripe", "sqlalchemy"},
    partitions_def=usage_days,
    skippable=True,
    metadata=_columns(
        usage_day=("date", "UTC day"),
        organization_id=("string", ""),
        event_name=("string", "the meter"),
        revision=("int", "number of the report about this cell, starting at 1"),
        customer=("string", "Stripe customer"),
        value=("int64", "what is sent: the target, or on a sum the signed difference"),
        target=("int64", "what the cell should then be"),
        state=("string", "planned, sending, ambiguous, accepted, verified or rejected"),
    ),
)

VERIFICATION = dg.AssetSpec(
    "verification",
    deps=[METER_EVENTS],
    description=(
        "One row per Stripe customer, meter and UTC day: what the ledger expects, what Stripe's "
        "own summary reports, and whether they agree."
    ),
    group_name="stripe",
    owners=OWNERS,
    kinds={"stripe"},
    partitions_def=usage_days,
    skippable=True,
    metadata=_columns(
        usage_day=("date", "UTC day"),
        customer=("string", "Stripe customer"),
        event_name=("string", "the meter"),
        expected=("int64", "by the ledger"),
        reported=("string", "by Stripe"),
        outcome=("string", "agrees, lagging or mismatch"),
    ),
)


RECONCILIATION = dg.AssetSpec(
    "reconciliation",
    deps=[VERIFICATION],
    description=(
        "One row per organization, meter and billing period that ends in the month: readings, "
        "snapshot, ledger, Stripe's summary and invoice line, with the cause of each difference."
    ),
    group_name="stripe",
    owners=OWNERS,
    kinds={"stripe", "csv"},
    partitions_def=billing_months,
    metadata=_columns(
        organization_id=("string", "several with one Stripe customer are one row"),
        meter=("string", "the meter's event name"),
        period_start=("timestamp", "UTC"),
        period_end=("timestamp", "UTC"),
        invoice=("string", "the period's invoice, where one is known"),
        status=("string", "final, draft, open, missing or none (no billing period)"),
        readings=("int64", "units that the readings prove now"),
        snapshot=("int64", "units in the usage snapshots"),
        ledger=("int64", "units reported, as the ledger has them"),
        stripe=("float64", "Stripe's own figure of the period"),
        invoiced=("int64", "units on the final invoice"),
        causes=("string", "why they differ, step by step"),
        unexplained=("string", "steps at which they differ and nobody knows why"),
    ),
)

RECONCILED = dg.AssetCheckSpec(
    "reconciled",
    asset=RECONCILIATION.key,
    description="Every difference between readings and invoices has a cause.",
)
VERIFIED = dg.AssetCheckSpec(
    "verified",
    asset=RECONCILIATION.key,
    description="Stripe's summaries confirm every cell of the month.",
)

STRIPE_EVENTS = dg.AssetSpec(
    "stripe_events",
    description=(
        "One row per Stripe event, stored by the webhook handler. Observed here; the "
        "pipeline applies each once and marks it."
    ),
    group_name="stripe",
    owners=OWNERS,
    kinds={"stripe", "sqlalchemy"},
    metadata=_columns(
        id=("string", "Stripe's event id"),
        type=("string", "such as customer.subscription.updated"),
        state=("string", "received, processed, ignored or failed"),
        attempts=("int", "how often it was tried"),
        last_error=("string", "why it was not applied"),
    ),
)

SUBSCRIPTIONS = dg.AssetSpec(
    "subscriptions",
    deps=[STRIPE_EVENTS],
    description=(
        "One row per Stripe subscription with its customer, status and billing periods, read "
        "from Stripe events."
    ),
    group_name="stripe",
    owners=OWNERS,
    kinds={"stripe", "sqlalchemy"},
    metadata=_columns(
        subscription_id=("string", ""),
        stripe_customer_id=("string", "who pays"),
        status=("string", "as Stripe names it, known or not"),
        start_at=("int64", "unix seconds"),
        end_at=("int64", "unix seconds; when it ended or is to end"),
    ),
)

EVENTS_APPLIED = dg.AssetCheckSpec(
    "events_applied",
    asset=SUBSCRIPTIONS.key,
    description="Every Stripe event that was due could be applied.",
)
METER_ERRORS = dg.AssetCheckSpec(
    "meter_errors",
    asset=SUBSCRIPTIONS.key,
    description="No error report from Stripe about accepted usage that it did not count is open.",
)
UNBILLED = dg.AssetCheckSpec(
    "unbilled",
    asset=SUBSCRIPTIONS.key,
    description="No usage was accepted for a billing period after its invoice was final.",
)
CONTRADICTIONS = dg.AssetCheckSpec(
    "contradictions",
    asset=SUBSCRIPTIONS.key,
    description="The imported customers agree with Stripe events about who pays.",
)


def _check(
    asset: dg.AssetSpec, name: str, description: str, *, blocking: bool
) -> dg.AssetCheckSpec:
    with warnings.catch_warnings():
        # Partitioned checks are marked as a preview; the warning would greet every command.
        warnings.simplefilter("ignore", dg.PreviewWarning)
        return dg.AssetCheckSpec(
            name,
            asset=asset.key,
            description=description,
            blocking=blocking,
            partitions_def=usage_days,
        )


# Blocking: what they guard is not sent. In a run of many days only the failing day waits.
CONSERVATION = _check(
    USAGE_SNAPSHOT,
    "conservation",
    "Rows read = readings + exact duplicates + conflicting duplicates + quarantined.",
    blocking=True,
)
COMPLETENESS = _check(
    USAGE_SNAPSHOT,
    "completeness",
    "The UTC day is over, so its usage can be complete.",
    blocking=True,
)
DELIVERY = _check(
    METER_EVENTS,
    "delivery",
    "Stripe accepted every event of the day; no usage is on hold or refused.",
    blocking=False,
)
AGREEMENT = _check(
    VERIFICATION,
    "agreement",
    "Stripe's own summaries agree with the ledger for every customer and meter.",
    blocking=False,
)
PLAUSIBILITY = _check(
    METER_EVENTS,
    "plausibility",
    "The day's counts are plausible against recent weeks, or a person approved them.",
    blocking=False,
)
