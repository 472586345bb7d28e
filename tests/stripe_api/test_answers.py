"""What each of Stripe's answers means, one row an answer."""

from __future__ import annotations

import aiohttp
import pytest
import stripe

from billing_pipeline.stripe_api.answers import Verdict, read_error
from billing_pipeline.stripe_api.client import ForeignAnswer


def answered(
    kind: type[stripe.StripeError],
    status: int,
    message: str = "m",
    code: str | None = None,
    headers: dict[str, str] | None = None,
) -> stripe.StripeError:
    body = {"error": {"type": "invalid_request_error", "message": message, "code": code}}
    if kind is stripe.InvalidRequestError:
        return stripe.InvalidRequestError(  # type: ignore[no-untyped-call]
            message, None, code, http_status=status, json_body=body, headers=headers
        )
    return kind(message, http_status=status, json_body=body, headers=headers, code=code)


INVALID = stripe.InvalidRequestError
REPLAYED = {"Idempotent-Replayed": "true"}
POINTLESS = {"Stripe-Should-Retry": "false"}


@pytest.mark.parametrize(
    ("error", "verdict", "again"),
    [
        (answered(INVALID, 400, "An event already exists with identifier x."), "ACCEPTED", True),
        (answered(INVALID, 400, code="duplicate_meter_event"), "ACCEPTED", True),
        (answered(INVALID, 400, code="no_meter"), "REFUSED", True),
        (answered(INVALID, 404, code="resource_missing"), "REFUSED", True),
        (answered(INVALID, 404), "DENIED", True),
        (answered(stripe.AuthenticationError, 401), "DENIED", True),
        (answered(stripe.PermissionError, 403), "DENIED", True),
        (answered(stripe.RateLimitError, 429), "NOT_EXECUTED", True),
        (answered(stripe.APIError, 409, code="too_many_concurrent_requests"), "NOT_EXECUTED", True),
        (answered(stripe.APIError, 409, code="idempotency_key_in_use"), "UNKNOWN", True),
        (answered(stripe.APIError, 500), "UNKNOWN", True),
        (answered(stripe.APIError, 503), "UNKNOWN", True),
        (answered(stripe.APIError, 500, headers=REPLAYED), "UNKNOWN", False),
        (answered(stripe.APIError, 500, headers=POINTLESS), "UNKNOWN", False),
        (answered(stripe.IdempotencyError, 400), "UNKNOWN", False),
        (ForeignAnswer(400), "UNKNOWN", True),
        (aiohttp.ServerDisconnectedError(), "UNKNOWN", True),
        (aiohttp.ClientPayloadError(), "UNKNOWN", True),
        (aiohttp.ConnectionTimeoutError(), "UNREACHABLE", True),
        (TimeoutError(), "UNKNOWN", False),
    ],
)
def test_an_answer_is_read_as(error: Exception, verdict: str, again: bool) -> None:
    answer = read_error(error)
    assert (answer.verdict, answer.again) == (Verdict[verdict], again)


def test_the_answer_to_a_wrong_key_never_carries_the_key() -> None:
    error = answered(stripe.AuthenticationError, 401, "Invalid API Key provided: sk_live_geheim")
    assert "geheim" not in str(read_error(error))


def test_retry_after_is_read_where_it_is_a_number() -> None:
    asked = read_error(answered(stripe.RateLimitError, 429, headers={"Retry-After": "3"}))
    assert asked.retry_after == 3.0
    date = {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}
    assert read_error(answered(stripe.RateLimitError, 429, headers=date)).retry_after is None


def test_programming_errors_are_not_answers() -> None:
    with pytest.raises(KeyError):
        read_error(KeyError("x"))
