"""Metadata of materializations: what people see in the UI."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any

import dagster as dg
import pandas as pd

from billing_pipeline.ledger import queries
from billing_pipeline.operations.context import Context
from billing_pipeline.operations.preview import PlanLine
from billing_pipeline.operations.reconcile.rows import Reconciliation, Row
from billing_pipeline.stripe_events.applying import Applied
from billing_pipeline.usage.activity import ACTIVITY_FILE, CountedDay, day_folder
from billing_pipeline.usage.snapshot import SNAPSHOT_FILE, Snapshot

LARGEST = 10
PREVIEWED = 200
"""Lines of a dry run's table; the command line shows all."""


def table(rows: Sequence[dict[str, Any]], most: int = LARGEST) -> dg.MarkdownMetadataValue:
    """At most `most` rows as a table, and how many more there are."""
    if not rows:
        return dg.MetadataValue.md("(none)")
    shown = pd.DataFrame(rows[:most]).to_markdown(index=False)
    more = f"\n\n… and {len(rows) - most} more" if len(rows) > most else ""
    return dg.MetadataValue.md(shown + more)


def of_activity(ctx: Context, counted: CountedDay) -> dict[str, Any]:
    """Counts, files and quarantine of a counted day."""
    return {
        **_counts(counted),
        "dagster/row_count": counted.sensors,
        "path": dg.MetadataValue.path(
            ctx.snapshots.path(day_folder(counted.usage_day), ACTIVITY_FILE)
        ),
        "files": table([{"file": f.name, "rows": f.rows, "bytes": f.size} for f in counted.files]),
        "folder": "found" if counted.folder_exists else "no folder: zero readings",
        "ignored_files": ", ".join(counted.ignored_files) or "(none)",
        "quarantine": table(
            [
                {"reason": reason, "organization": organization or "(missing)", "rows": rows}
                for reason, organization, rows in counted.quarantine_sample
            ]
        ),
    }


def of_snapshot(ctx: Context, snapshot: Snapshot) -> dict[str, Any]:
    """Counts, identity and the largest organizations of a snapshot."""
    largest = sorted(snapshot.organizations, key=lambda o: o.reading_volume, reverse=True)
    return {
        **_counts(snapshot.counted),
        "dagster/row_count": len(snapshot.organizations),
        "snapshot_id": snapshot.snapshot_id,
        "path": dg.MetadataValue.path(
            ctx.snapshots.path(day_folder(snapshot.usage_day), SNAPSHOT_FILE)
        ),
        "files": ", ".join(f.name for f in snapshot.counted.files) or "(none)",
        "window_days": len(snapshot.window),
        "largest_organizations": table(
            [
                {
                    "organization": o.organization_id,
                    "active_sensors": o.active_sensors,
                    "reading_volume": o.reading_volume,
                }
                for o in largest[:LARGEST]
            ]
        ),
    }


def of_events(ctx: Context, day: date) -> dict[str, Any]:
    """The day's events by state, and usage that is on hold or refused."""
    counts = ctx.ledger.read(queries.counts, [day])
    return {
        **counts,
        "dagster/row_count": sum(counts.values()) - counts["held"],
        "on_hold": table(
            [
                {"organization": h.cell.organization_id, "meter": h.cell.event_name,
                 "value": h.value, "reason": h.reason}
                for h in ctx.ledger.read(queries.holds_of, [day])
            ]
        ),
        "refused": table(
            [
                {"organization": r["organization_id"], "meter": r["meter"], "value": r["value"],
                 "code": r["error_code"], "message": r["error_message"]}
                for r in ctx.ledger.read(queries.rejected, [day])
            ]
        ),
    }  # fmt: skip


def of_preview(lines: Sequence[PlanLine], why: str) -> dict[str, Any]:
    """What a run would report for a day, and why."""
    return {
        "cause": why,
        "lines": len(lines),
        "plan": table(
            [
                {"organization": x.organization_id, "meter": x.meter, "action": x.action,
                 "in Stripe": "" if x.before is None else x.before, "target": x.target,
                 "difference": x.difference, "to send": x.value, "detail": x.detail}
                for x in lines
            ],
            PREVIEWED,
        ),
    }  # fmt: skip


def of_applied(applied: Applied) -> dict[str, Any]:
    """What became of the Stripe events that were due."""
    return {
        "processed": len(applied.processed),
        "ignored": len(applied.ignored),
        "to_be_tried_again": len(applied.postponed),
        "failed": len(applied.failed),
    }


def of_verification(ctx: Context, day: date) -> dict[str, Any]:
    """How much of a day Stripe agrees with, and the differences."""
    looks = {
        o: ctx.ledger.read(queries.checks, [day], o) for o in ("agrees", "lagging", "mismatch")
    }
    counts = ctx.ledger.read(queries.counts, [day])
    taken = counts["accepted"] + counts["verified"]
    return {
        "verified_share": counts["verified"] / taken if taken else 1.0,
        **{outcome: len(rows) for outcome, rows in looks.items()},
        "dagster/row_count": sum(len(rows) for rows in looks.values()),
        "differences": table(
            [
                {"customer": r["customer"], "meter": r["event_name"], "ledger": r["expected"],
                 "stripe": r["reported"]}
                for r in looks["mismatch"] + looks["lagging"]
            ]
        ),
    }  # fmt: skip


def reconciled_rows(rows: Sequence[Row]) -> dg.MarkdownMetadataValue:
    """Rows of a reconciliation, with their causes."""
    return table(
        [
            {
                "organization": ", ".join(row.organizations), "meter": row.meter,
                "period": row.as_json()["period_start"][:16],
                "readings": row.figures.readings, "snapshot": row.figures.snapshot,
                "ledger": row.figures.ledger, "Stripe": row.figures.stripe,
                "invoiced": row.figures.invoiced,
                "why": "; ".join(dict.fromkeys(cause.text for cause in row.figures.causes)),
            }
            for row in rows
        ],
        PREVIEWED,
    )  # fmt: skip


def of_reconciliation(found: Reconciliation, path: str, seconds: float) -> dict[str, Any]:
    """The result of a month; the UI plots the figures over time."""
    verified = found.verified
    facts: dict[str, Any] = {
        "dagster/row_count": len(found.rows),
        "path": dg.MetadataValue.path(path),
        "with_a_difference": sum(any(row.figures.differences.values()) for row in found.rows),
        "without_a_cause": sum(not row.is_right for row in found.rows),
        "verified_share": verified.share,
        "cells": verified.cells,
        "seconds": round(seconds, 3),
        "differences": reconciled_rows(
            [row for row in found.rows if any(row.figures.differences.values())]
        ),
    }
    if verified.hours is not None:
        facts["hours_until_verified"] = round(verified.hours, 2)
    return facts


def _counts(counted: CountedDay) -> dict[str, Any]:
    return {
        "rows_read": counted.rows_read,
        "readings": counted.readings,
        "exact_duplicates": counted.exact_duplicates,
        "conflicting_duplicates": counted.conflicting_duplicates,
        "quarantined": counted.quarantined_rows,
        "counted_by": counted.method,
    }
