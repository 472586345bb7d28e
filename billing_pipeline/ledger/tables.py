"""The ledger's tables. This is the only place that says what each column means.

Everything in one ledger belongs to one Stripe account and mode, kept in `account`; the other
tables do not repeat it. The content of a meter event never changes after its insert. Its state
does, and every change is kept in `history`.
"""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    Column,
    Date,
    Index,
    Integer,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from billing_pipeline.database import BigInt, UtcDateTime, metadata
from billing_pipeline.rules.model import UNRESOLVED

IS_UNRESOLVED = "state IN ({})".format(", ".join(f"'{state}'" for state in sorted(UNRESOLVED)))

account = Table(
    "account",
    metadata,
    Column("id", Integer, primary_key=True),  # always 1: a ledger belongs to one account
    Column("account_id", String(255)),  # null when the key may not read it
    Column("livemode", Boolean, nullable=False),
    Column("seen_at", UtcDateTime, nullable=False),
)

meters = Table(
    "meters",
    metadata,
    Column("event_name", String(100), primary_key=True),
    Column("meter_id", String(255), nullable=False),
    Column("formula", String(20), nullable=False),
    Column("event_time_window", String(20)),
    Column("customer_key", String(100), nullable=False),
    Column("value_key", String(100), nullable=False),
    Column("changed_at", BigInt),  # unix seconds, by Stripe's clock
    Column("seen_at", UtcDateTime, nullable=False),
)

meter_events = Table(
    "meter_events",
    metadata,
    Column("id", BigInt, primary_key=True),
    # The content: written once.
    Column("usage_day", Date, nullable=False),
    Column("organization_id", Text, nullable=False),
    Column("event_name", String(100), nullable=False),
    Column("revision", Integer, nullable=False),
    Column("identifier", String(100), nullable=False, unique=True),
    Column("customer", String(255), nullable=False),
    Column("value", BigInt, nullable=False),  # what is sent
    Column("target", BigInt, nullable=False),  # what the cell should then be
    Column("timestamp", BigInt, nullable=False),  # unix seconds, UTC, inside usage_day
    # The segment it is about, [start, end) in unix seconds; null: the whole day.
    Column("segment_start", BigInt),
    Column("segment_end", BigInt),
    Column("snapshot_id", String(64)),
    Column("planned_at", UtcDateTime, nullable=False),
    Column("planned_by", String(255), nullable=False),  # the run
    # The state: each change is kept in `history`.
    Column("state", String(20), nullable=False),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("first_attempt_at", UtcDateTime),
    Column("last_attempt_at", UtcDateTime),
    Column("accepted_at", UtcDateTime),
    Column("rejected_at", UtcDateTime),
    Column("request_id", String(255)),
    Column("error_code", String(255)),
    Column("error_message", Text),
    UniqueConstraint("usage_day", "organization_id", "event_name", "revision"),
    # At most one unresolved event per cell, whoever plans at the same time.
    Index(
        "ux_meter_events_one_unresolved",
        "usage_day",
        "organization_id",
        "event_name",
        unique=True,
        sqlite_where=text(IS_UNRESOLVED),
        postgresql_where=text(IS_UNRESOLVED),
    ),
    Index("ix_meter_events_state_usage_day", "state", "usage_day"),
    Index("ix_meter_events_customer_timestamp", "customer", "timestamp"),
    Index("ix_meter_events_planned_by", "planned_by"),
)

holds = Table(
    "holds",
    metadata,
    # Usage on hold, with the reason.
    Column("usage_day", Date, primary_key=True),
    Column("organization_id", Text, primary_key=True),
    Column("event_name", String(100), primary_key=True),
    # Where the segment on hold begins, in unix seconds; 0: the whole day.
    Column("start_at", BigInt, primary_key=True, autoincrement=False, server_default="0"),
    Column("value", BigInt, nullable=False),  # what would be sent
    Column("target", BigInt, nullable=False),
    # How much more the usage is than what Stripe recorded and people decided about.
    Column("difference", BigInt, nullable=False, server_default="0"),
    Column("reason", String(50), nullable=False),
    Column("since", UtcDateTime, nullable=False),
)

days = Table(
    "days",
    metadata,
    # One row per usage day that was planned, or that is to be looked at.
    Column("usage_day", Date, primary_key=True),
    # The digest of the inputs it was planned from, as JSON; null: not planned whole yet.
    Column("planned_from", Text),
    # The instant (unix seconds) after which age alone changes its plan; null: never.
    Column("deadline", BigInt),
    # Whether something changed that may concern it, however old it is: look at it again.
    Column("look_again", Boolean, nullable=False),
    Column("planned_at", UtcDateTime),  # null: never yet
    Column("run", String(255), nullable=False),  # the last one that planned or marked it
    Column("counted", Text),  # JSON: its files and counts then, to say what has changed since
)

