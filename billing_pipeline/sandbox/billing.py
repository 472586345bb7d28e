"""Stripe Billing around the meters: prices, subscriptions, invoices, checkout sessions.

`tick` does what happens with time: billing periods end, and drafts become final. The invoice of a
period is a draft for an hour and bills only usage received by then. Where Stripe documents nothing,
the worse case is modelled: usage that is received later is never billed.
"""

from __future__ import annotations

import calendar
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from billing_pipeline.sandbox.stripe_state import Account, StripeRefusal, aggregate

DAY = 86_400
GRACE_SECONDS = 3600
"""How long the invoice of a period stays a draft."""

LIVE_STATUSES = ("active", "trialing", "past_due", "unpaid")


@dataclass
class Billing:
    """Prices, subscriptions, invoices and checkout sessions of an account."""

    account: Account
    prices: dict[str, dict[str, Any]] = field(default_factory=dict)
    subscriptions: dict[str, dict[str, Any]] = field(default_factory=dict)
    invoices: dict[str, dict[str, Any]] = field(default_factory=dict)
    checkouts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._tables = {
            "price": self.prices,
            "subscription": self.subscriptions,
            "invoice": self.invoices,
            "checkout.session": self.checkouts,
        }
        for stored in self.account.others:
            self._tables[stored["object"]][stored["id"]] = stored

    # Prices ----------------------------------------------------------------------------------

    def make_price(self, given: dict[str, Any]) -> dict[str, Any]:
        """POST /v1/prices: recurring prices; a metered one names its meter."""
        recurring = given.get("recurring", {})
        if "interval" not in recurring:
            raise StripeRefusal(400, "The sandbox has only recurring prices.", param="recurring")
        meter = recurring.get("meter")
        if meter is not None:
            self.account.meter(meter)
        price = {
            "id": f"price_{len(self.prices) + 1:06d}",
            "object": "price",
            "active": True,
            "billing_scheme": "per_unit",
            "created": int(self.account.now()),
            "currency": given["currency"],
            "livemode": False,
            "metadata": given.get("metadata", {}),
            "product": given.get("product", "prod_sandbox"),
            "recurring": {
                "interval": recurring["interval"],
                "interval_count": int(recurring.get("interval_count", 1)),
                "meter": meter,
                "trial_period_days": None,
                "usage_type": recurring.get("usage_type", "metered" if meter else "licensed"),
            },
            "type": "recurring",
            "unit_amount": int(given.get("unit_amount", 0)),
        }
        return self._keep(price)

    def price(self, id: str) -> dict[str, Any]:
        """GET /v1/prices/{id}."""
        return _found(self.prices, id, "price")

    # Subscriptions ---------------------------------------------------------------------------

    def subscribe(self, given: dict[str, Any], at: float | None = None) -> dict[str, Any]:
        """POST /v1/subscriptions, at the instant `at` (unix seconds; default: now)."""
        customer = self.account.customer(given["customer"])["id"]
        now = int(self.account.now() if at is None else at)
        start = int(given.get("backdate_start_date", now))
        number = len(self.subscriptions) + 1
        id = f"sub_{number:06d}"
        items = []
        for n, item in enumerate(_listed(given.get("items", {}))):
            if item.get("price") not in self.prices:
                raise StripeRefusal(
                    400, f"No such price: '{item.get('price')}'", code="resource_missing"
                )
            price = self.prices[item["price"]]
            items.append(
                {
                    "id": f"si_{number:06d}_{n}",
                    "object": "subscription_item",
                    "created": start,
                    "current_period_start": start,
                    "current_period_end": next_boundary(start, start, price),
                    "discounts": [],
                    "metadata": {},
                    "price": price,
                    "subscription": id,
                }
            )
        subscription = {
            "id": id,
            "object": "subscription",
            "automatic_tax": {"enabled": False},
            "billing_cycle_anchor": start,
            "billing_mode": {"type": "flexible"},
            "billing_schedules": [],
            "cancel_at": None,
            "cancel_at_period_end": False,
            "canceled_at": None,
            "collection_method": "charge_automatically",
            "created": now,
            "currency": "usd",
            "customer": customer,
            "discounts": [],
            "ended_at": None,
            "invoice_settings": {"issuer": {"type": "self"}},
            "items": {
                "object": "list",
                "data": items,
                "has_more": False,
                "url": f"/v1/subscription_items?subscription={id}",
            },
            "livemode": False,
            "metadata": given.get("metadata", {}),
            "start_date": start,
            "status": given.get("_status", "active"),
        }
        self._keep(subscription)
        self.account.outbox.emit("customer.subscription.created", subscription, now)
        return subscription

    def subscription(self, id: str) -> dict[str, Any]:
        """GET /v1/subscriptions/{id}."""
        return _found(self.subscriptions, id, "subscription")

    def update_subscription(self, id: str, given: dict[str, Any]) -> dict[str, Any]:
        """POST /v1/subscriptions/{id}: metadata, or an end with the period."""
        changes: dict[str, Any] = {}
        if "metadata" in given:
            changes["metadata"] = {**self.subscription(id)["metadata"], **given["metadata"]}
        if "cancel_at_period_end" in given:
            ends = given["cancel_at_period_end"] == "true"
            changes["cancel_at_period_end"] = ends
            changes["cancel_at"] = _period(self.subscription(id))[1] if ends else None
        return self.change_subscription(id, "customer.subscription.updated", **changes)

    def change_subscription(
        self, id: str, event: str, at: float | None = None, **changes: Any
    ) -> dict[str, Any]:
        """Change a subscription and emit an event of this type."""
        subscription = self._keep({**self.subscription(id), **changes})
        self.account.outbox.emit(event, subscription, self.account.now() if at is None else at)
        return subscription

    def cancel(self, id: str, given: dict[str, Any], at: float | None = None) -> dict[str, Any]:
        """DELETE /v1/subscriptions/{id}: ends it now. Only `invoice_now` bills its open usage."""
        now = int(self.account.now() if at is None else at)
        if given.get("invoice_now") == "true":
            start, _ = _period(self.subscription(id))
            self._invoice(self.subscription(id), start, now)
        return self.change_subscription(
            id,
            "customer.subscription.deleted",
            now,
            status="canceled",
            canceled_at=now,
            ended_at=now,
        )

    # Invoices --------------------------------------------------------------------------------

    def invoice(self, id: str) -> dict[str, Any]:
        """GET /v1/invoices/{id}."""
        return _found(self.invoices, id, "invoice")

    def finalize(self, id: str, at: float | None = None) -> dict[str, Any]:
        """POST /v1/invoices/{id}/finalize: bills only the usage received by now."""
        invoice = self.invoice(id)
        if invoice["status"] != "draft":
            raise StripeRefusal(400, "This invoice is already finalized.")
        now = int(self.account.now() if at is None else at)
        lines = self._lines(invoice, now)
        invoice = self._keep(
            {
                **invoice,
                "status": "open",
                "status_transitions": {**invoice["status_transitions"], "finalized_at": now},
                "automatically_finalizes_at": None,
                "lines": {**invoice["lines"], "data": lines},
                "amount_due": sum(line["amount"] for line in lines),
            }
        )
        self.account.outbox.emit("invoice.finalized", invoice, now)
        return invoice

    def change_invoice(self, id: str, status: str, event: str) -> dict[str, Any]:
        """Give a final invoice a status and emit an event of this type."""
        if self.invoice(id)["status"] == "draft":
            self.finalize(id)
        invoice = self._keep({**self.invoice(id), "status": status, "attempted": True})
        self.account.outbox.emit(event, invoice, self.account.now())
        return invoice

    def quantities(self) -> dict[tuple[str, str, int], int]:
        """The quantities of final invoices by customer, event name and start of the period."""
        billed: dict[tuple[str, str, int], int] = {}
        for invoice in self.invoices.values():
            for line in invoice["lines"]["data"]:
                key = invoice["customer"], line["metadata"]["event_name"], invoice["period_start"]
                billed[key] = line["quantity"]
        return billed

    def _invoice(self, subscription: dict[str, Any], start: int, end: int) -> dict[str, Any]:
        """Make the draft for a period that has ended."""
        id = f"in_{len(self.invoices) + 1:06d}"
        invoice = {
            "id": id,
            "object": "invoice",
            **dict.fromkeys(
                ("amount_due", "amount_overpaid", "amount_paid", "amount_paid_off_stripe",
                 "amount_remaining", "amount_shipping", "attempt_count", "starting_balance",
                 "post_payment_credit_notes_amount", "pre_payment_credit_notes_amount",
                 "subtotal", "total"), 0),
            "attempted": False,
            "auto_advance": True,
            "automatic_tax": {"enabled": False},
            "automatically_finalizes_at": end + GRACE_SECONDS,
            "billing_reason": "subscription_cycle",
            "collection_method": "charge_automatically",
            "created": end,
            "currency": "usd",
            "customer": subscription["customer"],
            "default_tax_rates": [],
            "discounts": [],
            "issuer": {"type": "self"},
            "lines": {"object": "list", "data": [], "has_more": False,
                      "url": f"/v1/invoices/{id}/lines"},
            "livemode": False,
            "parent": {
                "type": "subscription_details",
                "quote_details": None,
                "subscription_details": {"metadata": {}, "subscription": subscription["id"]},
            },
            "payment_settings": {},
            "period_start": start,
            "period_end": end,
            "status": "draft",
            "status_transitions": {"finalized_at": None},
        }  # fmt: skip
        self._keep(invoice)
        self.account.outbox.emit("invoice.created", invoice, end)
        return invoice

    def _lines(self, invoice: dict[str, Any], by: int) -> list[dict[str, Any]]:
        id = invoice["parent"]["subscription_details"]["subscription"]
        lines = []
        for n, item in enumerate(self.subscription(id)["items"]["data"]):
            meter_id = item["price"]["recurring"]["meter"]
            if meter_id is None:
                continue
            meter = self.account.meter(meter_id)
            inside = [
                event
                for event in self.account.counted(invoice["customer"], meter["event_name"])
                if invoice["period_start"] <= event.timestamp < invoice["period_end"]
                and event.received <= by
            ]
            quantity = max(0, aggregate(meter, inside)) if inside else 0
            lines.append(
                {
                    "id": f"il_{invoice['id'][3:]}_{n}",
                    "object": "line_item",
                    "amount": quantity * item["price"]["unit_amount"],
                    "currency": "usd",
                    "discountable": True,
                    "discounts": [],
                    "livemode": False,
                    "metadata": {"event_name": meter["event_name"]},
                    "parent": {
                        "type": "subscription_item_details",
                        "invoice_item_details": None,
                        "subscription_item_details": {
                            "invoice_item": None,
                            "proration": False,
                            "proration_details": None,
                            "subscription": id,
                            "subscription_item": item["id"],
                        },
                    },
                    "pricing": {
                        "type": "price_details",
                        "price_details": {
                            "price": item["price"]["id"],
                            "product": item["price"]["product"],
                        },
                        "unit_amount_decimal": str(item["price"]["unit_amount"]),
                    },
                    "period": {"start": invoice["period_start"], "end": invoice["period_end"]},
                    "quantity": quantity,
                    "subtotal": quantity * item["price"]["unit_amount"],
                }
            )
        return lines

    # Checkout --------------------------------------------------------------------------------

    def open_checkout(self, given: dict[str, Any]) -> dict[str, Any]:
        """POST /v1/checkout/sessions."""
        now = int(self.account.now())
        session = {
            "id": f"cs_test_{len(self.checkouts) + 1:06d}",
            "object": "checkout.session",
            "automatic_tax": {"enabled": False},
            "client_reference_id": given.get("client_reference_id"),
            "created": now,
            "custom_fields": [],
            "custom_text": {},
            "customer": given.get("customer"),
            "expires_at": now + DAY,
            "livemode": False,
            "metadata": given.get("metadata", {}),
            "mode": given.get("mode", "subscription"),
            "payment_method_types": ["card"],
            "payment_status": "unpaid",
            "shipping_options": [],
            "status": "open",
            "subscription": None,
            "_items": given.get("line_items", {}),
        }
        return self._keep(session)

    def complete_checkout(self, id: str) -> dict[str, Any]:
        """Complete a checkout on Stripe's page: creates the customer and the subscription."""
        session = _found(self.checkouts, id, "checkout.session")
        customer = session["customer"] or self.account.make_customer({})["id"]
        subscription = None
        if session["mode"] == "subscription":
            wanted = {"customer": customer, "items": session["_items"]}
            subscription = self.subscribe(wanted)["id"]
        session = self._keep(
            {
                **session,
                "customer": customer,
                "payment_status": "paid",
                "status": "complete",
                "subscription": subscription,
            }
        )
        self.account.outbox.emit("checkout.session.completed", public(session), self.account.now())
        return session

    # Time ------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Do what is due: end periods, finalize drafts."""
        now = self.account.now()
        while due := self._due(now):
            at, act, id = min(due)
            if act == "renew":
                self._renew(id, at)
            else:
                self.finalize(id, at)
                invoice = self._keep({**self.invoice(id), "status": "paid", "attempted": True})
                self.account.outbox.emit("invoice.paid", invoice, at)

    def _due(self, now: float) -> list[tuple[int, str, str]]:
        """What is due: the instant, what to do, and the id of the object."""
        renewals = [
            (end, "renew", s["id"])
            for s in self.subscriptions.values()
            if s["status"] in LIVE_STATUSES and s["items"]["data"] and (end := _period(s)[1]) <= now
        ]
        finals = [
            (at, "finalize", i["id"])
            for i in self.invoices.values()
            if i["status"] == "draft" and (at := i["automatically_finalizes_at"]) <= now
        ]
        return renewals + finals

    def _renew(self, id: str, at: int) -> None:
        subscription = self.subscription(id)
        start, end = _period(subscription)
        if subscription["cancel_at_period_end"]:
            self.change_subscription(
                id, "customer.subscription.deleted", at, status="canceled", ended_at=at,
                canceled_at=at,
            )  # fmt: skip
        else:
            anchor = subscription["billing_cycle_anchor"]
            items = [
                {
                    **item,
                    "current_period_start": end,
                    "current_period_end": next_boundary(anchor, end, item["price"]),
                }
                for item in subscription["items"]["data"]
            ]
            changed = {**subscription["items"], "data": items}
            self.change_subscription(id, "customer.subscription.updated", at, items=changed)
        self._invoice(subscription, start, end)

    def _keep(self, content: dict[str, Any]) -> dict[str, Any]:
        stored: dict[str, Any] = json.loads(json.dumps(content))
        self._tables[stored["object"]][stored["id"]] = stored
        self.account.keep_other(stored)
        return stored


