"""The state of a Stripe account about metered usage, and Stripe's rules about it.

Where Stripe documents nothing, the worse case is modelled: the first of two `last` events with the
same timestamp counts, a stored 500 is replayed, and an identifier is free again after 24 hours.

Stripe's numbers are written here a second time, so that an error in `stripe_facts` is noticed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from billing_pipeline.sandbox.events import Outbox

DAY = 86_400
IDENTIFIER_SECONDS = DAY
CANCEL_SECONDS = DAY
OLDEST_SECONDS = 35 * DAY
AHEAD_SECONDS = 300

_VALUE = re.compile(r"-?\d+")


class StripeRefusal(Exception):
    """An error as Stripe answers it: status, type, message, code and parameter."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        kind: str = "invalid_request_error",
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}
        self.error = {"type": kind, "message": message}
        if code:
            self.error["code"] = code
        if param:
            self.error["param"] = param


@dataclass
class ReceivedEvent:
    """A meter event as received. `counted` is False when it is rejected later."""

    identifier: str
    event_name: str
    customer: str
    value: int
    timestamp: int
    received: float
    counted: bool = True
    cancelled: bool = False
    problem: str | None = None
    """Why it is not counted: the code in its error report."""
    key: str | None = None
    """The Idempotency-Key of its request."""


