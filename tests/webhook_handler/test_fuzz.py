"""Arbitrary requests to the running service, checked against its OpenAPI document: never a 500,
never an undocumented answer, never a row without a valid signature."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from tests.webhook_support import SECRET, Handler, running_handler, sign
from webhook_handler.database import make_engine
from webhook_handler.tables import stripe_events

FUZZ = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
almost_events = st.fixed_dictionaries(
    {},
    optional={
        "object": st.sampled_from(["event", "v2.core.event"]) | json_values,
        "id": st.from_regex(r"evt_[a-z0-9]{1,20}", fullmatch=True) | json_values,
        "type": st.sampled_from(["invoice.paid", "x"]) | json_values,
        "created": st.integers() | st.datetimes().map(lambda d: f"{d.isoformat()}Z") | json_values,
        "livemode": st.booleans() | json_values,
        "api_version": json_values,
        "account": json_values,
        "data": json_values,
    },
).map(lambda event: json.dumps(event).encode())
whole_events = st.builds(
    lambda id, kind, created, data: json.dumps(
        {"id": id, "object": "event", "type": kind, "created": created, "livemode": False,
         "data": data}
    ).encode(),
    st.from_regex(r"evt_[a-z0-9]{1,20}", fullmatch=True),
    st.from_regex(r"[a-z.]{1,40}", fullmatch=True),
    st.integers(0, 4_000_000_000),
    json_values,
)  # fmt: skip
bodies = st.binary(max_size=3000) | almost_events | whole_events
header_values = st.text(
    st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=200
).map(str.strip)
headers = st.dictionaries(
    st.from_regex(r"[a-z][a-z0-9-]{0,30}", fullmatch=True).filter(
        lambda name: name not in ("host", "connection", "content-length", "transfer-encoding",
                                  "expect", "upgrade", "stripe-signature")
    ),
    header_values,
    max_size=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('fuzz')}/events.db"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, database: str) -> Iterator[Handler]:
    with running_handler(tmp_path_factory.mktemp("fuzz"), database) as running:
        yield running


@pytest.fixture(scope="module")
def page(service: Handler) -> dict[str, Any]:
    return dict(json.loads(service.ask("/openapi.json")[1]))


def ask(
    service: Handler, method: str, path: str, body: bytes, more: dict[str, str]
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(str(urlsplit(service.base).netloc), timeout=30)
    try:
        connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in {**more, "content-length": str(len(body))}.items():
            connection.putheader(name, value.encode("latin-1"))
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def stored(database: str) -> dict[str, str]:
    engine = make_engine(database)
    with engine.begin() as connection:
        rows = connection.execute(select(stripe_events.c.id, stripe_events.c.payload)).all()
    engine.dispose()
    return {row.id: row.payload for row in rows}


@FUZZ
@given(body=bodies, signature=st.none() | header_values, more=headers)
def test_without_a_valid_signature_nothing_is_stored(
    service: Handler, database: str, page: Any, body: bytes, signature: str | None, more: Any
) -> None:
    before = stored(database)
    given_headers = more if signature is None else {**more, "stripe-signature": signature}
    status, answer = ask(service, "POST", "/stripe/webhook", body, given_headers)
    known = page["paths"]["/stripe/webhook"]["post"]["responses"]
    reasons = page["components"]["responses"]["Refused"]["content"]["application/json"]
    assert status == 400
    assert str(status) in known
    assert json.loads(answer)["error"] in reasons["schema"]["properties"]["error"]["enum"]
    assert stored(database) == before


@FUZZ
@given(body=bodies, more=headers)
def test_a_signed_body_is_stored_whole_or_refused(
    service: Handler, database: str, page: Any, body: bytes, more: Any
) -> None:
    before = stored(database)
    try:
        signature = sign(body, SECRET, time.time())
    except UnicodeDecodeError:
        signature = "t=1,v1=00"
    status, answer = ask(
        service, "POST", "/stripe/webhook", body, {**more, "stripe-signature": signature}
    )
    assert str(status) in page["paths"]["/stripe/webhook"]["post"]["responses"]
    after = stored(database)
    if status == 200:
        id = json.loads(body)["id"]
        assert json.loads(answer)["status"] == ("known" if id in before else "stored")
        assert after == {id: body.decode(), **before}
    else:
        assert status == 400, answer
        assert after == before


@FUZZ
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "FOO"]),
    path=st.sampled_from(["/healthz", "/readyz", "/metrics", "/openapi.json", "/stripe/webhook"])
    | st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=40).map("/{}".format),
    body=st.binary(max_size=200),
)
def test_no_method_on_any_path_breaks_the_service(
    service: Handler, page: Any, method: str, path: str, body: bytes
) -> None:
    status, _ = ask(service, method, path, body, {})
    assert status in (200, 400, 404, 405), (method, path)
    known = page["paths"].get(path.split("?")[0].split("#")[0], {})
    if status == 200:
        assert method.lower() in known or method == "HEAD"
