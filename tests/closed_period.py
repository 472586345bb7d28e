"""A billing period that is over and invoiced, with three days after it."""

from __future__ import annotations

from datetime import timedelta

from billing_pipeline.operations.day_inputs import unfinished_days
from billing_pipeline.rules.timestamps import day_start
from tests.support import SUM, World, yesterday

CLOSED = yesterday() + timedelta(days=1)
"""The last day of the period whose invoice is final."""

LATEST = CLOSED + timedelta(days=3)
"""The last day that is over."""


def close_period(world: World) -> World:
    """Acme's period ended three days ago and is invoiced; each of its days has ten readings."""
    world.make_meters()
    world.make_customers(["acme"])
    end = day_start(CLOSED) + 86_400
    days = [CLOSED + timedelta(days=n) for n in range(-2, 4)]
    for day in days:
        world.write_readings(day, {"acme": {"s": 10}})
    subscription = world.make_subscription(
        world.customers["acme"], backdate_start_date=str(end - 3 * 86_400)
    )
    world.end_period(subscription, end)
    world.advance(seconds=end + 600 - world.sandbox.clock())
    world.apply()
    world.bill(days[:3])
    world.advance(hours=2)
    world.apply()
    assert invoiced(world) == 30
    world.advance(days=3)
    world.bill(days[3:])
    assert unfinished_days(world.context()) == []
    return world


def invoiced(world: World) -> int:
    """What the invoice of the closed period bills."""
    [invoice] = world.sandbox.billing.invoices.values()
    quantities = world.sandbox.billing.quantities()
    return int(quantities[world.customers["acme"], SUM, invoice["period_start"]])