@dataclass
class Account:
    """The state of one account. `now` gives unix seconds; `journal` is the file that keeps it."""

    now: Callable[[], float]
    account_id: str = "acct_sandbox"
    lag: float = 0.0
    journal: Path | None = None
    meters: dict[str, dict[str, Any]] = field(default_factory=dict)
    customers: dict[str, dict[str, Any]] = field(default_factory=dict)
    events: list[ReceivedEvent] = field(default_factory=list)
    others: list[dict[str, Any]] = field(default_factory=list)
    """Objects of `billing`, kept in the same journal."""
    _reported: int = 0
    """How many events the error reports so far cover."""
    _customers_made: int = 0
    _open: list[dict[str, Any]] | None = None
    """The entries of the open transaction."""
    _by_identifier: dict[str, ReceivedEvent] = field(default_factory=dict)
    _by_lane: dict[tuple[str, str], list[ReceivedEvent]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def __post_init__(self) -> None:
        self.outbox = Outbox(lambda event: self._keep("stripe_event", event))
        if self.journal is not None and self.journal.exists():
            self._read_journal(self.journal)

    # Meters ----------------------------------------------------------------------------------

    def make_meter(self, given: dict[str, Any]) -> dict[str, Any]:
        """POST /v1/billing/meters."""
        for needed in ("default_aggregation", "display_name", "event_name"):
            if needed not in given:
                raise StripeRefusal(400, f"Missing required param: {needed}.", param=needed)
        formula = given["default_aggregation"].get("formula")
        if formula not in ("count", "last", "sum"):
            raise StripeRefusal(
                400, f"Invalid formula: {formula}", param="default_aggregation[formula]"
            )
        window = given.get("event_time_window")
        if window not in (None, "day", "hour"):
            raise StripeRefusal(
                400, f"Invalid event_time_window: {window}", param="event_time_window"
            )
        if self._active(given["event_name"]) is not None:
            raise StripeRefusal(
                400, f"An active meter already has the event name {given['event_name']}."
            )
        created = int(self.now())
        mapping = given.get("customer_mapping", {})
        meter = {
            "id": f"mtr_{_digest(self.account_id, given['event_name'], len(self.meters))}",
            "object": "billing.meter",
            "created": created,
            "customer_mapping": {
                "event_payload_key": mapping.get("event_payload_key", "stripe_customer_id"),
                "type": "by_id",
            },
            "default_aggregation": {"formula": formula},
            "display_name": given["display_name"],
            "event_name": given["event_name"],
            "event_time_window": window,
            "livemode": False,
            "status": "active",
            "status_transitions": {"deactivated_at": None},
            "updated": created,
            "value_settings": {
                "event_payload_key": given.get("value_settings", {}).get(
                    "event_payload_key", "value"
                )
            },
        }
        self._keep("meter", meter)
        return meter

    def meter(self, meter_id: str) -> dict[str, Any]:
        """GET /v1/billing/meters/{id}."""
        if meter_id not in self.meters:
            raise StripeRefusal(404, f"No such meter: '{meter_id}'", code="resource_missing")
        return self.meters[meter_id]

    def change_meter(self, meter_id: str, **changes: Any) -> dict[str, Any]:
        """Rename, deactivate or reactivate a meter. Nothing else about it can change."""
        meter = {**self.meter(meter_id), **changes, "updated": int(self.now())}
        if "status" in changes:
            gone = int(self.now()) if changes["status"] == "inactive" else None
            meter["status_transitions"] = {"deactivated_at": gone}
        self._keep("meter", meter)
        if "status" in changes:
            change = "deactivated" if changes["status"] == "inactive" else "reactivated"
            self.outbox.emit(f"billing.meter.{change}", meter, self.now())
        return meter

    def _active(self, event_name: str) -> dict[str, Any] | None:
        return next(
            (
                meter
                for meter in self.meters.values()
                if meter["event_name"] == event_name and meter["status"] == "active"
            ),
            None,
        )

    # Customers -------------------------------------------------------------------------------

    def make_customer(self, given: dict[str, Any]) -> dict[str, Any]:
        """POST /v1/customers."""
        customer = {
            "id": f"cus_{_digest(self.account_id, 'customer', self._customers_made)[:14]}",
            "object": "customer",
            "created": int(self.now()),
            "livemode": False,
            "name": given.get("name"),
            "email": given.get("email"),
            "description": given.get("description"),
            "metadata": given.get("metadata", {}),
        }
        self._keep("customer", customer)
        self.outbox.emit("customer.created", customer, self.now())
        return customer

    def delete_customer(self, customer_id: str) -> dict[str, Any]:
        """DELETE /v1/customers/{id}: removes the customer and its usage for good."""
        customer = self.customer(customer_id)
        self._keep("customer_deleted", {"id": customer_id})
        self.outbox.emit("customer.deleted", customer, self.now())
        return {"id": customer_id, "object": "customer", "deleted": True}

    def customer(self, customer_id: str) -> dict[str, Any]:
        """GET /v1/customers/{id}."""
        if customer_id not in self.customers:
            raise StripeRefusal(
                404, f"No such customer: '{customer_id}'", code="resource_missing", param="id"
            )
        return self.customers[customer_id]

    # Meter events ----------------------------------------------------------------------------

    def check_event(self, given: dict[str, Any], *, late: bool = False) -> ReceivedEvent:
        """Check a meter event as Stripe does before it accepts one. Raises StripeRefusal.

        With `late`, an unknown customer or an inactive meter is not refused: the event is accepted
        and never counted, and an error report names it later.
        """
        for needed in ("event_name", "payload"):
            if needed not in given:
                raise StripeRefusal(400, f"Missing required param: {needed}.", param=needed)
        now = self.now()
        identifier = given.get("identifier") or _digest(self.account_id, now, len(self.events))
        if len(identifier) > 100:
            raise StripeRefusal(400, "identifier is too long (100)", param="identifier")
        timestamp = integer(given.get("timestamp", str(int(now))), "timestamp")
        _check_timestamp(timestamp, now)
        meter, inactive = self._meter_of(given["event_name"], late)
        customer, unknown = self._customer_of(given["payload"], meter, late)
        value = _value(given["payload"], meter)
        earlier = self._by_identifier.get(identifier)
        if earlier is not None and now - earlier.received < IDENTIFIER_SECONDS:
            raise StripeRefusal(
                400,
                f"An event already exists with identifier {identifier}.",
                headers={"stripe-should-retry": "false"},
            )
        problem = inactive or unknown
        return ReceivedEvent(
            identifier,
            given["event_name"],
            customer,
            value,
            timestamp,
            now,
            counted=problem is None,
            problem=problem,
        )

    def _meter_of(self, event_name: str, late: bool) -> tuple[dict[str, Any], str | None]:
        """The active meter of an event name. With `late`, an inactive one and its error code."""
        meter, problem = self._active(event_name), None
        if meter is None and late:
            named = [m for m in self.meters.values() if m["event_name"] == event_name]
            meter, problem = named[-1] if named else None, "archived_meter"
        if meter is None:
            raise StripeRefusal(
                400,
                f'No active meter found for event name "{event_name}".',
                code="no_meter",
                param="event_name",
            )
        return meter, problem

    def _customer_of(
        self, payload: dict[str, Any], meter: dict[str, Any], late: bool
    ) -> tuple[str, str | None]:
        """The customer in a payload. With `late`, an unknown one and its error code."""
        customer = payload.get(meter["customer_mapping"]["event_payload_key"])
        if not customer:
            raise StripeRefusal(
                400, "The payload has no customer.", code="meter_event_no_customer_defined"
            )
        if customer in self.customers:
            return customer, None
        if not late:
            raise StripeRefusal(
                400, f"No such customer: '{customer}'", code="meter_event_customer_not_found"
            )
        return customer, "meter_event_customer_not_found"

    def accept_event(self, event: ReceivedEvent) -> None:
        """Store an event, counted or not."""
        self._keep("event", dict(vars(event)))

    def counted(self, customer: str, event_name: str) -> list[ReceivedEvent]:
        """The counted events of a customer and meter."""
        return [e for e in self._by_lane[customer, event_name] if e.counted and not e.cancelled]

    def report_errors(self, after: float) -> None:
        """Report accepted events that are not counted, once the first is `after` seconds old."""
        failed = [e for e in self.events[self._reported :] if e.problem is not None]
        if not failed or failed[0].received + after > self.now():
            return
        problems: dict[str, dict[str, list[tuple[str, str]]]] = defaultdict(
            lambda: defaultdict(list)
        )
        for event in failed:
            message = f"{event.problem}: the event {event.identifier} was not counted."
            key = event.key or event.identifier
            problems[event.event_name][str(event.problem)].append((key, message))
        for event_name, errors in sorted(problems.items()):
            named = [m["id"] for m in self.meters.values() if m["event_name"] == event_name]
            self.outbox.report_errors(named[-1] if named else None, dict(errors), self.now())
        self._keep("reported", {"events": len(self.events)})

    def keep_other(self, content: dict[str, Any]) -> None:
        """Store an object of `billing`."""
        self._keep("other", content)

    def cancel(self, given: dict[str, Any]) -> dict[str, Any]:
        """POST /v1/billing/meter_event_adjustments."""
        identifier = given.get("cancel", {}).get("identifier")
        event = self._by_identifier.get(identifier)
        if event is None or event.event_name != given.get("event_name"):
            raise StripeRefusal(
                404, f"No such meter event: '{identifier}'", code="resource_missing"
            )
        if self.now() - event.received > CANCEL_SECONDS:
            raise StripeRefusal(400, "An event can be cancelled within 24 hours of its receipt.")
        self._keep("cancel", {"identifier": identifier})
        return {
            "object": "billing.meter_event_adjustment",
            "cancel": {"identifier": identifier},
            "event_name": event.event_name,
            "livemode": False,
            "status": "pending",
            "type": "cancel",
        }

    # Summaries -------------------------------------------------------------------------------

    def summaries(
        self, meter_id: str, customer: str, start: int, end: int, window: str | None
    ) -> list[dict[str, Any]]:
        """Event summaries of one customer, the newest first."""
        meter = self.meter(meter_id)
        if customer not in self.customers:
            raise StripeRefusal(
                404, f"No such customer: '{customer}'", code="resource_missing", param="customer"
            )
        step = {None: 60, "hour": 3600, "day": DAY}[window]
        for name, instant in (("start_time", start), ("end_time", end)):
            if instant % step:
                raise StripeRefusal(
                    400, f"{name} must be aligned with {window or 'minute'} boundaries", param=name
                )
        if end <= start:
            raise StripeRefusal(400, "end_time must lie after start_time", param="end_time")
        windows = (
            [(start, end)]
            if window is None
            else [(at, min(at + step, end)) for at in range(start, end, step)]
        )
        visible = [
            event
            for event in self._by_lane[customer, meter["event_name"]]
            if event.counted
            and not event.cancelled
            and event.received + self.lag <= self.now()
            and start <= event.timestamp < end
        ]
        found = []
        for first, last in reversed(windows):
            inside = [event for event in visible if first <= event.timestamp < last]
            if not inside:
                continue
            found.append(
                {
                    "id": f"mtrsum_{_digest(meter_id, customer, first, last)}",
                    "object": "billing.meter_event_summary",
                    "aggregated_value": float(aggregate(meter, inside)),
                    "end_time": last,
                    "livemode": False,
                    "meter": meter_id,
                    "start_time": first,
                }
            )
        return found

    def totals(self) -> Iterator[dict[str, Any]]:
        """The counted usage by customer, meter and UTC day, without lag: for tests and people."""
        for (customer, event_name), events in sorted(self._by_lane.items()):
            meter = next(m for m in self.meters.values() if m["event_name"] == event_name)
            by_day: dict[int, list[ReceivedEvent]] = defaultdict(list)
            for event in events:
                if event.counted and not event.cancelled:
                    by_day[event.timestamp // DAY].append(event)
            for day, inside in sorted(by_day.items()):
                yield {
                    "customer": customer,
                    "meter": event_name,
                    "day": day,
                    "value": aggregate(meter, inside),
                    "events": len(inside),
                }

    # The journal -----------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Write all entries of the block as one line of the journal: a crash loses all or none."""
        entries: list[dict[str, Any]] = []
        outer, self._open = self._open, entries
        try:
            yield
        finally:
            self._open = outer
            if entries:
                self._write({"kind": "transaction", "entries": entries})

    def _keep(self, kind: str, content: dict[str, Any]) -> None:
        entry = {"kind": kind, **content}
        self._apply(entry)
        self._write(entry)

    def _write(self, entry: dict[str, Any]) -> None:
        if self._open is not None:
            self._open.append(entry)
        elif self.journal is not None:
            with self.journal.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")

    def _read_journal(self, journal: Path) -> None:
        content = journal.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):  # a crash cut the last line short
            os.truncate(journal, whole)
        for line in content[:whole].splitlines():
            entry = json.loads(line)
            for each in entry["entries"] if entry["kind"] == "transaction" else [entry]:
                self._apply(each)

    def _apply(self, entry: dict[str, Any]) -> None:
        content = {name: value for name, value in entry.items() if name != "kind"}
        match entry["kind"]:
            case "meter":
                self.meters[content["id"]] = content
            case "customer":
                self._customers_made += content["id"] not in self.customers
                self.customers[content["id"]] = content
            case "customer_deleted":
                del self.customers[content["id"]]
            case "stripe_event":
                self.outbox.events.append(content)
            case "reported":
                self._reported = content["events"]
            case "other":
                self.others.append(content)
            case "event":
                event = ReceivedEvent(**content)
                self.events.append(event)
                self._by_identifier[event.identifier] = event
                self._by_lane[event.customer, event.event_name].append(event)
            case "cancel":
                self._by_identifier[content["identifier"]].cancelled = True


def aggregate(meter: dict[str, Any], events: list[ReceivedEvent]) -> int:
    """The aggregated value of some events of one customer, by the meter's formula and window."""
    window = {"day": DAY, "hour": 3600}.get(meter["event_time_window"] or "")
    if window is not None:  # only the most recently received event of a window counts
        newest: dict[int, ReceivedEvent] = {}
        for event in sorted(events, key=lambda e: e.received):
            newest[event.timestamp // window] = event
        events = list(newest.values())
    match meter["default_aggregation"]["formula"]:
        case "sum":
            return sum(event.value for event in events)
        case "count":
            return len(events)
        case _:  # last: the latest timestamp; of equal ones the first received
            return max(events, key=lambda e: (e.timestamp, -e.received)).value


def _check_timestamp(timestamp: int, now: float) -> None:
    oldest = int(now) - OLDEST_SECONDS
    if timestamp < oldest:
        raise StripeRefusal(
            400,
            "The event timestamp cannot be more than 35 days in past. Expected a timestamp "
            f"greater than or equal to {oldest}.",
            code="timestamp_too_far_in_past",
            param="timestamp",
        )
    if timestamp > now + AHEAD_SECONDS:
        raise StripeRefusal(
            400,
            "The event timestamp cannot be more than 5 minutes in the future.",
            code="timestamp_in_future",
            param="timestamp",
        )


def _value(payload: dict[str, Any], meter: dict[str, Any]) -> int:
    value = payload.get(meter["value_settings"]["event_payload_key"], "")
    if not _VALUE.fullmatch(value):
        raise StripeRefusal(400, f"Invalid value: {value!r}", code="meter_event_invalid_value")
    if len(value.lstrip("-")) > 15:
        raise StripeRefusal(
            400, "The value has too many digits.", code="meter_event_value_too_many_digits"
        )
    return int(value)


def integer(text: Any, param: str) -> int:
    """A parameter as an integer. Raises StripeRefusal."""
    try:
        return int(text)
    except (TypeError, ValueError):
        raise StripeRefusal(400, f"Invalid integer: {text}", param=param) from None


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]
