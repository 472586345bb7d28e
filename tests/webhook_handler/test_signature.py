"""Signatures: who signed, and when, with an HMAC computed here and not by the SDK."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhook_handler.signature import Refused, verify

NOW = 1_790_000_000
SECRETS = ("whsec_one", "whsec_two")


def mac(body: str, secret: str, at: int) -> str:
    return hmac.new(secret.encode(), f"{at}.{body}".encode(), hashlib.sha256).hexdigest()


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("offset", [-300, 0, 300])
def test_any_configured_secret_within_the_tolerance_is_accepted(secret: str, offset: int) -> None:
    at = NOW + offset
    verify("body", f"t={at},v1={mac('body', secret, at)}", SECRETS, NOW)


def test_one_of_several_signatures_is_enough_while_a_secret_rotates() -> None:
    header = f"t={NOW},v1={mac('body', 'whsec_gone', NOW)},v1={mac('body', SECRETS[1], NOW)}"
    verify("body", header, SECRETS, NOW)


@pytest.mark.parametrize("offset", [-301, 301, -(10**9), 10**12])
def test_a_time_outside_the_tolerance_is_stale_in_both_directions(offset: int) -> None:
    at = NOW + offset
    with pytest.raises(Refused) as refused:
        verify("body", f"t={at},v1={mac('body', SECRETS[0], at)}", SECRETS, NOW)
    assert refused.value.reason == "stale"


def test_a_second_time_in_the_header_does_not_make_an_old_signature_fresh() -> None:
    old = NOW - 4000
    signature = mac("body", SECRETS[0], old)
    for header in (f"t={old},t={NOW},v1={signature}", f"t={NOW},t={old},v1={signature}"):
        with pytest.raises(Refused):
            verify("body", header, SECRETS, NOW)


@given(st.text(), st.text(), st.integers(0, 2 * NOW))
def test_only_a_signature_of_this_body_and_time_is_accepted(
    body: str, header: str, at: int
) -> None:
    forged = [
        header,
        f"t={at},v1={header}",
        f"t={NOW},v1={mac(body, 'whsec_other', NOW)}",
        f"t={NOW},v1={mac(body + ' ', SECRETS[0], NOW)}",
        f"t={NOW},v0={mac(body, SECRETS[0], NOW)}",
        f"t={NOW + 1},v1={mac(body, SECRETS[0], NOW)}",
    ]
    for each in forged:
        with pytest.raises(Refused):
            verify(body, each, SECRETS, NOW)
