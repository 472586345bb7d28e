"""WHAT WAS SAID: the durable record of every meter event, written before it is sent.

- `tables`   the schema; `migrations/` builds it
- `ledger`   planning, claiming, recording: each method is one transaction
- `locks`    one deliverer per ledger, released by the operating system when it dies
- `adjustments`  what people decided about usage that its own period takes no more
- `inquiry`  read-only questions, for people and reports
"""

from billing_pipeline.ledger.adjustments import Adjustment, AdjustmentBook
from billing_pipeline.ledger.inquiry import CellStory, Closed, HeldUsage, Inquiry, LeftOut
from billing_pipeline.ledger.ledger import (
    CUSTOMER_UNKNOWN,
    Checked,
    ErrorReport,
    Ledger,
    Outcome,
    Outgoing,
    ReportedError,
    Settled,
    StillSending,
)

__all__ = [
    "CUSTOMER_UNKNOWN",
    "Adjustment",
    "AdjustmentBook",
    "CellStory",
    "Checked",
    "Closed",
    "ErrorReport",
    "HeldUsage",
    "Inquiry",
    "Ledger",
    "LeftOut",
    "Outcome",
    "Outgoing",
    "ReportedError",
    "Settled",
    "StillSending",
]
