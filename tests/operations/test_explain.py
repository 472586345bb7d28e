"""An explanation leads from the invoice to the files, and names each broken link."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from billing_pipeline.errors import ConfigurationError
from billing_pipeline.operations.explain.day import explain_day
from billing_pipeline.operations.explain.page import write_page
from billing_pipeline.operations.explain.period import explain_period
from tests.closed_period import CLOSED
from tests.support import LAST, SUM, World

METERS = [LAST, SUM]


def broken(document: dict[str, Any]) -> list[str]:
    links = list(document.get("links", []))
    for each in (*document.get("lines", []), *document.get("days", [])):
        links += each["links"]
    return [link["what"] for link in links if link["holds"] is False]


def test_an_invoice_is_explained_down_to_its_files(closed: World) -> None:
    document = explain_period(closed.context(), "acme", "in_000001", METERS)
    assert broken(document) == []
    assert document["checked"]["hold"] > 40
    lines = {line["meter"]: line for line in document["lines"]}
    assert (lines[SUM]["invoiced"], lines[LAST]["invoiced"]) == (30, 1)
    assert [day["ledger"] for day in lines[SUM]["days"]] == [10, 10, 10]
    assert [day["day"] for day in document["days"]] == [
        (CLOSED + timedelta(days=n)).isoformat() for n in (-2, -1, 0)
    ]
    [event] = document["days"][0]["meters"][1]["events"]
    assert event["request_id"].startswith("req_")
    assert document["days"][0]["snapshot"]["files"][0]["sha256"]


@pytest.mark.parametrize("period", ["month", "day"])
def test_a_period_is_named_by_its_month_or_a_day_inside_it(closed: World, period: str) -> None:
    named = f"{CLOSED:%Y-%m}" if period == "month" else CLOSED.isoformat()
    document = explain_period(closed.context(), "acme", named, [SUM])
    assert "in_000001" in {line["invoice"] for line in document["lines"]}
    if period == "day":
        assert len(document["lines"]) == 1


@pytest.mark.parametrize("period", ["2026", "in_none", "yesterday", "2026-13"])
def test_a_name_that_is_no_period_is_refused(closed: World, period: str) -> None:
    with pytest.raises(ConfigurationError, match=r"period"):
        explain_period(closed.context(), "acme", period, METERS)


def test_an_unknown_organization_is_refused(closed: World) -> None:
    with pytest.raises(ConfigurationError, match="nothing is known of the organization 'ACME'"):
        explain_day(closed.context(), "ACME", CLOSED, METERS)
    with pytest.raises(ConfigurationError, match="nothing is known of the organization 'ACME'"):
        explain_period(closed.context(), "ACME", f"{CLOSED:%Y-%m}", METERS)


def test_a_file_that_is_not_as_it_was_counted_breaks_its_link(closed: World) -> None:
    file = closed.home / "readings" / f"reading_date={CLOSED}" / "readings.jsonl"
    content = file.read_text()
    file.write_text(content.replace('"value": 0', '"value": 9'))
    document = explain_day(closed.context(), "acme", CLOSED, METERS)
    assert broken(document) == ["readings.jsonl is as it was counted"]
    file.unlink()
    assert "readings.jsonl is as it was counted" in broken(
        explain_day(closed.context(), "acme", CLOSED, METERS)
    )


def test_a_ledger_that_somebody_changed_by_hand_breaks_its_links(closed: World) -> None:
    context = closed.context()
    with context.ledger.engine.begin() as connection:
        connection.execute(
            text("UPDATE meter_events SET value = 11 WHERE usage_day = :day AND event_name = :m"),
            {"day": CLOSED.isoformat(), "m": SUM},
        )
    document = explain_period(context, "acme", "in_000001", [SUM])
    assert "Stripe's figure is the ledger's" in broken(document)
    with context.ledger.engine.begin() as connection:
        connection.execute(text("UPDATE meter_events SET identifier = identifier || 'x'"))
    assert f"{SUM}: identifiers come from cell and revision" in broken(
        explain_day(context, "acme", CLOSED, [SUM])
    )


def test_a_snapshot_that_was_tampered_with_breaks_its_link(closed: World) -> None:
    here = closed.home / "snapshots"
    activity = here / f"usage_day={CLOSED}" / "sensor_activity.parquet"
    other = here / f"usage_day={CLOSED - timedelta(days=1)}" / "sensor_activity.parquet"
    activity.write_bytes(other.read_bytes())
    found = broken(explain_day(closed.context(), "acme", CLOSED, METERS))
    assert "the snapshot was taken from the present sensor activity" in found


def test_the_duplicates_that_were_removed_are_named(closed: World) -> None:
    day = CLOSED - timedelta(days=1)
    closed.write_readings(day, {"acme": {"s": 2}}, "again.jsonl")
    closed.bill([day])
    document = explain_day(closed.context(), "acme", day, METERS)
    assert broken(document) == []
    assert [(d["sensor_id"], d["recorded_at"][11:], d["rows"]) for d in document["duplicates"]] == [
        ("s", "00:00:00", 2),
        ("s", "00:01:00", 2),
    ]


def test_the_page_is_complete_and_takes_no_markup_from_ids(closed: World, tmp_path: Path) -> None:
    day = CLOSED - timedelta(days=1)
    odd = "<script>alert(1)</script>"
    closed.write_readings(day, {"acme": {"s": 10}, odd: {"<b>x": 1}}, "odd.jsonl")
    closed.bill([day])
    page = tmp_path / "page.html"
    write_page(page, explain_day(closed.context(), odd, day, METERS), "now")
    content = page.read_text()
    assert "<script" not in content
    assert "&lt;script&gt;" in content
    explained = explain_period(closed.context(), "acme", "in_000001", METERS)
    write_page(page, explained, "now")
    content = page.read_text()
    assert "the invoice bills 30" in content
    assert "req_" in content
    for outside in ("http://", "https://", "sk_test", "<script"):
        assert outside not in content
    with pytest.raises(ConfigurationError, match="cannot be written"):
        write_page(tmp_path / "none" / "page.html", explained, "now")
