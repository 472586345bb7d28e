"""The jobs: bill a day, only report it, apply Stripe events, find missed ones."""

from __future__ import annotations

import dagster as dg

from billing_pipeline.defs.events import find_missed_events

bill_days = dg.define_asset_job(
    "bill_days",
    selection=dg.AssetSelection.assets(
        "sensor_activity", "usage_snapshot", "meter_events", "verification"
    ),
    description="Count usage days, report them to Stripe and verify them.",
)

report_days = dg.define_asset_job(
    "report_days",
    selection=dg.AssetSelection.assets("meter_events", "verification"),
    description="Report and verify usage days from the snapshots that they have.",
)

apply_stripe_events = dg.define_asset_job(
    "apply_stripe_events",
    selection=dg.AssetSelection.assets("subscriptions"),
    description="Apply stored Stripe events: customers, subscriptions, meter errors.",
)


@dg.job(description="Store the events that Stripe lists and no webhook delivered.")
def missed_stripe_events() -> None:
    """Find Stripe events that no webhook delivered."""
    find_missed_events()
