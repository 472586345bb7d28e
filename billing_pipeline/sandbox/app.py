"""The HTTP side of the sandbox: Stripe's routes and objects, idempotency, faults.

`/_sandbox` shows what the sandbox has counted and moves its clock. Stripe has no such route.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlencode

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from billing_pipeline.sandbox.billing import Billing, public
from billing_pipeline.sandbox.faults import Faults
from billing_pipeline.sandbox.stripe_state import Account, StripeRefusal, integer
from billing_pipeline.sandbox.webhooks import Endpoint, WebhookDelivery

Handler = Callable[[Request, dict[str, Any]], Awaitable[Any]]

EVENT_PARAMS = {"event_name", "payload", "identifier", "timestamp", "expand"}
METER_PARAMS = {
    "event_name", "display_name", "default_aggregation", "customer_mapping", "value_settings",
    "event_time_window", "expand",
}  # fmt: skip
SUMMARY_PARAMS = {
    "customer", "start_time", "end_time", "value_grouping_window", "limit", "starting_after",
    "ending_before", "expand",
}  # fmt: skip
PRICE_PARAMS = {
    "currency", "unit_amount", "recurring", "product", "product_data", "metadata", "expand",
}  # fmt: skip
SUBSCRIPTION_PARAMS = {"customer", "items", "metadata", "backdate_start_date", "expand"}
SUBSCRIPTION_CHANGES = {"metadata", "cancel_at_period_end", "expand"}
CANCEL_PARAMS = {"invoice_now", "prorate", "expand"}
CHECKOUT_PARAMS = {
    "mode", "client_reference_id", "metadata", "line_items", "customer", "success_url", "expand",
}  # fmt: skip
CUSTOMER_PARAMS = {"name", "email", "description", "metadata", "expand"}
ADJUSTMENT_PARAMS = {"cancel", "event_name", "type", "expand"}
LIST_PARAMS = {"limit", "starting_after", "ending_before", "status", "email", "expand"}
THIN_EVENTS_PARAMS = {"created", "types", "limit", "page", "object_id"}
EXPAND = {"expand"}

TICK_SECONDS = 0.2


@dataclass
class Clock:
    """Unix seconds: real time plus `offset`."""

    real: Callable[[], float]
    offset: float = 0.0

    def __call__(self) -> float:
        """Now."""
        return self.real() + self.offset


class CutConnection(Response):
    """An answer that breaks off, so that the client does not learn the outcome."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Announce a body and end before it is complete; the server closes the connection."""
        headers = [(b"content-type", b"application/json"), (b"content-length", b"1000")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"{", "more_body": True})


