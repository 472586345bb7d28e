"""The sandbox's state on disk: a crash at any moment leaves a state that can be read."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from billing_pipeline.sandbox.app import Sandbox
from billing_pipeline.sandbox.server import make_sandbox

START = datetime(2026, 1, 10, tzinfo=UTC)
PRICE: dict[str, Any] = {
    "currency": "usd",
    "unit_amount": "1",
    "recurring": {"interval": "day", "interval_count": "1"},
}


def opened(state: Path) -> Sandbox:
    return make_sandbox(state=state, now=START)


def test_a_line_that_a_crash_cut_short_is_dropped(tmp_path: Path) -> None:
    state = tmp_path / "stripe.jsonl"
    customers = [opened(state).account.make_customer({"name": name})["id"] for name in "ab"]
    content = state.read_bytes()
    state.write_bytes(content[:-20])
    again = opened(state)
    assert list(again.account.customers) == customers
    assert [event["type"] for event in again.account.outbox.events] == ["customer.created"]
    again.account.make_customer({"name": "c"})
    assert len(opened(state).account.customers) == 3


@pytest.mark.parametrize("kept", [0.1, 0.9])
def test_the_end_of_a_period_is_written_whole_or_not_at_all(tmp_path: Path, kept: float) -> None:
    state = tmp_path / "stripe.jsonl"
    sandbox = opened(state)
    item = {"price": sandbox.billing.make_price(PRICE)["id"]}
    customer = sandbox.account.make_customer({})["id"]
    sandbox.billing.subscribe({"customer": customer, "items": [item]})
    before = state.stat().st_size
    sandbox.clock.offset += 30 * 3600
    sandbox.tick()
    [invoice] = sandbox.billing.invoices.values()
    whole = state.read_bytes()
    state.write_bytes(whole[: before + int(kept * (len(whole) - before))])
    again = opened(state)
    assert not again.billing.invoices
    again.clock.offset += 30 * 3600
    again.tick()
    assert list(again.billing.invoices.values()) == [invoice]
    assert again.account.outbox.events == sandbox.account.outbox.events
