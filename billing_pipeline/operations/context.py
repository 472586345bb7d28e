"""The context of an operation: settings, database, usage, Stripe and a clock, opened once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self

from billing_pipeline.customers.directory import CustomerDirectory
from billing_pipeline.database import open_database
from billing_pipeline.errors import StripeUnreachable
from billing_pipeline.ledger.account import bind, known_meters
from billing_pipeline.ledger.ledger import Ledger
from billing_pipeline.rules.eligibility import Payers
from billing_pipeline.rules.model import Meter
from billing_pipeline.settings import Settings
from billing_pipeline.stripe_api.catalogue import look_up
from billing_pipeline.stripe_api.client import Clock, MeterAccess, StripeGateway
from billing_pipeline.stripe_events.inbox import Inbox
from billing_pipeline.usage.counted import CountedUsage, UsageSource
from billing_pipeline.usage.engine import Engine
from billing_pipeline.usage.sources.folders import Folder

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


def utc_now() -> datetime:
    """The clock of production."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class Actor:
    """Who acts, and why: kept with the run, and shown with everything that it reported."""

    who: str = ""
    reason: str = ""


NO_ACTOR = Actor()


@dataclass(frozen=True)
class Context:
    """What operations work with. `ledger.run` names the run in every change."""

    settings: Settings
    engine: Engine
    readings: Folder
    snapshots: Folder
    usage: UsageSource
    ledger: Ledger
    customers: CustomerDirectory
    inbox: Inbox
    gateway: StripeGateway
    clock: Clock

    @classmethod
    def open(cls, settings: Settings, run: str, clock: Clock = utc_now) -> Context:
        """Open the database (bringing its schema up to date); contacts nobody else.

        Raises ConfigurationError.
        """
        database = open_database(settings.billing_database_url.get_secret_value())
        engine = Engine(settings.memory_limit, clock, spark=settings.spark)
        readings = Folder(settings.billing_readings_uri)
        snapshots = Folder(settings.billing_snapshots_uri)
        return cls(
            settings,
            engine,
            readings,
            snapshots,
            CountedUsage(engine, readings, snapshots, settings.billing_active_window_days),
            Ledger(database, run),
            CustomerDirectory(database),
            Inbox(database),
            StripeGateway(settings),
            clock,
        )

    def close(self) -> None:
        """Give the database's connections back."""
        self.ledger.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def payers(self) -> Payers:
        """Who pays today, and what may be reported; the customers file counts as imported."""
        return self.customers.payers(
            self.settings.subscription_policy, self.settings.billing_customers_file
        )

    def access(self, meters: Sequence[Meter]) -> MeterAccess:
        """The ledger and the way to these meters."""
        return MeterAccess(self.gateway, self.ledger, meters, self.clock)

    def known_meters(self) -> list[Meter]:
        """The configured meters as last seen in Stripe."""
        return self.ledger.read(known_meters, self.settings.billing_meters)


@dataclass(frozen=True)
class Contact:
    """The meters to report to, and why Stripe could not be asked for them, if it could not."""

    meters: Sequence[Meter]
    unreachable: str | None = None


def contact_stripe(context: Context) -> Contact:
    """Look the meters up and bind the ledger; without an answer, the meters as last seen.

    First reports are the same for every meter that we accept, and corrections need a meter that
    was seen before. So planning without Stripe plans what planning with it would.
    Raises ConfigurationError for what must be fixed before anything is sent.
    """
    try:
        found = asyncio.run(look_up(context.gateway, context.settings.billing_meters))
    except StripeUnreachable as error:
        return Contact(context.known_meters(), str(error))
    now = context.clock()
    context.ledger.write(bind, found.account_id, found.livemode, found.meters, now)
    return Contact(found.meters)