@dataclass
class Sandbox:
    """The state of the application: account, faults, and counts of requests."""

    account: Account
    clock: Clock
    faults: Faults
    billing: Billing
    webhooks: WebhookDelivery
    seed: int = 0
    stored: dict[str, tuple[str, int, dict[str, Any]]] = field(default_factory=dict)
    """Answers by Idempotency-Key: hash of the request, status, body."""
    executing: set[str] = field(default_factory=set)
    """Idempotency-Keys of requests that are being executed."""
    lanes: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Number of requests that are being executed, by customer and meter."""
    seen: Counter[str] = field(default_factory=Counter)
    """Number of requests and faults by kind, for tests."""
    attempts: Counter[str] = field(default_factory=Counter)
    """Number of requests by identifier of their meter event."""
    bucket: list[float] = field(default_factory=lambda: [0.0, 0.0])
    """Level of the leaky bucket, and when it had that level."""
    request_numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def store_answer(self, key: str | None, answer: tuple[str, int, dict[str, Any]]) -> None:
        """Store an answer, to repeat it for the same Idempotency-Key."""
        if key is not None and not self.faults.forgets(self.seed, key):
            self.stored[key] = answer

    # Meter events ----------------------------------------------------------------------------

    async def post_event(self, request: Request, given: dict[str, Any]) -> Any:
        """POST /v1/billing/meter_events, with faults."""
        self.seen["meter_events"] += 1
        if "timestamp" not in given:
            self.seen["without_timestamp"] += 1
        payload = given.get("payload", {})
        lane = (str(payload.get("stripe_customer_id", payload)), str(given.get("event_name")))
        if self.lanes[lane]:
            self.seen["two_in_flight"] += 1
            raise StripeRefusal(
                409,
                "Only one concurrent call per customer and meter is allowed.",
                code="too_many_concurrent_requests",
            )
        self.lanes[lane] += 1
        try:
            return await self._count_event(given, request.headers.get("idempotency-key"))
        finally:
            self.lanes[lane] -= 1

    async def _count_event(self, given: dict[str, Any], key: str | None) -> Any:
        identifier = str(given.get("identifier"))
        self.attempts[identifier] += 1
        fault = self.faults.strike(self.seed, identifier, self.attempts[identifier])
        if fault:
            self.seen[fault] += 1
        if self.faults.latency:
            await asyncio.sleep(self.faults.latency)
        if fault == "slow":
            await asyncio.sleep(self.faults.slow_seconds)
        if fault == "rate_limit" or self._over_limit():
            raise StripeRefusal(
                429,
                "Request rate limit exceeded.",
                code="rate_limit",
                headers={"stripe-rate-limited-reason": "global-rate"},
            )
        if fault == "cut_before":
            return CutConnection()
        server_error = StripeRefusal(500, "Something went wrong on Stripe's end.", kind="api_error")
        if fault == "error_before":
            raise server_error
        event = self.account.check_event(given, late=bool(self.faults.late_checks))
        event.key = key
        if fault == "dropped":
            event.counted, event.problem = False, "meter_event_invalid_value"
        self.account.accept_event(event)
        if fault == "error_after":
            raise server_error
        answer = {
            "object": "billing.meter_event",
            "created": int(event.received),
            "event_name": event.event_name,
            "identifier": event.identifier,
            "livemode": False,
            "payload": given["payload"],
            "timestamp": event.timestamp,
        }
        return (answer, CutConnection()) if fault == "cut_after" else answer

    def _over_limit(self) -> bool:
        """Whether this request overflows a leaky bucket of a tenth of a second."""
        if not self.faults.limit:
            return False
        now = self.clock.real()
        level, last = self.bucket
        level = max(0.0, level - (now - last) * self.faults.limit)
        if level + 1 > max(1.0, self.faults.limit / 10):
            self.bucket[:] = [level, now]
            self.seen["over_limit"] += 1
            return True
        self.bucket[:] = [level + 1, now]
        return False

    async def post_adjustment(self, request: Request, given: dict[str, Any]) -> Any:
        """POST /v1/billing/meter_event_adjustments."""
        return self.account.cancel(given)

    # Meters ----------------------------------------------------------------------------------

    async def post_meter(self, request: Request, given: dict[str, Any]) -> Any:
        """POST /v1/billing/meters."""
        return self.account.make_meter(given)

    async def get_meters(self, request: Request, given: dict[str, Any]) -> Any:
        """GET /v1/billing/meters."""
        status = given.get("status")
        rows = [m for m in self.account.meters.values() if status in (None, m["status"])]
        return _page(list(reversed(rows)), given, "/v1/billing/meters")

    async def get_meter(self, request: Request, given: dict[str, Any]) -> Any:
        """GET /v1/billing/meters/{id}."""
        return self.account.meter(request.path_params["id"])

    async def update_meter(self, request: Request, given: dict[str, Any]) -> Any:
        """POST /v1/billing/meters/{id}: only the display name can change."""
        changes = {"display_name": given["display_name"]} if "display_name" in given else {}
        return self.account.change_meter(request.path_params["id"], **changes)

    async def deactivate(self, request: Request, given: dict[str, Any]) -> Any:
        """POST /v1/billing/meters/{id}/deactivate."""
        return self.account.change_meter(request.path_params["id"], status="inactive")

    async def reactivate(self, request: Request, given: dict[str, Any]) -> Any:
        """POST /v1/billing/meters/{id}/reactivate."""
        return self.account.change_meter(request.path_params["id"], status="active")

    async def get_summaries(self, request: Request, given: dict[str, Any]) -> Any:
        """GET /v1/billing/meters/{id}/event_summaries."""
        self.seen["summaries"] += 1
        for needed in ("customer", "start_time", "end_time"):
            if needed not in given:
                raise StripeRefusal(400, f"Missing required param: {needed}.", param=needed)
        meter_id = request.path_params["id"]
        window = given.get("value_grouping_window")
        if window not in (None, "hour", "day"):
            raise StripeRefusal(
                400, f"Invalid value_grouping_window: {window}", param="value_grouping_window"
            )
        self.account.lag = self.faults.lag
        rows = self.account.summaries(
            meter_id,
            given["customer"],
            integer(given["start_time"], "start_time"),
            integer(given["end_time"], "end_time"),
            window,
        )
        return _page(rows, given, f"/v1/billing/meters/{meter_id}/event_summaries")

    # Account and customers -------------------------------------------------------------------

    async def get_account(self, request: Request, given: dict[str, Any]) -> Any:
        """GET /v1/account; refused for a restricted key."""
        if "Bearer rk_" in request.headers["authorization"]:
            raise StripeRefusal(403, "The provided key does not have the required permissions.")
        return {"id": self.account.account_id, "object": "account"}

    async def post_customer(self, request: Request, given: dict[str, Any]) -> Any:
        """POST /v1/customers."""
        return self.account.make_customer(given)

    async def get_customers(self, request: Request, given: dict[str, Any]) -> Any:
        """GET /v1/customers."""
        rows = list(reversed(self.account.customers.values()))
        return _page(rows, given, "/v1/customers")

    async def get_customer(self, request: Request, given: dict[str, Any]) -> Any:
        """GET /v1/customers/{id}."""
        return self.account.customer(request.path_params["id"])

    async def delete_customer(self, request: Request, given: dict[str, Any]) -> Any:
        """DELETE /v1/customers/{id}."""
        return self.account.delete_customer(request.path_params["id"])

    # Subscriptions, invoices, checkout -------------------------------------------------------

    async def post_price(self, request: Request, given: dict[str, Any]) -> Any:
        """POST /v1/prices."""
        return self.billing.make_price(given)

    async def post_subscription(self, request: Request, given: dict[str, Any]) -> Any:
        """POST /v1/subscriptions."""
        return self.billing.subscribe(given)

    async def get_subscription(self, request: Request, given: dict[str, Any]) -> Any:
        """GET /v1/subscriptions/{id}."""
        return self.billing.subscription(request.path_params["id"])

    async def update_subscription(self, request: Request, given: dict[str, Any]) -> Any:
        """POST /v1/subscriptions/{id}."""
        return self.billing.update_subscription(request.path_params["id"], given)

    async def cancel_subscription(self, request: Request, given: dict[str, Any]) -> Any:
        """DELETE /v1/subscriptions/{id}."""
        return self.billing.cancel(request.path_params["id"], given)

    async def get_invoice(self, request: Request, given: dict[str, Any]) -> Any:
        """GET /v1/invoices/{id}."""
        return self.billing.invoice(request.path_params["id"])

    async def get_invoices(self, request: Request, given: dict[str, Any]) -> Any:
        """GET /v1/invoices."""
        rows = [
            invoice
            for invoice in reversed(self.billing.invoices.values())
            if given.get("customer") in (None, invoice["customer"])
        ]
        return _page(rows, given, "/v1/invoices")

    async def get_lines(self, request: Request, given: dict[str, Any]) -> Any:
        """GET /v1/invoices/{id}/lines."""
        id = request.path_params["id"]
        return _page(self.billing.invoice(id)["lines"]["data"], given, f"/v1/invoices/{id}/lines")

    async def get_price(self, request: Request, given: dict[str, Any]) -> Any:
        """GET /v1/prices/{id}."""
        return self.billing.price(request.path_params["id"])

    async def finalize_invoice(self, request: Request, given: dict[str, Any]) -> Any:
        """POST /v1/invoices/{id}/finalize."""
        return self.billing.finalize(request.path_params["id"])

    async def void_invoice(self, request: Request, given: dict[str, Any]) -> Any:
        """POST /v1/invoices/{id}/void."""
        return self.billing.change_invoice(request.path_params["id"], "void", "invoice.voided")

    async def post_checkout(self, request: Request, given: dict[str, Any]) -> Any:
        """POST /v1/checkout/sessions."""
        return public(self.billing.open_checkout(given))

    # Events ----------------------------------------------------------------------------------

    async def get_events(self, request: Request, given: dict[str, Any]) -> Any:
        """GET /v1/events: snapshot events, the newest first."""
        since = integer(given.get("created", {}).get("gte", 0), "created[gte]")
        types = set(given.get("types", {}).values())
        rows = [
            event
            for event in reversed(self.account.outbox.events)
            if event["object"] == "event"
            and event["created"] >= since
            and (not types or event["type"] in types)
        ]
        return _page(rows, given, "/v1/events")

    async def get_thin_events(self, request: Request, given: dict[str, Any]) -> Any:
        """GET /v2/core/events: thin events, the newest first; each page has a URL."""
        since = given.get("created", {}).get("gte", "")
        types = set(given.get("types", {}).values())
        rows = [
            event
            for event in reversed(self.account.outbox.events)
            if event["object"] == "v2.core.event"
            and event["created"] >= since
            and (not types or event["type"] in types)
        ]
        first, limit = int(given.get("page", "0")), int(given.get("limit", "20"))
        following = None
        if first + limit < len(rows):
            query = {**_flat(given), "page": str(first + limit)}
            following = f"/v2/core/events?{urlencode(query)}"
        return {
            "data": rows[first : first + limit],
            "next_page_url": following,
            "previous_page_url": None,
        }

    async def get_thin_event(self, request: Request, given: dict[str, Any]) -> Any:
        """GET /v2/core/events/{id}."""
        id = request.path_params["id"]
        for event in self.account.outbox.events:
            if event["id"] == id and event["object"] == "v2.core.event":
                return event
        raise StripeRefusal(404, f"No such event: '{id}'", code="not_found")

    # The sandbox itself ----------------------------------------------------------------------

    async def inspect(self, request: Request) -> Response:
        """GET /_sandbox: totals by customer, meter and day, and counts of requests."""
        return JSONResponse(
            {
                "totals": list(self.account.totals()),
                "seen": dict(self.seen),
                "events": len(self.account.events),
                "webhooks": {
                    "delivered": len(self.webhooks.delivered),
                    "idle": self.webhooks.idle,
                    "answers": dict(self.webhooks.answers),
                },
                "invoices": [
                    {"customer": customer, "meter": meter, "period_start": start, "quantity": n}
                    for (customer, meter, start), n in sorted(self.billing.quantities().items())
                ],
                "now": self.clock(),
            }
        )

    async def change(self, request: Request) -> Response:
        """POST /_sandbox: change the clock, the faults, the webhook endpoint or an object.

        `advance` is in seconds. `complete_checkout` and `status` (of a `subscription`) do what
        people do on Stripe's pages.
        """
        given = await request.json()
        self.clock.offset += float(given.get("advance", 0))
        self.tick()
        if "faults" in given:
            self.faults = Faults.parse(given["faults"])
        if "webhook" in given:
            self.webhooks.endpoint = Endpoint(**given["webhook"])
        done: dict[str, Any] = {"now": self.clock()}
        if "complete_checkout" in given:
            done["checkout"] = public(self.billing.complete_checkout(given["complete_checkout"]))
        if "status" in given:
            done["subscription"] = self.billing.change_subscription(
                given["subscription"], "customer.subscription.updated", status=given["status"]
            )
        return JSONResponse(done)

    def tick(self) -> None:
        """Do what is due by the clock: billing periods, invoices, error reports."""
        with self.account.transaction():
            self.billing.tick()
            self.account.report_errors(self.faults.report_after)

    async def run_in_background(self) -> None:
        """Advance the billing and deliver webhooks, until cancelled."""
        delivery = asyncio.ensure_future(self.webhooks.deliver_forever())
        try:
            while not delivery.done():
                self.tick()
                await asyncio.sleep(TICK_SECONDS)
            delivery.result()
        finally:
            delivery.cancel()


def make_app(sandbox: Sandbox) -> Starlette:
    """The ASGI application of a sandbox."""

    def stripe_route(method: str, path: str, handler: Handler, params: set[str]) -> Route:
        async def endpoint(request: Request) -> Response:
            return await _answer(sandbox, request, handler, params)

        return Route(path, endpoint, methods=[method])

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        background = asyncio.ensure_future(sandbox.run_in_background())
        yield
        background.cancel()

    return Starlette(
        lifespan=lifespan,
        routes=[
            *(stripe_route(*row) for row in _stripe_routes(sandbox)),
            Route("/_sandbox", sandbox.inspect, methods=["GET"]),
            Route("/_sandbox", sandbox.change, methods=["POST"]),
            Route("/{path:path}", _not_found, methods=["GET", "POST", "DELETE"]),
        ],
    )


def _stripe_routes(sandbox: Sandbox) -> list[tuple[str, str, Handler, set[str]]]:
    """Method, path, handler and allowed parameters of each route of Stripe's."""
    meters, meter = "/v1/billing/meters", "/v1/billing/meters/{id}"
    subscriptions, subscription = "/v1/subscriptions", "/v1/subscriptions/{id}"
    invoices, invoice = "/v1/invoices", "/v1/invoices/{id}"
    customers, customer = "/v1/customers", "/v1/customers/{id}"
    adjustments = "/v1/billing/meter_event_adjustments"
    return [
        ("GET", "/v1/account", sandbox.get_account, EXPAND),
        ("POST", "/v1/billing/meter_events", sandbox.post_event, EVENT_PARAMS),
        ("POST", adjustments, sandbox.post_adjustment, ADJUSTMENT_PARAMS),
        ("POST", meters, sandbox.post_meter, METER_PARAMS),
        ("GET", meters, sandbox.get_meters, LIST_PARAMS),
        ("POST", f"{meter}/deactivate", sandbox.deactivate, EXPAND),
        ("POST", f"{meter}/reactivate", sandbox.reactivate, EXPAND),
        ("GET", f"{meter}/event_summaries", sandbox.get_summaries, SUMMARY_PARAMS),
        ("GET", meter, sandbox.get_meter, EXPAND),
        ("POST", meter, sandbox.update_meter, {"display_name", "expand"}),
        ("POST", customers, sandbox.post_customer, CUSTOMER_PARAMS),
        ("GET", customers, sandbox.get_customers, LIST_PARAMS),
        ("GET", customer, sandbox.get_customer, EXPAND),
        ("DELETE", customer, sandbox.delete_customer, set()),
        ("POST", "/v1/prices", sandbox.post_price, PRICE_PARAMS),
        ("GET", "/v1/prices/{id}", sandbox.get_price, EXPAND),
        ("POST", subscriptions, sandbox.post_subscription, SUBSCRIPTION_PARAMS),
        ("GET", subscription, sandbox.get_subscription, EXPAND),
        ("POST", subscription, sandbox.update_subscription, SUBSCRIPTION_CHANGES),
        ("DELETE", subscription, sandbox.cancel_subscription, CANCEL_PARAMS),
        ("GET", invoices, sandbox.get_invoices, LIST_PARAMS | {"customer"}),
        ("GET", invoice, sandbox.get_invoice, EXPAND),
        ("GET", f"{invoice}/lines", sandbox.get_lines, LIST_PARAMS),
        ("POST", f"{invoice}/finalize", sandbox.finalize_invoice, EXPAND),
        ("POST", f"{invoice}/void", sandbox.void_invoice, EXPAND),
        ("POST", "/v1/checkout/sessions", sandbox.post_checkout, CHECKOUT_PARAMS),
        ("GET", "/v1/events", sandbox.get_events, LIST_PARAMS | {"created", "type", "types"}),
        ("GET", "/v2/core/events", sandbox.get_thin_events, THIN_EVENTS_PARAMS),
        ("GET", "/v2/core/events/{id}", sandbox.get_thin_event, {"include"}),
    ]


