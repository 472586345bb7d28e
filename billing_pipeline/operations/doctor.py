"""`billing doctor`: is each part of the configuration usable?"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from billing_pipeline.errors import ConfigurationError, StripeUnreachable
from billing_pipeline.ledger.account import bound_account, guard
from billing_pipeline.operations.context import Context
from billing_pipeline.settings import Settings
from billing_pipeline.stripe_api.catalogue import look_up
from billing_pipeline.usage.spark import SparkUnavailable, spark_version


@dataclass(frozen=True)
class Check:
    """One finding. `exit_code` is what it contributes when it is not ok."""

    name: str
    ok: bool
    detail: str
    exit_code: int = 2


def examine(settings: Settings) -> list[Check]:
    """Check database, readings, customers, key and meters; changes nothing in Stripe."""
    try:
        context = Context.open(settings, "doctor")
    except ConfigurationError as error:
        return [Check("database", False, str(error))]
    with context:
        return _examine(context, settings)


def _examine(context: Context, settings: Settings) -> list[Check]:
    bound = context.ledger.read(bound_account)
    owner = "no Stripe account yet"
    if bound is not None:
        mode = "live" if bound["livemode"] else "test"
        owner = f"{bound['account_id'] or 'an account it may not read'}, {mode} mode"
    where = context.ledger.engine.url
    shown = where.render_as_string(hide_password=True)
    if where.get_backend_name() == "sqlite" and where.database:
        shown = str(Path(where.database).resolve())
    checks = [Check("database", True, f"{shown}, schema current; belongs to {owner}")]
    days = [name for name in context.readings.folders() if name.startswith("reading_date=")]
    found = "no reading_date=YYYY-MM-DD/ folder; set BILLING_READINGS_URI:"
    if days:
        found = f"{len(days)} days, {days[0][13:]} to {days[-1][13:]},"
    checks.append(
        Check("readings", bool(days), f"{found} under {settings.billing_readings_uri}", 1)
    )
    if settings.spark is not None:
        checks.append(_spark(settings, settings.spark))
    try:
        mapping = context.customers.mapping(settings.billing_customers_file)
        checks.append(Check("customers", bool(mapping), f"{len(mapping)} organizations", 1))
    except ConfigurationError as error:
        checks.append(Check("customers", False, str(error)))
    return [*checks, _stripe(context)]


def _spark(settings: Settings, remote: str) -> Check:
    where = settings.masked()["BILLING_SPARK_REMOTE"]
    try:
        return Check(
            "spark", True, f"{spark_version(remote, settings.memory_limit)} at {where} counts"
        )
    except SparkUnavailable as error:
        return Check("spark", False, str(error))


def _stripe(context: Context) -> Check:
    try:
        context.settings.require_key()
        catalogue = asyncio.run(look_up(context.gateway, context.settings.billing_meters))
        context.ledger.read(guard, catalogue.account_id, catalogue.livemode, catalogue.meters)
    except ConfigurationError as error:
        return Check("stripe", False, str(error))
    except StripeUnreachable as error:
        return Check("stripe", False, f"cannot be reached: {error}", 1)
    mode = "live" if catalogue.livemode else "test"
    return Check(
        "stripe",
        True,
        f"account {catalogue.account_id or '(not readable)'}, {mode} mode, "
        f"{len(catalogue.meters)} meters as expected",
    )
