"""The rows of a reconciliation, as values."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

from billing_pipeline.customers.directory import BillingPeriod
from billing_pipeline.rules.reconciliation import Cause, Reconciled
from billing_pipeline.rules.timestamps import day_of


@dataclass(frozen=True, slots=True)
class RowPeriod:
    """The time of a row: [start, end) in unix seconds, of one customer or of none.

    `billing` is None for a time without a billing period.
    """

    start: int
    end: int
    customer: str | None
    billing: BillingPeriod | None = None

    @property
    def days(self) -> list[date]:
        """The UTC days that it touches."""
        first, last = day_of(self.start), day_of(self.end - 1)
        return [first + timedelta(days=n) for n in range((last - first).days + 1)]


@dataclass(frozen=True, slots=True)
class DayShare:
    """What one usage day gives to a row: [start, end) in unix seconds, and units."""

    day: date
    organization: str
    start: int
    end: int
    readings: int
    snapshot: int
    ledger: int
    causes: tuple[Cause, ...]


@dataclass(frozen=True)
class Row:
    """One organization and meter in one period. Organizations that share a customer are one row."""

    period: RowPeriod
    organizations: tuple[str, ...]
    meter: str
    figures: Reconciled
    status: str
    """final, draft, open (not over, or no invoice yet), missing (no invoice, though there should
    be one by now), none (no billing period)."""
    days: tuple[DayShare, ...] = ()
    """Day by day; only if single organizations were asked for."""

    @property
    def is_right(self) -> bool:
        """Whether every difference has a cause."""
        return not self.figures.unexplained

    def as_json(self) -> dict[str, Any]:
        """As `billing reconcile --json` prints it."""
        period, figures = self.period, self.figures
        return {
            "organization_id": ", ".join(self.organizations),
            "customer": period.customer,
            "meter": self.meter,
            "period_start": _instant(period.start),
            "period_end": _instant(period.end),
            "subscription": period.billing and period.billing.subscription,
            "invoice": period.billing and period.billing.invoice_id,
            "status": self.status,
            "readings": figures.readings,
            "snapshot": figures.snapshot,
            "ledger": figures.ledger,
            "stripe": figures.stripe,
            "invoiced": figures.invoiced,
            "differences": {str(step): amount for step, amount in figures.differences.items()},
            "causes": [
                {"step": str(cause.step), "text": cause.text, "amount": cause.amount}
                for cause in figures.causes
            ],
            "unexplained": [str(step) for step in figures.unexplained],
        }


@dataclass(frozen=True)
class Verified:
    """How much of a month's usage Stripe's summaries confirm. Counts are of cells."""

    cells: int
    verified: int
    hours: float | None
    """From a day's end until its last cell was first verified: the median over days."""

    @property
    def share(self) -> float:
        """Between 0 and 1; of nothing, 1."""
        return self.verified / self.cells if self.cells else 1.0


@dataclass(frozen=True)
class Reconciliation:
    """A month, row by row. `problems` are days and figures that could not be read."""

    month: date
    rows: list[Row]
    verified: Verified
    problems: list[str] = field(default_factory=list)

    @property
    def is_right(self) -> bool:
        """Whether every difference has a cause, and everything could be read."""
        return not self.problems and all(row.is_right for row in self.rows)

    def as_json(self) -> dict[str, Any]:
        """As `billing reconcile --json` prints it."""
        return {
            "month": f"{self.month:%Y-%m}",
            "rows": [row.as_json() for row in self.rows],
            "verified": {**asdict(self.verified), "share": self.verified.share},
            "problems": self.problems,
            "right": self.is_right,
        }


def _instant(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