async def _answer(
    sandbox: Sandbox, request: Request, handler: Handler, params: set[str]
) -> Response:
    """Answer a request to Stripe: authentication, form parsing, idempotency, the handler."""
    headers = {"request-id": f"req_{next(sandbox.request_numbers):014d}"}
    body = await request.body()
    key = request.headers.get("idempotency-key") if request.method == "POST" else None
    content = hashlib.sha256(request.url.path.encode() + b"\0" + body).hexdigest()
    executed = False
    try:
        _authenticate(request)
        sandbox.tick()
        in_body = request.method == "POST"
        given = parse_form(body.decode() if in_body else request.url.query)
        unknown = given.keys() - params
        if unknown:
            name = sorted(unknown)[0]
            raise StripeRefusal(
                400, f"Received unknown parameter: {name}", code="parameter_unknown", param=name
            )
        if key is not None:
            if key in sandbox.executing:
                raise StripeRefusal(
                    409,
                    "Another request with this Idempotency-Key is being executed.",
                    code="idempotency_key_in_use",
                )
            if key in sandbox.stored:
                earlier, status, answer = sandbox.stored[key]
                if earlier != content:
                    raise StripeRefusal(
                        400,
                        "Keys for idempotent requests can only be used with the same parameters "
                        "they were first used with.",
                        kind="idempotency_error",
                    )
                sandbox.seen["replayed"] += 1
                return JSONResponse(answer, status, {**headers, "idempotent-replayed": "true"})
            sandbox.executing.add(key)
        executed = True
        try:
            answered = await handler(request, given)
        finally:
            sandbox.executing.discard(key or "")
        if isinstance(answered, Response):
            return answered
        answer, response = answered if isinstance(answered, tuple) else (answered, None)
        sandbox.store_answer(key, (content, 200, answer))
        return response or JSONResponse(answer, 200, headers)
    except StripeRefusal as refusal:
        answer = {"error": refusal.error}
        # Answers of executed requests are stored, a 500 too; those refused before are not.
        if executed and refusal.status not in (409, 429):
            sandbox.store_answer(key, (content, refusal.status, answer))
        return JSONResponse(answer, refusal.status, {**headers, **refusal.headers})


