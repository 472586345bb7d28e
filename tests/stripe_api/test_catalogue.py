"""The meters in Stripe and the guard of the ledger."""

from __future__ import annotations

import asyncio

import pytest

from billing_pipeline.errors import ConfigurationError, StripeUnreachable
from billing_pipeline.ledger.account import bound_account
from billing_pipeline.operations.context import Context, contact_stripe
from billing_pipeline.sandbox.server import make_sandbox, running
from billing_pipeline.stripe_api.catalogue import MeterCatalogue, ensure_meters, look_up
from tests.support import LAST, SUM, World, yesterday


def ensure(context: Context) -> tuple[MeterCatalogue, list[str]]:
    specs = context.settings.billing_meters
    return asyncio.run(ensure_meters(context.gateway, specs, context.ledger))


def ask(context: Context) -> MeterCatalogue:
    return asyncio.run(look_up(context.gateway, context.settings.billing_meters))


def test_ensure_makes_missing_meters_and_then_nothing(world: World) -> None:
    context = world.context()
    catalogue, made = ensure(context)
    assert made == [LAST, SUM]
    assert [(m.event_name, m.formula) for m in catalogue.meters] == [(LAST, "last"), (SUM, "sum")]
    assert ensure(context) == (catalogue, [])


def test_ensure_refuses_a_meter_that_differs_and_makes_nothing(world: World) -> None:
    world.make_meter(LAST, "sum")
    with pytest.raises(ConfigurationError, match="active_sensors has the formula sum"):
        ensure(world.context())
    assert len(world.sandbox.account.meters) == 1


def test_missing_and_inactive_meters_are_all_named_with_what_to_do(world: World) -> None:
    meter = world.make_meter(LAST, "last")
    world.sandbox.account.change_meter(meter, status="inactive")
    with pytest.raises(ConfigurationError) as failure:
        ask(world.context())
    assert "active_sensors is inactive" in str(failure.value)
    assert "no meter temperature_readings" in str(failure.value)
    assert "billing meters ensure" in str(failure.value)


def test_payload_keys_are_read_from_the_meter(world: World) -> None:
    world.make_meter(LAST, "last")
    world.sandbox.account.make_meter(
        {
            "event_name": SUM,
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
        "BILLING_METERS", '[{"event_name": "rows", "formula": "sum", "measure": "reading_volume"}]'
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
    contact_stripe(world.context())
    other = make_sandbox(account_id="acct_other")
    with running(other) as base:
        monkeypatch.setenv("STRIPE_API_BASE", base)
        context = world.context()
        with pytest.raises(ConfigurationError, match="acct_other"):
            ensure(context)
        assert other.account.meters == {}
        for name, formula in ((LAST, "last"), (SUM, "sum")):
            other.account.make_meter(
                {
                    "event_name": name,
                    "display_name": name,
                    "default_aggregation": {"formula": formula},
                }
            )
        with pytest.raises(ConfigurationError, match="acct_other"):
            contact_stripe(context)


def test_a_restricted_key_that_may_not_read_its_account_works(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.make_meters()
    contact_stripe(world.context())
    monkeypatch.setenv("STRIPE_SECRET_KEY", "rk_test_restricted")
    context = world.context()
    assert ask(context).account_id is None
    assert contact_stripe(context).unreachable is None
    bound = context.ledger.read(bound_account)
    assert bound is not None
    assert bound["account_id"] == "acct_sandbox"


def test_a_missing_answer_is_no_missing_meter(world: World) -> None:
    with world.unreachable(), pytest.raises(StripeUnreachable):
        ask(world.context())
