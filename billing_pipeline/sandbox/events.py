"""The Stripe events of the sandbox's account: snapshot events and thin events."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from billing_pipeline.stripe_facts import API_VERSION

MOST_SAMPLES = 5
"""Sample errors per code in an error report, at most."""


@dataclass
class Outbox:
    """The Stripe events of an account, in the order in which they were created.

    `keep` stores a new event and appends it to `events`.
    """

    keep: Callable[[dict[str, Any]], None]
    events: list[dict[str, Any]] = field(default_factory=list)

    def emit(self, kind: str, content: dict[str, Any], at: float) -> dict[str, Any]:
        """Create a snapshot event with a copy of an object as it is now. `at` in unix seconds."""
        event = {
            "id": self._next_id(),
            "object": "event",
            "api_version": API_VERSION,
            "created": int(at),
            "data": {"object": json.loads(json.dumps(content))},
            "livemode": False,
            "pending_webhooks": 1,
            "request": {"id": None, "idempotency_key": None},
            "type": kind,
        }
        self.keep(event)
        return event

    def report_errors(
        self, meter_id: str | None, errors: dict[str, list[tuple[str, str]]], at: float
    ) -> dict[str, Any]:
        """Create an error report: a thin event about usage that was accepted and not counted.

        `errors` maps each code to the Idempotency-Key and the message of every error.
        """
        instant = stamp(at)
        event: dict[str, Any] = {
            "id": self._next_id(),
            "object": "v2.core.event",
            "created": instant,
            "livemode": False,
            "type": "v1.billing.meter.no_meter_found",
            "data": {
                "developer_message_summary": "There were errors in usage that was sent.",
                "reason": {
                    "error_count": sum(map(len, errors.values())),
                    "error_types": [
                        {
                            "code": code,
                            "error_count": len(found),
                            "sample_errors": [
                                {"error_message": message, "request": {"identifier": key}}
                                for key, message in found[:MOST_SAMPLES]
                            ],
                        }
                        for code, found in sorted(errors.items())
                    ],
                },
                "validation_start": stamp(at - 3600),
                "validation_end": instant,
            },
        }
        if meter_id is not None:
            event["type"] = "v1.billing.meter.error_report_triggered"
            event["related_object"] = {
                "id": meter_id,
                "type": "billing.meter",
                "url": f"/v1/billing/meters/{meter_id}",
            }
        self.keep(event)
        return event

    def _next_id(self) -> str:
        return f"evt_{len(self.events) + 1:08d}"


def notification(event: dict[str, Any]) -> dict[str, Any]:
    """The body of an event's webhook. A thin event is delivered without its data."""
    if event["object"] == "event":
        return event
    return {name: value for name, value in event.items() if name != "data"}


def stamp(at: float) -> str:
    """Unix seconds in the time format of the v2 API."""
    return datetime.fromtimestamp(int(at), UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
