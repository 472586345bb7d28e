"""The service as a real process with a real database, on SQLite and PostgreSQL."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from sqlalchemy import create_engine, select, text

from tests.support import eventually
from tests.webhook_support import (
    NEW_SECRET,
    THIN_SECRET,
    Handler,
    event_body,
    request,
    running_handler,
    sign,
)
from webhook_handler.database import make_engine
from webhook_handler.tables import stripe_events

THIN = {
    "id": "evt_thin",
    "object": "v2.core.event",
    "created": "2026-11-20T10:11:12.345Z",
    "livemode": True,
    "type": "v1.billing.meter.error_report_triggered",
    "related_object": {"id": "mtr_1", "type": "billing.meter", "url": "/v1/billing/meters/mtr_1"},
}


@pytest.fixture
def handler(tmp_path: Path, database_url: str) -> Iterator[Handler]:
    with running_handler(tmp_path, database_url) as running:
        yield running


def rows(database_url: str) -> dict[str, dict[str, Any]]:
    engine = make_engine(database_url)
    with engine.begin() as connection:
        found = connection.execute(select(stripe_events)).all()
    engine.dispose()
    return {row.id: dict(row._mapping) for row in found}


def test_an_event_is_stored_once_as_it_was_sent(handler: Handler, database_url: str) -> None:
    body = event_body("evt_1", account="acct_1", note="ünï")
    assert handler.post(body) == (200, {"status": "stored"})
    assert handler.post(body, NEW_SECRET) == (200, {"status": "known"})
    assert handler.post(body, THIN_SECRET) == (200, {"status": "known"})
    row = rows(database_url)["evt_1"]
    assert row["payload"].encode() == body
    assert (row["type"], row["style"], row["api_version"], row["livemode"], row["account"]) == (
        "invoice.paid", "snapshot", "2025-12-15.clover", False, "acct_1",
    )  # fmt: skip
    assert row["created"].isoformat() == "2026-09-21T14:13:20+00:00"
    assert abs(row["received"].timestamp() - time.time()) < 60
    assert (row["redeliveries"], row["state"], row["attempts"]) == (2, "received", 0)
    assert row["source"] == "webhook"


def test_a_thin_event_is_stored_with_its_style(handler: Handler, database_url: str) -> None:
    assert handler.post(json.dumps(THIN).encode(), THIN_SECRET)[0] == 200
    row = rows(database_url)["evt_thin"]
    assert (row["style"], row["livemode"], row["api_version"]) == ("thin", True, None)
    assert row["created"].isoformat() == "2026-11-20T10:11:12.345000+00:00"


GOOD = event_body("evt_refused")


@pytest.mark.parametrize(
    ("body", "header", "status", "reason"),
    [
        (GOOD, "", 400, "no_signature"),
        (GOOD, "nonsense", 400, "bad_signature"),
        (GOOD, "t=1,v1=é", 400, "bad_signature"),
        (GOOD, "t=1", 400, "bad_signature"),
        (GOOD, sign(GOOD, "whsec_other"), 400, "bad_signature"),
        (GOOD, sign(event_body("evt_another")), 400, "bad_signature"),
        (GOOD, sign(GOOD).replace("v1=", "v0="), 400, "bad_signature"),
        (GOOD, ("past", 310), 400, "stale"),
        (GOOD, ("future", 310), 400, "stale"),
        (b"{", None, 400, "unreadable"),
        (b"[]", None, 400, "unreadable"),
        (b'{"id": "evt_x"}', None, 400, "unreadable"),
        (b"[" * 100_000, None, 400, "unreadable"),
        (event_body("evt_x", created=10**30), None, 400, "unreadable"),
        (event_body("evt_x", created="yesterday"), None, 400, "unreadable"),
        (event_body("evt_\x00"), None, 400, "unreadable"),
        (event_body(""), None, 400, "unreadable"),
        (event_body("e" * 256), None, 400, "unreadable"),
        (event_body("evt_x", object="charge"), None, 400, "unreadable"),
        (b"x" * (2**20 + 1), None, 413, "too_large"),
    ],
    ids=lambda value: type(value).__name__,  # signatures carry the second, and processes differ
)
def test_a_refused_request_gets_the_reason_and_leaves_no_row(
    service: Handler, service_database: str, body: bytes, header: Any, status: int, reason: str
) -> None:
    if isinstance(header, tuple):
        offset = header[1] if header[0] == "future" else -header[1]
        header = sign(body, at=time.time() + offset)
    if header is None:
        header = sign(body)
    # http.client encodes a header as Latin-1: any byte may be in it.
    answered, answer = request(
        service.base, "POST", "/stripe/webhook", body, {"stripe-signature": header}
    )
    assert (answered, json.loads(answer)["error"]) == (status, reason)
    assert rows(service_database) == {}
    assert b"Traceback" not in answer


@pytest.fixture(scope="module")
def service_database(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('refused')}/events.db"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, service_database: str) -> Iterator[Handler]:
    with running_handler(tmp_path_factory.mktemp("refused"), service_database) as running:
        yield running


def test_a_body_that_is_not_utf8_is_unreadable(service: Handler) -> None:
    answered, answer = request(
        service.base, "POST", "/stripe/webhook", b"\xff\xfe", {"stripe-signature": "t=1,v1=a"}
    )
    assert (answered, json.loads(answer)["error"]) == (400, "unreadable")


def test_a_declared_length_beyond_the_limit_is_refused_before_the_body_is_read(
    service: Handler,
) -> None:
    with socket.create_connection(_address(service), timeout=10) as raw:
        raw.sendall(
            b"POST /stripe/webhook HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999\r\n\r\n{"
        )
        assert raw.recv(1000).startswith(b"HTTP/1.1 413")


def test_a_chunked_body_beyond_the_limit_is_not_read_to_its_end(service: Handler) -> None:
    connection = http.client.HTTPConnection(*_address(service), timeout=10)
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(400):
            sent += 2**16
            yield b"x" * 2**16

    try:
        connection.request("POST", "/stripe/webhook", endless(), encode_chunked=True)
        assert connection.getresponse().status == 413
    except (BrokenPipeError, ConnectionResetError):
        pass  # it closed the connection while we still sent, as expected
    finally:
        connection.close()
    assert sent < 400 * 2**16


def test_other_methods_and_paths_are_405_and_404(service: Handler) -> None:
    for method in ("GET", "PUT", "DELETE", "PATCH"):
        assert request(service.base, method, "/stripe/webhook")[0] == 405
    assert request(service.base, "POST", "/stripe/webhooks")[0] == 404
    assert service.ask("/")[0] == 404


def test_health_readiness_metrics_and_description_are_served(
    handler: Handler, database_url: str
) -> None:
    assert handler.ask("/healthz")[0] == 200
    assert handler.ask("/readyz")[0] == 200
    handler.post(event_body("evt_1"))
    handler.post(event_body("evt_1"))
    handler.post(event_body("evt_2"), "whsec_other")
    assert handler.metric('stripe_webhook_received_total{style="snapshot"}') == 1
    assert handler.metric("stripe_webhook_duplicates_total") == 1
    assert handler.metric('stripe_webhook_refused_total{reason="bad_signature"}') == 1
    assert handler.metric("stripe_webhook_store_seconds_count") == 2
    assert handler.metric('stripe_events_backlog{state="received"}') == 1
    assert 0 <= handler.metric("stripe_events_oldest_unprocessed_seconds") < 60
    page = json.loads(handler.ask("/openapi.json")[1])
    assert set(page["paths"]) == {
        "/stripe/webhook", "/healthz", "/readyz", "/metrics", "/openapi.json",
    }  # fmt: skip
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE stripe_events_version SET version_num = '0000'"))
    engine.dispose()
    status, answer = handler.ask("/readyz")
    assert status == 503
    assert b"schema" in answer


def test_one_event_sent_to_several_workers_at_once_is_one_row(
    tmp_path: Path, database_url: str
) -> None:
    with running_handler(tmp_path, database_url, workers=3) as handler:
        together = threading.Barrier(12)

        def post(body: bytes) -> tuple[int, str]:
            together.wait(20)
            status, answer = handler.post(body)
            return status, answer["status"]

        with ThreadPoolExecutor(12) as pool:
            for n in range(10):
                answers = list(pool.map(post, [event_body(f"evt_{n}")] * 12))
                assert sorted(answers) == [(200, "known")] * 11 + [(200, "stored")]
        assert {id: row["redeliveries"] for id, row in rows(database_url).items()} == {
            f"evt_{n}": 11 for n in range(10)
        }


def test_a_graceful_shutdown_stores_every_answered_event(tmp_path: Path, database_url: str) -> None:
    answered = []
    with running_handler(tmp_path, database_url, workers=2) as handler:

        def post_on(start: int) -> None:
            for n in range(start, start + 400):
                try:
                    if handler.post(event_body(f"evt_{n}"))[0] == 200:
                        answered.append(f"evt_{n}")
                except (OSError, http.client.HTTPException, ValueError):
                    return

        threads = [threading.Thread(target=post_on, args=(k * 1000,)) for k in range(4)]
        for thread in threads:
            thread.start()
        eventually(lambda: len(answered) > 40, 20, "some are answered")
        handler.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(60)
        handler.process.wait(40)
    assert set(answered) <= rows(database_url).keys()


def test_logs_are_json_and_contain_neither_bodies_nor_secrets(
    tmp_path: Path, database_url: str
) -> None:
    with running_handler(tmp_path, database_url) as handler:
        handler.post(event_body("evt_1", note="private matter"))
        handler.post(event_body("evt_2", note="private matter"), "whsec_other")
        handler.post(b'{"note": "private matter"}')
    lines = handler.log.read_text().splitlines()
    logged = [json.loads(line) for line in lines]
    assert [line["event"] for line in logged if line["name"] == "webhook_handler"] == [
        "stored", "refused", "refused",
    ]  # fmt: skip
    assert "private" not in handler.log.read_text()
    assert "whsec" not in handler.log.read_text()


def test_without_secrets_the_error_names_the_variable(tmp_path: Path) -> None:
    import subprocess
    import sys

    command = [sys.executable, "-c", "from webhook_handler.server import main; main()"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert ended.returncode == 2
    assert "STRIPE_WEBHOOK_SECRET" in ended.stderr
    assert "Traceback" not in ended.stderr


def _address(handler: Handler) -> tuple[str, int]:
    url = urlsplit(handler.base)
    return str(url.hostname), int(url.port or 0)
