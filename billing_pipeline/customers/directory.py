"""The directory of organizations and their Stripe customers.

An imported customer wins over the ones that Stripe events name. If events name several customers
that are not deleted, and none is imported, the organization is undecided: its usage is on hold
until a person imports the right customer.
"""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import astuple, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, and_, select

from billing_pipeline.customers.read_model import DELETED, DRAFT
from billing_pipeline.customers.tables import (
    billing_periods,
    customers,
    deleted_customers,
    invoices,
    learned_customers,
    subscriptions,
)
from billing_pipeline.database import upsert_all, writing
from billing_pipeline.errors import ConfigurationError
from billing_pipeline.rules.eligibility import Eligibility, Payers, Period, Policy, Subscription
from billing_pipeline.stripe_facts import CLOSING_REASONS

LONGEST = 255
"""Characters of the longest id, in the readings and in Stripe."""

COLUMNS = ("organization_id", "stripe_customer_id")


@dataclass(frozen=True)
class ImportReport:
    """The result of an import: counts of organizations, and the skipped lines with the reason."""

    added: int = 0
    changed: int = 0
    unchanged: int = 0
    problems: list[str] = field(default_factory=list)


NEVER = 2**62
"""Unix seconds later than any end."""


@dataclass(frozen=True)
class Known:
    """The customers of organizations: imported by people, and learned from Stripe events."""

    imported: dict[str, str]
    learned: dict[str, set[str]]
    deleted: set[str]

    @property
    def customers(self) -> dict[str, str]:
        """By organization, its customer, if it is decided."""
        return {o: c for o, (c, *others) in self._by_events().items() if not others} | self.imported

    @property
    def undecided(self) -> dict[str, list[str]]:
        """By undecided organization, the customers that Stripe events name."""
        several = {o: found for o, found in self._by_events().items() if len(found) > 1}
        return {o: found for o, found in several.items() if o not in self.imported}

    def contradictions(self) -> list[str]:
        """Messages about everything that a person should check."""
        messages = [
            f"{organization}: Stripe events name {len(found)} customers ({', '.join(found)}); "
            "its usage is on hold until the right one is imported"
            for organization, found in self.undecided.items()
        ]
        for organization, customer in self.imported.items():
            other = sorted(self.learned.get(organization, set()) - {customer} - self.deleted)
            if other:
                messages.append(
                    f"{organization}: imported as {customer}, but Stripe events name "
                    f"{', '.join(other)}; the imported one is used"
                )
        messages += [
            f"{organization}: its customer {customer} was deleted in Stripe; its usage is on hold"
            for organization, customer in self.customers.items()
            if customer in self.deleted
        ]
        return sorted(messages)

    def _by_events(self) -> dict[str, list[str]]:
        """Learned customers by organization; deleted ones only if there are no others."""
        return {
            organization: sorted((found - self.deleted) or found)
            for organization, found in self.learned.items()
        }


@dataclass(frozen=True, slots=True)
class ClosingPeriod:
    """A billing period whose invoice is a draft; times in unix seconds."""

    invoice_id: str
    customer: str
    start: int
    end: int
    finalizes_at: int | None


@dataclass(frozen=True, slots=True)
class FinalPeriod:
    """A billing period whose invoice is final. Usage that Stripe accepts later is not billed."""

    invoice_id: str
    customer: str
    start: int
    end: int
    finalized_at: datetime


@dataclass(frozen=True, slots=True)
class BillingPeriod:
    """A billing period of a subscription, cut short if that ended inside it; unix seconds."""

    subscription: str
    customer: str
    start: int
    end: int
    meters: frozenset[str] | None = None
    """Ids of the meters that it bills; None if unknown."""
    cut_short: bool = False
    """Whether the subscription ended inside it."""
    status: str | None = None
    """The subscription's present status; None if no event has shown it."""
    invoice_id: str | None = None
    invoice_status: str | None = None
    finalized_at: int | None = None

    @property
    def is_final(self) -> bool:
        """Whether its invoice is final and bills no further usage."""
        return self.invoice_status not in (None, DRAFT, DELETED)

    def bills(self, meter_id: str | None) -> bool:
        """Whether its invoice may bill usage of a meter."""
        return self.meters is None or meter_id in self.meters