runs = Table(
    "runs",
    metadata,
    # Who ran what, and why. `planned_by` and `run` elsewhere name these.
    Column("run", String(255), primary_key=True),
    Column("who", Text, nullable=False),
    Column("reason", Text, nullable=False),  # empty: nobody gave one
    Column("undoes", String(255)),  # the run that it undoes; null: it reports usage
    Column("started_at", UtcDateTime, nullable=False),
)

undone_cells = Table(
    "undone_cells",
    metadata,
    # Cells of undone runs, until the day's snapshot changes or a person reports the day again.
    Column("usage_day", Date, primary_key=True),
    Column("organization_id", Text, primary_key=True),
    Column("event_name", String(100), primary_key=True),
    Column("snapshot_id", String(64), nullable=False),
    Column("reason", Text, nullable=False),
    Column("run", String(255), nullable=False),
    Column("undone_at", UtcDateTime, nullable=False),
)

gate_approvals = Table(
    "gate_approvals",
    metadata,
    # Implausible counts that a person let through: exactly the counts that they saw.
    Column("usage_day", Date, primary_key=True),
    Column("snapshot_id", String(64), primary_key=True),
    Column("reason", Text, nullable=False),
    Column("run", String(255), nullable=False),
    Column("approved_at", UtcDateTime, nullable=False),
)

adjustments = Table(
    "adjustments",
    metadata,
    # What people decided about usage that its own period no longer accepts.
    Column("id", String(40), primary_key=True),
    Column("usage_day", Date, nullable=False),
    Column("organization_id", Text, nullable=False),
    Column("event_name", String(100), nullable=False),
    Column("at", BigInt, nullable=False),  # unix seconds, in the segment that it is about
    Column("amount", BigInt, nullable=False),
    Column("hold_reason", String(50), nullable=False),  # why it could not be reported
    Column("approved", Boolean, nullable=False),  # else it was written off
    Column("reason", Text, nullable=False),
    Column("run", String(255), nullable=False),
    Column("decided_at", UtcDateTime, nullable=False),
)

adjustment_entries = Table(
    "adjustment_entries",
    metadata,
    # What adjustments add to cells: the amount leaves the closed cell and enters others. The
    # entries of an approved adjustment add up to zero.
    Column("id", BigInt, primary_key=True),
    Column("adjustment_id", String(40), nullable=False),
    Column("usage_day", Date, nullable=False, index=True),
    Column("organization_id", Text, nullable=False),
    Column("event_name", String(100), nullable=False),
    Column("at", BigInt, nullable=False),  # unix seconds, in the segment that it is about
    Column("amount", BigInt, nullable=False),
    Column("taken_out", Boolean, nullable=False),
)

history = Table(
    "history",
    metadata,
    Column("id", BigInt, primary_key=True),
    Column("at", UtcDateTime, nullable=False),
    Column("run", String(255), nullable=False),
    Column("usage_day", Date, nullable=False),
    Column("organization_id", Text, nullable=False),
    Column("event_name", String(100), nullable=False),
    Column("revision", Integer),  # null for usage on hold, which has no revision yet
    Column("from_state", String(20)),
    Column("to_state", String(20), nullable=False),
    Column("request_id", String(255)),
    Column("detail", Text),
    Index("ix_history_cell", "usage_day", "organization_id", "event_name"),
)

meter_errors = Table(
    "meter_errors",
    metadata,
    # What Stripe reported as not counted, by report and code. Reports name samples only, so that
    # `errors` may be more than `matched`, the events that were found.
    Column("event_id", String(255), primary_key=True),
    Column("code", String(255), primary_key=True),
    Column("meter_id", String(255)),  # null: no such meter was found
    Column("errors", Integer, nullable=False),
    Column("matched", Integer, nullable=False),
    Column("window_start", UtcDateTime, nullable=False),
    Column("window_end", UtcDateTime, nullable=False),
    Column("message", Text, nullable=False),
)

stripe_reads = Table(
    "stripe_reads",
    metadata,
    Column("day", Date, primary_key=True),  # on which they were made, UTC
    Column("used", BigInt, nullable=False),  # reads of summaries, those on lease included
)

verifications = Table(
    "verifications",
    metadata,
    # The last look at Stripe's summary of one customer, meter and day.
    Column("usage_day", Date, primary_key=True),
    Column("customer", String(255), primary_key=True),
    Column("event_name", String(100), primary_key=True),
    Column("expected", BigInt, nullable=False),
    Column("reported", String(64), nullable=False),  # as Stripe gave it: it may not be an integer
    Column("outcome", String(20), nullable=False),  # agrees, lagging or mismatch
    Column("checked_at", UtcDateTime, nullable=False),
    Column("run", String(255), nullable=False),
)
