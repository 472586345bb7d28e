"""SAYING IT: the only part that calls Stripe.

- `client`        the official SDK, made lazily, pinned, without telemetry
- `answers`       what each of Stripe's answers to a meter event means
- `budget`        how many of Stripe's figures may be read in a month
- `catalogue`     the meters in Stripe: looked up, checked, made
- `delivery`      from the ledger's planned events to accepted ones
- `objects`       reading objects and events that webhooks left open
- `summaries`     reading Stripe's own figures
- `invoices`      what an invoice bills, and Stripe's figure of a whole billing period
- `settlement`    deciding old ambiguous events by those figures
- `verification`  comparing those figures with the ledger
- `reporting`     a small Python API: state one organization's usage of one day
"""

from billing_pipeline.stripe_meters.budget import Reads
from billing_pipeline.stripe_meters.catalogue import (
    MeterCatalogue,
    ensure_meters,
    look_up,
)
from billing_pipeline.stripe_meters.client import StripeGateway
from billing_pipeline.stripe_meters.delivery import (
    DeliveryReport,
    DeliveryResult,
    deliver,
)
from billing_pipeline.stripe_meters.invoices import (
    PeriodQuestion,
    StripesFigures,
    ask_periods,
)
from billing_pipeline.stripe_meters.reporting import UsageReporter
from billing_pipeline.stripe_meters.retrying import StripeUnreachable
from billing_pipeline.stripe_meters.summaries import minutes_of
from billing_pipeline.stripe_meters.verification import VerificationReport, verify

__all__ = [
    "DeliveryReport",
    "DeliveryResult",
    "MeterCatalogue",
    "PeriodQuestion",
    "Reads",
    "StripeGateway",
    "StripeUnreachable",
    "StripesFigures",
    "UsageReporter",
    "VerificationReport",
    "ask_periods",
    "deliver",
    "ensure_meters",
    "look_up",
    "minutes_of",
    "verify",
]