def public(session: dict[str, Any]) -> dict[str, Any]:
    """A checkout session without the fields that only the sandbox uses."""
    return {name: value for name, value in session.items() if not name.startswith("_")}


def next_boundary(anchor: int, after: int, price: dict[str, Any]) -> int:
    """The first period boundary after `after`; the first period began at `anchor`."""
    interval: str = price["recurring"]["interval"]
    count: int = price["recurring"]["interval_count"]
    if interval in ("day", "week"):
        length = count * DAY * (7 if interval == "week" else 1)
        return anchor + ((after - anchor) // length + 1) * length
    months = count * (12 if interval == "year" else 1)
    steps = 1
    while (boundary := _months_later(anchor, steps * months)) <= after:
        steps += 1
    return boundary


def _months_later(anchor: int, months: int) -> int:
    """The same day of a later month, or the last day of that month."""
    first = datetime.fromtimestamp(anchor, UTC)
    year, month = divmod(first.month - 1 + months, 12)
    year, month = first.year + year, month + 1
    day = min(first.day, calendar.monthrange(year, month)[1])
    return int(first.replace(year=year, month=month, day=day).timestamp())


def _period(subscription: dict[str, Any]) -> tuple[int, int]:
    item = subscription["items"]["data"][0]
    return item["current_period_start"], item["current_period_end"]


def _listed(items: Any) -> list[dict[str, Any]]:
    """Form fields `items[0][…]` as a list."""
    return [items[key] for key in sorted(items)] if isinstance(items, dict) else list(items)


def _found(table: dict[str, dict[str, Any]], id: str, kind: str) -> dict[str, Any]:
    if id not in table:
        raise StripeRefusal(404, f"No such {kind}: '{id}'", code="resource_missing", param="id")
    return table[id]
