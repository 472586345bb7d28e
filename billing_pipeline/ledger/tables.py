"""The ledger's tables. What each column means is said here and nowhere else.

Everything in one ledger belongs to one Stripe account and mode, kept in `account`; the other
tables therefore need not repeat it. What a meter event says never changes after its insert;
only its state does, and every change is kept in `history`.
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

account = Table(
    "account",
    metadata,
    Column("id", Integer, primary_key=True),  # always 1: a ledger speaks for one account
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
    # What is said: written once.
    Column("usage_day", Date, nullable=False),
    Column("organization_id", Text, nullable=False),
    Column("event_name", String(100), nullable=False),
    Column("revision", Integer, nullable=False),
    Column("identifier", String(100), nullable=False, unique=True),
    Column("customer", String(255), nullable=False),
    Column("value", BigInt, nullable=False),  # what is sent
    Column("target", BigInt, nullable=False),  # what the cell should then be
    Column("timestamp", BigInt, nullable=False),  # unix seconds, UTC, inside usage_day
    # The part of the day it speaks of, [start, end) in unix seconds; null: the whole day.
    Column("segment_start", BigInt),
    Column("segment_end", BigInt),
    Column("snapshot_id", String(64)),
    Column("planned_at", UtcDateTime, nullable=False),
    Column("planned_by", String(255), nullable=False),  # the run
    # What is known about it: changes, each change kept in `history`.
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
        "ux_meter_events_one_unsettled",
        "usage_day",
        "organization_id",
        "event_name",
        unique=True,
        sqlite_where=text("state IN ('planned', 'sending', 'ambiguous')"),
        postgresql_where=text("state IN ('planned', 'sending', 'ambiguous')"),
    ),
    Index("ix_meter_events_state_usage_day", "state", "usage_day"),
    Index("ix_meter_events_customer_timestamp", "customer", "timestamp"),
    Index("ix_meter_events_planned_by", "planned_by"),
)

held_usage = Table(
    "held_usage",
    metadata,
    Column("usage_day", Date, primary_key=True),
    Column("organization_id", Text, primary_key=True),
    Column("event_name", String(100), primary_key=True),
    # Where the held part of a day with segments begins, in unix seconds; 0: it is the whole day.
    Column("start_at", BigInt, primary_key=True, autoincrement=False, server_default="0"),
    Column("value", BigInt, nullable=False),  # what would be sent
    Column("target", BigInt, nullable=False),
    # How much more the usage is than Stripe has of it and people have decided on.
    Column("difference", BigInt, nullable=False, server_default="0"),
    Column("reason", String(50), nullable=False),
    Column("since", UtcDateTime, nullable=False),
)

planned_days = Table(
    "planned_days",
    metadata,
    # What each day was last planned from: its snapshot, how it was split, who pays. What is newer
    # still has to be; an empty id: it was counted since, or something was decided about it.
    Column("usage_day", Date, primary_key=True),
    Column("snapshot_id", String(64), nullable=False),
    Column("planned_at", UtcDateTime),  # null: never yet
    Column("run", String(255), nullable=False),
    Column("inputs", Text),  # JSON: its files and counts then, for saying what has changed since
    Column("meters", Text),  # JSON: the names of the meters that it was planned for
)

runs = Table(
    "runs",
    metadata,
    # Who ran what, and why. `planned_by` and `run` elsewhere name these.
    Column("run", String(255), primary_key=True),
    Column("who", Text, nullable=False),
    Column("reason", Text, nullable=False),  # empty: nobody gave one
    Column("undoes", String(255)),  # the run that it undoes; null: it states usage
    Column("started_at", UtcDateTime, nullable=False),
)

undone_cells = Table(
    "undone_cells",
    metadata,
    # What a person took back, until the day's snapshot is another one or a person runs it again.
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
    # What a person let through although it is implausible: exactly the counts that they saw.
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
    Column("at", BigInt, nullable=False),  # in the part of the day that it is about
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
    # What adjustments add to cells: carried out of the closed one, and into others. Those of an
    # approved adjustment add up to zero.
    Column("id", BigInt, primary_key=True),
    Column("adjustment_id", String(40), nullable=False),
    Column("usage_day", Date, nullable=False, index=True),
    Column("organization_id", Text, nullable=False),
    Column("event_name", String(100), nullable=False),
    Column("at", BigInt, nullable=False),  # unix seconds: the part of the day that holds it
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
    Column("revision", Integer),  # null for held usage, which has no revision yet
    Column("from_state", String(20)),
    Column("to_state", String(20), nullable=False),
    Column("request_id", String(255)),
    Column("detail", Text),
    Index("ix_history_cell", "usage_day", "organization_id", "event_name"),
)

meter_errors = Table(
    "meter_errors",
    metadata,
    # What Stripe reported as not counted, by report and code. Its samples are samples, not
    # lists: `errors` may be more than the `matched` events that they name.
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
    Column("reported", String(64), nullable=False),  # as Stripe said it: it may not be an integer
    Column("outcome", String(20), nullable=False),  # agrees, lagging or mismatch
    Column("checked_at", UtcDateTime, nullable=False),
    Column("run", String(255), nullable=False),
)
