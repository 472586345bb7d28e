"""What a command works with: the context, closed when the command ends, and who runs it."""

from __future__ import annotations

import getpass
import os
from contextlib import ExitStack
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING

from billing_pipeline.cli.options import usage_days

if TYPE_CHECKING:
    from billing_pipeline.operations.context import Actor, Context

at_exit = ExitStack()
"""What is open while a command runs; `main` closes it."""


def open_context(*, needs_key: bool = False) -> Context:
    """Open the context until the command ends. Raises ConfigurationError."""
    from billing_pipeline.operations.context import Context
    from billing_pipeline.settings import load_settings

    settings = load_settings()
    if needs_key:
        settings.require_key()
    run = f"cli-{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.getpid()}"
    return at_exit.enter_context(Context.open(settings, run))


def open_days(first: date, last: date, *, needs_key: bool = False) -> tuple[Context, list[date]]:
    """The context, and the days from `first` to `last`. Raises BadParameter, ConfigurationError."""
    from billing_pipeline.settings import load_settings

    days = usage_days(first, last, load_settings().billing_start_day)
    return open_context(needs_key=needs_key), days


def actor(reason: str) -> Actor:
    """The person at the command line, as the operating system names them."""
    from billing_pipeline.operations.context import Actor

    try:
        return Actor(getpass.getuser(), reason)
    except (KeyError, OSError):  # a container's user without a name
        return Actor(f"user {os.getuid()}", reason)


def record_decision(context: Context, reason: str) -> None:
    """Record who decided something in this run, and why."""
    from billing_pipeline.ledger.decisions import record_run

    by = actor(reason.strip())
    context.ledger.write(record_run, by.who, by.reason, context.clock())
