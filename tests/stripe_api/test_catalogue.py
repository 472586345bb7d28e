"""The meters in Stripe and the guard of the ledger."""

from __future__ import annotations

import asyncio

import pytest

from billing_pipeline.errors import ConfigurationError, StripeUnreachable
from billing_pipeline.ledger.account import bound_account
from billing_pipeline.sandbox.server import make_sandbox, running
from billing_pipeline.stripe_api.catalogue import (
    ensure_meters,
    look_up,
)
from tests.support import World, yesterday


def test_ensure_makes_what_is_missing_and_then_nothing(world: World) -> None:
    context = world.context()
    specs = context.settings.billing_meters
    catalogue, made = asyncio.run(ensure_meters(context.gateway, specs, context.ledger))
    assert made == ["active_sensors", "temperature_readings"]
    assert [(m.event_name, m.formula) for m in catalogue.meters] == [
        ("active_sensors", "last"),
        ("temperature_readings", "sum"),
    ]
    assert asyncio.run(ensure_meters(context.gateway, specs, context.ledger)) == (catalogue, [])


def test_ensure_refuses_what_differs_and_makes_nothing_then(world: World) -> None:
    world.make_meter("active_sensors", "sum")
    context = world.context()
    with pytest.raises(ConfigurationError, match="active_sensors has the formula sum"):
        asyncio.run(ensure_meters(context.gateway, context.settings.billing_meters, context.ledger))
    assert len(world.sandbox.account.meters) == 1


def test_missing_and_inactive_meters_are_all_named_with_what_to_do(world: World) -> None:
    meter = world.make_meter("active_sensors", "last")
    world.sandbox.account.change_meter(meter, status="inactive")
    context = world.context()
    with pytest.raises(ConfigurationError) as failure:
        asyncio.run(look_up(context.gateway, context.settings.billing_meters))
    assert "active_sensors is inactive" in str(failure.value)
    assert "no meter temperature_readings" in str(failure.value)
    assert "billing meters ensure" in str(failure.value)


def test_payload_keys_are_read_from_the_meter(world: World) -> None:
    world.make_meter("active_sensors", "last")
    world.sandbox.account.make_meter(
        {
            "event_name": "temperature_readings",
            "display_name": "t",
            "default_aggregation": {"formula": "sum"},
            "customer_mapping": {"type": "by_id", "event_payload_key": "who"},
            "value_settings": {"event_payload_key": "how_many"},
        }
    )
    world.make_customers(["a"])
    usage = {yesterday(): {"a": {"s": 4}}}
    world.write_readings(yesterday(), usage[yesterday()])
    world.bill([yesterday()])
    assert world.billed() == world.due(usage)


def test_names_and_mapping_are_configurable(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "BILLING_METERS",
        '[{"event_name": "rows", "formula": "sum", "measure": "reading_volume"}]',
    )
    world.make_meters()
    world.make_customers(["a"])
    world.write_readings(yesterday(), {"a": {"s": 4}})
    world.bill([yesterday()])
    assert world.billed() == {(world.customers["a"], "rows", yesterday()): 4}


def test_another_account_is_refused_before_anything_is_sent(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.make_meters()
    contact(world.context())
    other = make_sandbox(account_id="acct_other")
    with running(other) as base:
        monkeypatch.setenv("STRIPE_API_BASE", base)
        context = world.context()
        with pytest.raises(ConfigurationError, match="acct_other"):
            asyncio.run(
                ensure_meters(context.gateway, context.settings.billing_meters, context.ledger)
            )
        assert other.account.meters == {}
        for name, formula in (("active_sensors", "last"), ("temperature_readings", "sum")):
            other.account.make_meter(
                {
                    "event_name": name,
                    "display_name": name,
                    "default_aggregation": {"formula": formula},
                }
            )
        with pytest.raises(ConfigurationError, match="acct_other"):
            contact(context)


def test_a_restricted_key_that_may_not_read_its_account_works(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.make_meters()
    contact(world.context())
    monkeypatch.setenv("STRIPE_SECRET_KEY", "rk_test_restricted")
    context = world.context()
    assert asyncio.run(look_up(context.gateway, context.settings.billing_meters)).account_id is None
    assert contact(context).unreachable is None
    bound = context.ledger.read(bound_account)
    assert bound is not None
    assert bound["account_id"] == "acct_sandbox"


def test_no_answer_is_neither_missing_nor_wrong(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRIPE_API_BASE", "http://127.0.0.1:9")
    context = world.context()
    with pytest.raises(StripeUnreachable):
        asyncio.run(look_up(context.gateway, context.settings.billing_meters))
