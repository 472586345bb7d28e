"""The errors of a day as messages for people."""

from __future__ import annotations

import duckdb

from billing_pipeline.errors import BillingError


def day_error(error: Exception, memory_limit: str) -> str:
    """Why a day could not be counted, and what to do if the memory limit is the cause."""
    if isinstance(error, duckdb.OutOfMemoryException):
        return (
            f"not enough memory to count this day: raise BILLING_MEMORY_LIMIT (now {memory_limit})"
        )
    if isinstance(error, BillingError):
        return str(error)
    return f"{type(error).__name__}: {error}"
