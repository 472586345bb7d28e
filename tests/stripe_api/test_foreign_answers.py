"""Answers that are not Stripe's: a real proxy in front of the sandbox, over HTTP, with the SDK.

The proxy lets each request through and then answers with a page of its own, which is the worst that
can happen to a meter event: Stripe has counted it, and nobody says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from datetime import date
from typing import Any

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from billing_pipeline.errors import StripeUnreachable
from billing_pipeline.operations.bill import report_days
from billing_pipeline.sandbox.app import make_app
from billing_pipeline.sandbox.faults import Faults
from billing_pipeline.sandbox.server import running
from billing_pipeline.stripe_api import delivery, retrying
from billing_pipeline.stripe_api.client import ForeignAnswer, check_answer
from tests.support import LAST, SUM, World, yesterday

EVENTS, SUMMARIES, METERS = "/v1/billing/meter_events", "event_summaries", "/v1/billing/meters"

PAGES = {
    "html": b"<html><h1>Request Timeout</h1></html>",
    "empty": b"",
    "not utf-8": b"\xff\xfe",
    "null": b"null",
    "text": b'"no"',
    "array": b"[]",
    "another API's error": b'{"error": "invalid_request", "message": "no"}',
    "an error without a type": b'{"error": {"message": "Request timed out", "code": 408}}',
    "an error of another type": b'{"error": {"type": "proxy_error", "message": "no"}}',
}

NOT_THE_EVENT = {
    "an empty object": b"{}",
    "another object": b'{"object": "charge", "id": "ch_1"}',
    "another event": b'{"object": "billing.meter_event", "identifier": "other", "payload": {}}',
}

STATUSES = [200, 302, 400, 401, 403, 404, 408, 409, 413, 429, 500, 502]


class Proxy:
    """Answers requests whose path contains `path` with a page, once Stripe has executed them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.path: str | None = None
        self.status = 200
        self.page = b""
        self.answered = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self.path or self.path not in scope["path"]:
            await self._app(scope, receive, send)
            return

        async def swallow(message: MutableMapping[str, Any]) -> None:
            pass

        await self._app(scope, receive, swallow)
        self.answered += 1
        headers = [(b"content-type", b"text/html"), (b"location", b"/elsewhere")]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.page})


