"""The meaning of each answer to a meter event, decided in one place.

The client lets only answers of Stripe's shape through (`client.check_answer`). Source of the rules:
Stripe's specification and documentation of meter events, idempotent requests and errors; see
docs/architecture.md.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import Enum

import aiohttp
import stripe

from billing_pipeline.stripe_api.client import ForeignAnswer
from billing_pipeline.stripe_facts import TURNED_AWAY_CODES

NETWORK_ERRORS = (aiohttp.ClientError, asyncio.TimeoutError, ConnectionError)
"""Errors that the SDK does not wrap when a connection breaks while an answer is read."""


TIMED_OUT = "timed_out"


class Verdict(Enum):
    """The result of an attempt to send an event."""

    ACCEPTED = "accepted"
    REFUSED = "refused"  # for good: sending the same again would be refused again
    NOT_EXECUTED = "not executed"  # certainly not counted; may be sent again
    UNKNOWN = "unknown"  # maybe counted; may be sent again with the same identifier and key
    UNREACHABLE = "unreachable"  # no connection, so certainly not counted
    DENIED = "denied"  # the key or the address is wrong; no event can be sent


@dataclass(frozen=True, slots=True)
class Answer:
    """A verdict with its details. Messages never contain the key."""

    verdict: Verdict
    request_id: str | None = None
    code: str | None = None
    message: str | None = None
    again: bool = True
    """Whether trying again soon is of use."""
    retry_after: float | None = None
    """Seconds Stripe asks us to wait."""


def read_error(error: BaseException) -> Answer:
    """The meaning of an error of the SDK or of the network. Re-raises any other."""
    if isinstance(error, ForeignAnswer):
        return Answer(Verdict.UNKNOWN, code=f"http_{error.status}", message=str(error))
    if isinstance(error, stripe.APIConnectionError):
        return _no_answer(error.__cause__)
    if isinstance(error, NETWORK_ERRORS):
        return _no_answer(error)
    if not isinstance(error, stripe.StripeError):
        raise error
    return _answered(error)


def _no_answer(cause: BaseException | None) -> Answer:
    name = type(cause).__name__
    if isinstance(cause, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)):
        return Answer(Verdict.UNREACHABLE, message=f"no connection to Stripe ({name})")
    if isinstance(cause, TimeoutError):
        # The request may still be executed; a second one now would be in flight beside it.
        return Answer(Verdict.UNKNOWN, code=TIMED_OUT, message="no answer in time", again=False)
    return Answer(Verdict.UNKNOWN, message=f"the connection broke before an answer ({name})")


def _answered(error: stripe.StripeError) -> Answer:
    status = error.http_status or 0
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    code = error.code or (error.error.code if error.error else None)
    message = error.user_message or f"HTTP {status}"
    request_id = error.request_id

    def answer(verdict: Verdict, *, again: bool = True) -> Answer:
        # Stripe's headers show when trying again is pointless, and when it only repeats a stored
        # answer (idempotent replay), so that the outcome stays what it was.
        pointless = (
            headers.get("stripe-should-retry") == "false"
            or headers.get("idempotent-replayed") == "true"
        )
        return Answer(
            verdict,
            request_id,
            code or f"http_{status}",
            message,
            again and not pointless,
            _seconds(headers.get("retry-after")),
        )

    if status in (401, 403) or (status == 404 and code != "resource_missing"):
        return Answer(Verdict.DENIED, request_id, code or f"http_{status}", _denied(status))
    if status == 429 or isinstance(error, stripe.RateLimitError):
        return Answer(
            Verdict.NOT_EXECUTED,
            request_id,
            code or "rate_limit",
            message,
            retry_after=_seconds(headers.get("retry-after")),
        )
    if status == 409 and code in TURNED_AWAY_CODES:
        return Answer(Verdict.NOT_EXECUTED, request_id, code, message)
    if status == 409:
        # Another request is being executed, maybe an earlier attempt for this event.
        return Answer(Verdict.UNKNOWN, request_id, code or "conflict", message)
    if status >= 500:
        return answer(Verdict.UNKNOWN)
    if "already exists with identifier" in message or code == "duplicate_meter_event":
        return Answer(Verdict.ACCEPTED, request_id)
    if isinstance(error, stripe.IdempotencyError):
        # The key was used with another body, and the outcome of that request is unknown.
        return answer(Verdict.UNKNOWN, again=False)
    return answer(Verdict.REFUSED)


def _denied(status: int) -> str:
    if status == 404:
        return "STRIPE_API_BASE does not lead to Stripe's API (HTTP 404)"
    return f"Stripe refused STRIPE_SECRET_KEY (HTTP {status}): it is wrong, expired or restricted"


def _seconds(value: str | None) -> float | None:
    try:
        return max(0.0, float(value)) if value else None
    except ValueError:  # an HTTP date: the usual back-off applies
        return None
