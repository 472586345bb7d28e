"""Two jobs: a whole day, and only its statement."""

from __future__ import annotations

import dagster as dg

bill_days = dg.define_asset_job(
    "bill_days",
    selection=dg.AssetSelection.assets(
        "sensor_activity", "usage_snapshot", "meter_events", "verification"
    ),
    description="Count usage days, state them to Stripe and verify them.",
)

state_days = dg.define_asset_job(
    "state_days",
    selection=dg.AssetSelection.assets("meter_events", "verification"),
    description="State and verify usage days from the snapshots they have.",
)
