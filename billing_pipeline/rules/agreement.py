"""Whether Stripe's summary agrees with what was accepted, allowing for its lag."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from itertools import combinations
from typing import Literal

from billing_pipeline.stripe_facts import LAG_ALLOWANCE

Agreement = Literal["agrees", "lagging", "mismatch"]


def judge(
    reported: float,
    expected: int,
    certain: int | None,
    pending: Sequence[int],
    replaces: bool,
    waited: timedelta,
) -> Agreement:
    """Judge one customer, meter and day.

    `reported` is Stripe's figure, `expected` the sum of everything accepted, or the newest value.
    `certain` was verified before (None: nothing), `pending` are the values accepted since; Stripe
    has had `waited` to show the last of them. For LAG_ALLOWANCE, lag explains a figure between
    `certain` and `expected`; nothing else does.
    """
    if reported == expected:
        return "agrees"
    if waited > LAG_ALLOWANCE:
        return "mismatch"
    start = certain or 0
    if replaces:
        on_the_way = reported in (start, *pending)
    else:
        lowest = start + sum(value for value in pending if value < 0)
        highest = start + sum(value for value in pending if value > 0)
        on_the_way = lowest <= reported <= highest
    return "lagging" if on_the_way and pending else "mismatch"


MOST_PENDING = 10
"""With more unverified events of one cell, a summary is not used as proof."""


def possible_figures(
    certain: int | None, pending: Sequence[int], replaces: bool
) -> set[int] | None:
    """Every figure that a lagging summary may show: any of the pending events may be missing.

    None where there are too many to tell.
    """
    start = certain or 0
    if replaces:
        return {start, *pending}
    if len(pending) > MOST_PENDING:
        return None
    figures = {start}
    for value in pending:
        figures |= {figure + value for figure in figures}
    return figures


def missing_from(
    certain: int | None, pending: Sequence[int], replaces: bool, reported: float | None
) -> list[int] | None:
    """Which of the pending events must be missing for a summary to show this figure.

    Returns indexes of `pending`: as few as possible, the latest rather than the earliest; None if
    no missing events explain the figure. `reported` is None if the summary has no row. Without
    these events the ledger has exactly the figure that Stripe shows.
    """
    every = list(range(len(pending)))
    if replaces:
        if reported is not None and reported in pending:
            last = max(n for n in every if pending[n] == reported)
            return every[last + 1 :]
        return every if reported == certain else None
    if len(pending) > MOST_PENDING:
        return every if (reported or 0) == (certain or 0) else None
    total = (certain or 0) + sum(pending)
    for number in range(len(pending) + 1):
        for lost in combinations(reversed(every), number):
            if total - sum(pending[n] for n in lost) == (reported or 0):
                return sorted(lost)
    return None