def _authenticate(request: Request) -> None:
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme == "Basic":  # as curl -u sends it
        key = base64.b64decode(key).decode("utf-8", "replace").rstrip(":")
    if not key.startswith(("sk_test_", "rk_test_")):
        raise StripeRefusal(
            401, "Invalid API Key provided: the sandbox accepts only test keys (sk_test_…)."
        )


async def _not_found(request: Request) -> Response:
    message = f"Unrecognized request URL ({request.method}: {request.url.path})."
    error = {"type": "invalid_request_error", "message": message}
    return JSONResponse({"error": error}, 404)


def parse_form(text: str) -> dict[str, Any]:
    """Form fields; names with brackets become nested objects.

    >>> parse_form("a=1&p[x]=2")
    {'a': '1', 'p': {'x': '2'}}
    """
    parsed: dict[str, Any] = {}
    for name, value in parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text)):
        first, *rest = name.replace("]", "").split("[")
        where = parsed
        for inner in rest:
            where = where.setdefault(first, {})
            first = inner
        where[first] = value
    return parsed


def _flat(given: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """The inverse of `parse_form`."""
    flat: dict[str, str] = {}
    for name, value in given.items():
        inside = f"{prefix}[{name}]" if prefix else name
        flat |= _flat(value, inside) if isinstance(value, dict) else {inside: value}
    return flat


def _page(rows: list[dict[str, Any]], given: dict[str, Any], url: str) -> dict[str, Any]:
    limit = integer(given.get("limit", "10"), "limit")
    if not 1 <= limit <= 100:
        raise StripeRefusal(400, "limit must lie between 1 and 100", param="limit")
    ids = [row["id"] for row in rows]
    after = given.get("starting_after")
    if after is not None:
        if after not in ids:
            raise StripeRefusal(400, f"No such object: '{after}'", param="starting_after")
        rows = rows[ids.index(after) + 1 :]
    return {
        "object": "list",
        "data": json.loads(json.dumps(rows[:limit])),
        "has_more": len(rows) > limit,
        "url": url,
    }
