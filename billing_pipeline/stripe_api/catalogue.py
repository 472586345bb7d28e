"""The meters in Stripe: each must exist, be active, and have the expected formula.

A meter cannot be changed later, except for its display name. A meter that differs is
refused with advice; only missing meters are created.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import stripe

from billing_pipeline.errors import ConfigurationError
from billing_pipeline.ledger.account import guard
from billing_pipeline.ledger.ledger import Ledger
from billing_pipeline.rules.model import Meter, MeterSpec
from billing_pipeline.stripe_api.client import StripeGateway
from billing_pipeline.stripe_api.retrying import every_page, expect, reading
from billing_pipeline.stripe_facts import PAGE


@dataclass(frozen=True)
class MeterCatalogue:
    """The account of a key, and its meters that we use.

    `account_id` is None if the key may not read its account (a restricted key).
    """

    account_id: str | None
    livemode: bool
    meters: tuple[Meter, ...]


async def look_up(gateway: StripeGateway, specs: Sequence[MeterSpec]) -> MeterCatalogue:
    """Look the meters up before anything is sent.

    Raises ConfigurationError naming every meter that is missing, inactive or different, and
    StripeUnreachable if Stripe does not answer.
    """
    async with gateway.client() as client:
        listed = await _list(client)
        found, problems = [], []
        for spec in specs:
            meter, problem = _match(spec, listed)
            if meter is not None:
                found.append(meter)
            else:
                problems.append(str(problem))
        if problems:
            raise ConfigurationError("\n".join(problems))
        livemode = bool(listed[0].livemode) if listed else gateway.livemode
        return MeterCatalogue(await _account_id(client), livemode, tuple(found))


async def ensure_meters(
    gateway: StripeGateway, specs: Sequence[MeterSpec], ledger: Ledger
) -> tuple[MeterCatalogue, list[str]]:
    """Create the meters that are missing; returns the catalogue and the names of the new ones.

    Raises ConfigurationError for a meter that exists and differs, and for an account that the
    ledger does not belong to, before any is created.
    """
    async with gateway.client() as client:
        listed = await _list(client)
        ledger.read(guard, await _account_id(client), gateway.livemode, ())
        missing = [s for s in specs if not any(m.event_name == s.event_name for m in listed)]
        present = [spec for spec in specs if spec not in missing]
        problems = [problem for spec in present if (problem := _match(spec, listed)[1])]
        if problems:
            raise ConfigurationError("\n".join(problems))
        for spec in missing:
            await _create(client, spec)
    return await look_up(gateway, specs), [spec.event_name for spec in missing]


async def _create(client: stripe.StripeClient, spec: MeterSpec) -> None:
    await reading(
        lambda: client.v1.billing.meters.create_async(
            {
                "event_name": spec.event_name,
                "display_name": spec.event_name.replace("_", " ").capitalize(),
                "default_aggregation": {"formula": spec.formula.value},
                "customer_mapping": {"type": "by_id", "event_payload_key": "stripe_customer_id"},
                "value_settings": {"event_payload_key": "value"},
            },
            {"idempotency_key": f"billing-pipeline-meter-{spec.event_name}-{spec.formula}"},
        ),
        f"creating the meter {spec.event_name}",
    )


async def _list(client: stripe.StripeClient) -> list[Any]:
    async def every() -> list[Any]:
        page = await client.v1.billing.meters.list_async({"limit": PAGE})
        return await every_page(page, "billing.meter")

    try:
        return await reading(every, "listing the meters")
    except (stripe.InvalidRequestError, stripe.PermissionError) as error:
        raise ConfigurationError(
            f"Stripe does not let this key list billing meters: {error.user_message}. "
            "A restricted key needs to read meters and write meter events."
        ) from None


async def _account_id(client: stripe.StripeClient) -> str | None:
    async def current() -> Any:
        return expect(await client.v1.accounts.retrieve_current_async(), "account")

    try:
        account = await reading(current, "asking for the account")
    except (stripe.InvalidRequestError, stripe.PermissionError):
        return None  # a restricted key; the meters' ids then guard the ledger
    return str(account.id)


def _match(spec: MeterSpec, listed: Sequence[Any]) -> tuple[Meter | None, str | None]:
    """The matching meter, or the problem and what to do."""
    named = [meter for meter in listed if meter.event_name == spec.event_name]
    active = [meter for meter in named if meter.status == "active"]
    if not named:
        return None, (
            f"there is no meter {spec.event_name} in Stripe: run `billing meters ensure`, "
            f"or create one with the formula {spec.formula}"
        )
    if not active:
        return None, (
            f"the meter {spec.event_name} is inactive in Stripe: reactivate it; "
            "an inactive meter accepts nothing"
        )
    meter = active[0]
    formula = meter.default_aggregation.formula
    window = getattr(meter, "event_time_window", None)
    if formula != spec.formula:
        return None, (
            f"the meter {spec.event_name} has the formula {formula} in Stripe, but {spec.formula} "
            "is needed. A meter cannot be changed: name another one in BILLING_METERS."
        )
    if window == "hour":
        return None, (
            f"the meter {spec.event_name} keeps one value per hour (event_time_window=hour), but "
            "usage is reported per day. Stripe would bill the last event of each hour of a day. "
            "Use a meter without a window, or with event_time_window=day."
        )
    return (
        Meter(
            spec.event_name,
            spec.formula,
            spec.measure,
            window,
            meter.customer_mapping.event_payload_key,
            meter.value_settings.event_payload_key,
            meter.id,
            meter.updated,
        ),
        None,
    )
