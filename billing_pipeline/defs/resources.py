"""The context of operations as a Dagster resource, and the outcome of a run."""

from dataclasses import dataclass, field
from datetime import date

from billing_pipeline.operations.bill import ReportOutcome
from billing_pipeline.operations.context import Context, Progress, utc_now
from billing_pipeline.settings import load_settings
from billing_pipeline.stripe_api.client import Clock
from billing_pipeline.stripe_api.verification import VerificationReport
from billing_pipeline.usage.activity import CountedDay


@dataclass
class DayOutcome:
    """The counts of a day, or the error for which it was not counted."""

    counted: CountedDay | None = None
    snapshot_id: str | None = None
    error: str | None = None


@dataclass
class RunOutcome:
    """What a run did, for a caller in the same process."""

    days: dict[date, DayOutcome] = field(default_factory=dict)
    reporting: ReportOutcome = field(default_factory=ReportOutcome)
    verification: VerificationReport = field(default_factory=VerificationReport)
    configuration_error: str | None = None


class Billing:
    """Opens a context when a run needs it, never before: loading definitions needs no key.

    `progress`, `outcome` and `unattended` are for a run in the process of the command line:
    a person who waits would rather hear at once that Stripe is away than after retries.
    """

    def __init__(
        self, clock: Clock = utc_now, progress: Progress | None = None, *, unattended: bool = True
    ) -> None:
        self.clock = clock
        self.progress = progress
        self.unattended = unattended
        self.outcome = RunOutcome()

    def open(self, run: str) -> Context:
        """A context with the present environment. Raises ConfigurationError."""
        return Context.open(load_settings(), run, self.clock)