class CustomerDirectory:
    """Organizations, their customers, and the customers' subscriptions, in one database."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def known(self, file: Path | None = None) -> Known:
        """The customers of all organizations, as if `file` were imported."""
        learned: dict[str, set[str]] = defaultdict(set)
        with self._engine.begin() as connection:
            rows = connection.execute(
                select(customers.c.organization_id, customers.c.stripe_customer_id)
            )
            imported = {row.organization_id: row.stripe_customer_id for row in rows}
            for row in connection.execute(select(learned_customers)):
                learned[row.organization_id].add(row.stripe_customer_id)
            deleted = set(connection.scalars(select(deleted_customers.c.stripe_customer_id)))
        if file is not None:
            imported |= _read(file)[0]
        return Known(imported, dict(learned), deleted)

    def mapping(self, file: Path | None = None) -> dict[str, str]:
        """The Stripe customer of each organization, as if `file` were imported."""
        return self.known(file).customers

    def payers(self, policy: Mapping[str, Policy], file: Path | None = None) -> Payers:
        """Who pays today, and what may be reported for them, as if `file` were imported.

        `policy` gives the meaning of a subscription's status.
        """
        known = self.known(file)
        eligibility = self._eligibility(policy)
        for customer in known.deleted:
            eligibility[customer] = replace(eligibility.get(customer, Eligibility()), deleted=True)
        return Payers(known.customers, frozenset(known.undecided), eligibility)

    def _eligibility(self, policy: Mapping[str, Policy]) -> dict[str, Eligibility]:
        by_customer: dict[str, list[Subscription]] = defaultdict(list)
        periods: dict[str, set[Period]] = defaultdict(set)
        with self._engine.begin() as connection:
            found = connection.execute(select(subscriptions)).all()
            seen = connection.execute(select(billing_periods)).all()
            billed = connection.execute(
                select(invoices).where(invoices.c.subscription_id.is_not(None))
            ).all()
        for row in found:
            by_customer[row.stripe_customer_id].append(
                Subscription(
                    row.subscription_id,
                    policy.get(row.status),
                    row.start_at,
                    row.end_at,
                    None if row.meters is None else frozenset(json.loads(row.meters)),
                )
            )
        for row in seen:
            period = Period(row.subscription_id, row.start_at, row.end_at)
            periods[row.subscription_id].add(period)
        shown = {row.subscription_id for row in found}
        for row in billed:
            if row.subscription_id not in shown:
                # Only its invoices show it: its usage is reported, until its periods are closed.
                shown.add(row.subscription_id)
                by_customer[row.stripe_customer_id].append(
                    Subscription(row.subscription_id, Policy.REPORT, row.start_at)
                )
            if row.status not in (DRAFT, DELETED) and row.billing_reason in CLOSING_REASONS:
                period = Period(row.subscription_id, row.start_at, row.end_at, final=True)
                periods[row.subscription_id].add(period)
        return {
            customer: Eligibility(
                tuple(owned), tuple(sorted({p for s in owned for p in periods[s.id]}, key=astuple))
            )
            for customer, owned in by_customer.items()
        }

    def closing_periods(self) -> list[ClosingPeriod]:
        """The periods whose invoice is still a draft. Usage that is missing there is urgent."""
        with self._engine.begin() as connection:
            rows = connection.execute(
                select(invoices)
                .where(
                    invoices.c.status == DRAFT,
                    invoices.c.subscription_id.is_not(None),
                    invoices.c.start_at < invoices.c.end_at,
                )
                .order_by(invoices.c.end_at, invoices.c.invoice_id)
            ).all()
        return [
            ClosingPeriod(
                row.invoice_id, row.stripe_customer_id, row.start_at, row.end_at, row.finalizes_at
            )
            for row in rows
            if row.billing_reason in CLOSING_REASONS
        ]

    def final_periods(self) -> list[FinalPeriod]:
        """The periods whose invoice is final, if it shows when it was finalized."""
        with self._engine.begin() as connection:
            rows = connection.execute(
                select(invoices).where(
                    invoices.c.status.not_in([DRAFT, DELETED]),
                    invoices.c.subscription_id.is_not(None),
                    invoices.c.finalized_at.is_not(None),
                )
            ).all()
        return [
            FinalPeriod(
                row.invoice_id,
                row.stripe_customer_id,
                row.start_at,
                row.end_at,
                datetime.fromtimestamp(row.finalized_at, UTC),
            )
            for row in rows
            if row.billing_reason in CLOSING_REASONS
        ]

    def billing_periods(self, first: int, last: int) -> list[BillingPeriod]:
        """The billing periods that overlap [first, last) (unix seconds), with their invoices.

        A period ends early if the subscription ended inside it, or the next period began.
        """
        with self._engine.begin() as connection:
            owners = {row.subscription_id: row for row in connection.execute(select(subscriptions))}
            seen = connection.execute(
                select(billing_periods)
                .where(billing_periods.c.end_at > first)
                .order_by(billing_periods.c.start_at, billing_periods.c.end_at)
            ).all()
            billed = connection.execute(
                select(invoices).where(
                    invoices.c.subscription_id.is_not(None), invoices.c.end_at > first
                )
            ).all()
        invoice_of = {
            (row.subscription_id, row.start_at, row.end_at): row
            for row in billed
            if row.billing_reason in CLOSING_REASONS
        }
        by_subscription: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for row in seen:
            by_subscription[row.subscription_id].append((row.start_at, row.end_at))
        found = []
        for subscription, periods in by_subscription.items():
            owner = owners.get(subscription)
            ended_at = NEVER if owner is None or owner.end_at is None else owner.end_at
            for start, planned_end in _consecutive(periods):
                end = min(planned_end, ended_at)
                invoice = invoice_of.get((subscription, start, end)) or invoice_of.get(
                    (subscription, start, planned_end)
                )
                known = owner is not None or invoice is not None
                if known and max(first, start) < min(last, end):
                    cut_short = end < planned_end
                    found.append(
                        _billing_period(subscription, start, end, cut_short, owner, invoice)
                    )
        return sorted(found, key=lambda period: (period.start, period.subscription))

    def subscriptions_of(self, customer_ids: Collection[str]) -> dict[str, list[dict[str, Any]]]:
        """The subscriptions of these customers with their periods, to be shown."""
        with self._engine.begin() as connection:
            found = connection.execute(
                select(subscriptions).order_by(subscriptions.c.subscription_id)
            ).all()
            seen = connection.execute(
                select(billing_periods, invoices.c.invoice_id, invoices.c.status)
                .join(
                    invoices,
                    and_(
                        invoices.c.subscription_id == billing_periods.c.subscription_id,
                        invoices.c.start_at == billing_periods.c.start_at,
                        invoices.c.end_at == billing_periods.c.end_at,
                    ),
                    isouter=True,
                )
                .order_by(billing_periods.c.start_at, billing_periods.c.end_at)
            ).all()
        periods: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in seen:
            periods[row.subscription_id].append(
                {
                    "start": _instant(row.start_at),
                    "end": _instant(row.end_at),
                    "invoice": row.invoice_id,
                    "invoice_status": row.status,
                    "final": row.status not in (None, DRAFT, DELETED),
                }
            )
        by_customer: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in found:
            if row.stripe_customer_id in customer_ids:
                by_customer[row.stripe_customer_id].append(
                    {
                        "id": row.subscription_id,
                        "status": row.status,
                        "plan": row.plan,
                        "start": _instant(row.start_at),
                        "end": None if row.end_at is None else _instant(row.end_at),
                        "as_of": row.as_of.isoformat(),
                        "periods": periods[row.subscription_id],
                    }
                )
        return dict(by_customer)

    def import_file(self, path: Path, now: datetime) -> ImportReport:
        """Import the organization-to-customer mapping. Organizations not in it keep their customer.

        A changed customer applies to days not yet reported: reported usage stays where it is.
        Raises ConfigurationError if the file cannot be read or lacks a column.
        """
        wanted, problems = _read(path)
        known = self.known().imported
        report = ImportReport(
            added=sum(o not in known for o in wanted),
            changed=sum(o in known and known[o] != c for o, c in wanted.items()),
            unchanged=sum(known.get(o) == c for o, c in wanted.items()),
            problems=problems,
        )
        rows = [
            {
                "organization_id": organization_id,
                "stripe_customer_id": customer,
                "source": str(path),
                "changed_at": now,
            }
            for organization_id, customer in wanted.items()
            if known.get(organization_id) != customer
        ]
        with writing(self._engine) as connection:
            upsert_all(connection, customers, ["organization_id"], rows)
        return report


def _billing_period(
    subscription: str, start: int, end: int, cut_short: bool, owner: Any, invoice: Any
) -> BillingPeriod:
    """A period from the rows of its subscription and its invoice; one of them may be None."""
    meters = None if owner is None or owner.meters is None else frozenset(json.loads(owner.meters))
    return BillingPeriod(
        subscription,
        (invoice if owner is None else owner).stripe_customer_id,
        start,
        end,
        meters,
        cut_short,
        None if owner is None else owner.status,
        None if invoice is None else invoice.invoice_id,
        None if invoice is None else invoice.status,
        None if invoice is None else invoice.finalized_at,
    )


def _consecutive(periods: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """A subscription's periods without overlaps: each ends when the next one begins."""
    ends: dict[int, int] = {}
    for start, end in periods:
        ends[start] = min(end, ends.get(start, end))
    starts = sorted(ends)
    following = [*starts[1:], NEVER]
    return [
        (start, min(ends[start], after)) for start, after in zip(starts, following, strict=True)
    ]


