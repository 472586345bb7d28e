"""Every number and rule that is Stripe's: what it is, where it comes from, and how sure we are.

Sources: [spec] Stripe's API specification; [docs] its documentation; [sdk] the Python SDK, read and
run; [seen] public reports; [open] documented nowhere, so that the worse case is assumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Literal

API_VERSION = "2025-12-15.clover"
"""The API version that is pinned for requests and webhooks. The SDK's own is newer. [sdk]"""

# Meter events ---------------------------------------------------------------------------------

OLDEST_ACCEPTED = timedelta(days=35)
"""Events with older timestamps are refused: "more than 35 days in past". [spec, seen]"""

OLDEST_REPORTED = timedelta(days=34)
"""Ours: one day less, so that clocks and slow runs cannot turn a report into a refusal."""

MOST_AHEAD = timedelta(minutes=5)
"""Events with timestamps further ahead are refused. [spec]"""

CLOCKS_APART = MOST_AHEAD
"""Ours: how far our clock and Stripe's may differ. Stripe allows for as much itself."""

LARGEST_VALUE = 10**15 - 1
"""15 significant digits are safe everywhere (meter_event_value_too_many_digits). [spec]"""

IDENTIFIER_KNOWN_FOR = timedelta(hours=24)
"""An identifier is unique for "at least 24 hours"; later it may be counted again. [spec]"""

RESEND_WINDOW = timedelta(hours=23)
"""Ours: an event may be sent again under its identifier for an hour less."""

CUSTOMER_NOT_FOUND = "meter_event_customer_not_found"
"""Error code of usage for a customer that does not exist. Reported at once or later. [seen]"""

METER_INACTIVE_CODES = frozenset({"archived_meter", "no_meter"})
"""Error codes of a meter that is inactive. [spec]"""

ERROR_TYPES = frozenset(
    {
        "api_error",
        "authentication_error",
        "card_error",
        "idempotency_error",
        "invalid_request_error",
        "permission_error",
        "rate_limit_error",
    }
)
"""Types of Stripe's errors [spec, sdk]. An error of another type is not Stripe's."""

TURNED_AWAY_CODES = ("too_many_concurrent_requests", "lock_timeout")
"""Codes of a 409 that was refused before anything was executed. [docs]"""

KeyKind = Literal["live", "sandbox", "local"]

CALLS_PER_SECOND: Mapping[KeyKind, int] = {"live": 1000, "sandbox": 25, "local": 1000}
"""Rates for meter events by kind of key [docs]; "local" is a sandbox of ours."""

REQUEST_TIMEOUT_SECONDS = 80
"""The SDK's own default. A request that is given up earlier may still be executed. [sdk]"""

# Event summaries ------------------------------------------------------------------------------

SUMMARY_GRANULARITY_SECONDS = 60
"""Summaries that are not grouped are aligned to the minute. [spec]"""

PAGE = 100
"""The most objects on a page. [spec]"""

LAG_ALLOWANCE = timedelta(hours=1)
"""Ours: how long summaries may trail what was accepted. They are "eventually consistent", with no
bound given [open]. A difference that lasts longer is a mismatch, and a person should look."""

TAKE_BACK_AFTER = timedelta(hours=24)
"""Ours: how long a summary gets before an event that it does not show is believed to be lost."""

MOST_PAGES = 1_000
"""Ours: a list with more pages than this is not believed: `has_more` may never end."""

READS_A_MONTH = 10_000
"""Reads that an account has in any case; 500 for each transaction beside that. [docs]"""

# Subscriptions and invoices -------------------------------------------------------------------

LONGEST_DRAFT = timedelta(hours=73)
"""An invoice is a draft for 72 hours at most [docs]; one not known an hour later is missing."""

INVOICED_STATUSES = ("active", "trialing", "past_due", "unpaid", "canceled")
"""Statuses of subscriptions whose periods end with an invoice. [docs]"""

CLOSING_REASONS = (None, "subscription", "subscription_cycle")
"""Billing reasons of invoices that bill a whole period; others (a threshold, a change of plan, an
item) are made in the middle of one, and close nothing. [docs]"""

# Webhooks -------------------------------------------------------------------------------------

EVENTS_RETRIED_FOR = timedelta(days=3)
"""How long Stripe tries to deliver a webhook, in live mode. [docs]"""
