"""Whether Stripe signed a request, and recently.

`Stripe-Signature: t=<unix seconds>,v1=<HMAC-SHA256 of "t.body">[,v1=…]`. The SDK compares, in
constant time. The age is checked here, against a given clock and in both directions: the SDK
accepts any time in the future.
"""

from __future__ import annotations

from collections.abc import Iterable

import stripe

TOLERANCE_SECONDS = 300
"""The default of Stripe's own libraries."""

LATEST = 253_402_300_799
"""The last second of the year 9999, the last that Python's datetime can hold."""


class Refused(Exception):
    """A request that is not stored: `reason` is a short code, the message is for the sender."""

    def __init__(self, reason: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.reason = reason
        self.status = status


def verify(body: str, header: str | None, secrets: Iterable[str], now: float) -> None:
    """Check that one of `secrets` signed `body` within the tolerance around `now` (unix seconds).

    Raises Refused with the reason `no_signature`, `bad_signature` or `stale`.
    """
    if not header:
        raise Refused("no_signature", "There is no Stripe-Signature header.")
    # The comparison needs ASCII, and every signature is ASCII.
    if not header.isascii() or not any(_signed(body, header, secret) for secret in secrets):
        raise Refused("bad_signature", "No configured secret matches this signature.")
    signed_at = _signed_at(header)
    if signed_at > LATEST or abs(now - signed_at) > TOLERANCE_SECONDS:
        raise Refused(
            "stale", f"The time of the signature differs by more than {TOLERANCE_SECONDS} seconds."
        )


def _signed(body: str, header: str, secret: str) -> bool:
    try:
        return bool(stripe.WebhookSignature.verify_header(body, header, secret))
    except stripe.SignatureVerificationError:
        return False


def _signed_at(header: str) -> int:
    """The first `t`: the one that the SDK includes in the signed text."""
    fields = (field.split("=", 2) for field in header.split(","))
    return next(int(field[1]) for field in fields if field[0] == "t")