def _instant(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def _read(path: Path) -> tuple[dict[str, str], list[str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the customers file {path} cannot be read: {error}") from None
    reader = csv.DictReader(io.StringIO(text, newline=""))
    missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
    if missing:
        raise ConfigurationError(
            f"the customers file {path} has no column {' and no column '.join(missing)}; "
            f"its first line must be {','.join(COLUMNS)}"
        )
    found: dict[str, set[str]] = defaultdict(set)
    problems = []
    for line, row in enumerate(reader, start=2):
        # Organization ids are exact, spaces included: they must equal the ids in the readings.
        organization_id, customer = (row[COLUMNS[0]] or "", (row[COLUMNS[1]] or "").strip())
        if any("\0" in text or len(text) > LONGEST for text in (organization_id, customer)):
            problems.append(
                f"{path} line {line}: an id is longer than {LONGEST} characters or has a NUL"
            )
        elif organization_id.strip() and customer:
            found[organization_id].add(customer)
        elif organization_id or customer:
            problems.append(f"{path} line {line}: the organization or the customer is missing")
    for organization_id, ids in found.items():
        if len(ids) > 1:
            problems.append(
                f"{path}: {organization_id} has {len(ids)} customers ({', '.join(sorted(ids))}); "
                "none of them was imported"
            )
    return {o: next(iter(ids)) for o, ids in found.items() if len(ids) == 1}, problems