@pytest.fixture
def proxy(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy between the pipeline and Stripe, whose summaries lag: only answers can tell."""
    monkeypatch.setattr(retrying, "FIRST_DELAY", 0.001)
    monkeypatch.setattr(delivery, "MAX_ATTEMPTS", 2)
    world.make_meters()
    world.make_customers(["acme"])
    world.sandbox.faults = Faults.parse("lag=3600")
    proxy = Proxy(make_app(world.sandbox))
    with running(world.sandbox, proxy) as base:
        monkeypatch.setenv("STRIPE_API_BASE", base)
        yield proxy


@contextmanager
def answering(proxy: Proxy, path: str, status: int, page: bytes) -> Iterator[None]:
    proxy.path, proxy.status, proxy.page = path, status, page
    yield
    proxy.path = None


def bill_5_readings(world: World) -> date:
    day = yesterday()
    world.write_readings(day, {"acme": {"a": 3, "b": 2}})
    report_days(world.snapshot(day), [day])
    return day


def then_a_late_reading_comes(world: World, day: date) -> dict[str, int]:
    """One more reading after the allowance for the lag of Stripe's summaries; what Stripe bills."""
    world.advance(hours=25)
    world.write_readings(day, {"acme": {"c": 1}}, name="late.jsonl")
    world.bill([day])  # finds out what Stripe has
    world.bill([day])
    return {meter: value for (_, meter, _), value in world.billed().items()}


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize(
    "page", [PAGES["html"], PAGES["an error without a type"]], ids=["", "json"]
)
def test_usage_that_stripe_counted_behind_a_proxys_page_is_billed_once(
    world: World, proxy: Proxy, status: int, page: bytes
) -> None:
    with answering(proxy, EVENTS, status, page):
        day = bill_5_readings(world)
    assert proxy.answered >= 2
    assert world.states(day) == {"ambiguous": 2}
    assert then_a_late_reading_comes(world, day) == {SUM: 6, LAST: 3}


@pytest.mark.parametrize("status", [200, 408])
@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_no_page_is_taken_for_stripes_word(
    world: World, proxy: Proxy, status: int, page: bytes
) -> None:
    with answering(proxy, EVENTS, status, page):
        day = bill_5_readings(world)
    assert world.states(day) == {"ambiguous": 2}


@pytest.mark.parametrize("page", NOT_THE_EVENT.values(), ids=NOT_THE_EVENT)
def test_only_the_event_itself_is_an_acceptance(world: World, proxy: Proxy, page: bytes) -> None:
    with answering(proxy, EVENTS, 200, page):
        day = bill_5_readings(world)
    assert world.states(day) == {"ambiguous": 2}


def test_a_refusal_of_stripes_is_one(world: World, proxy: Proxy) -> None:
    refusal = {"error": {"type": "invalid_request_error", "message": "no", "code": "no_meter"}}
    with answering(proxy, EVENTS, 400, json.dumps(refusal).encode()):
        day = bill_5_readings(world)
    assert world.states(day) == {"rejected": 2}


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_a_page_is_not_of_stripes_shape_whatever_its_status(status: int, page: bytes) -> None:
    if status == 200 and page.startswith(b"{"):  # who asked for an object looks at its kind
        check_answer("https://api.stripe.com/v1/billing/meters", status, page)
        return
    with pytest.raises(ForeignAnswer, match="proxies"):
        check_answer("https://api.stripe.com/v1/billing/meters", status, page)


@pytest.mark.parametrize("page", [*PAGES.values(), *NOT_THE_EVENT.values()])
def test_readers_say_that_stripe_cannot_be_read(world: World, proxy: Proxy, page: bytes) -> None:
    """Meters stand for each list: the readers share `every_page`."""
    with answering(proxy, METERS, 200, page), pytest.raises(StripeUnreachable, match="proxies"):
        world.make_meters()


@pytest.mark.parametrize("status", [200, 302, 404])
@pytest.mark.parametrize("page", [PAGES["html"], PAGES["null"], NOT_THE_EVENT["an empty object"]])
def test_a_page_instead_of_a_summary_verifies_nothing(
    world: World, proxy: Proxy, status: int, page: bytes
) -> None:
    day = bill_5_readings(world)
    world.advance(hours=25)
    with answering(proxy, SUMMARIES, status, page):
        report = world.verify([day])
    assert (report.agreed, report.mismatched) == (0, [])
    assert any("proxies" in why for why in report.unread)
    assert world.states(day) == {"accepted": 2}
    world.verify([day])
    assert world.states(day) == {"verified": 2}


@pytest.mark.parametrize("status", [200, 302, 404])
@pytest.mark.parametrize("path", ["/v1/account", METERS])
def test_a_page_instead_of_the_account_or_the_meters_stops_a_run(
    world: World, proxy: Proxy, path: str, status: int
) -> None:
    day = bill_5_readings(world)
    with answering(proxy, path, status, PAGES["html"]):
        assert "STRIPE_API_BASE" in str(world.bill([day]).stopped)


@pytest.mark.parametrize("with_data", [True, False])
def test_a_list_that_has_more_for_ever_ends(
    world: World, proxy: Proxy, with_data: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrying, "MOST_PAGES", 3)
    monkeypatch.setattr(retrying, "READ_ATTEMPTS", 1)
    meters = list(world.sandbox.account.meters.values()) if with_data else []
    page = {"object": "list", "data": meters, "has_more": True, "url": METERS}
    with answering(proxy, METERS, 200, json.dumps(page).encode()), pytest.raises(StripeUnreachable):
        world.make_meters()
    assert proxy.answered == (4 if with_data else 1)  # the first, and three more
