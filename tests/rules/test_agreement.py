"""Judging Stripe's summaries: what lag explains, and what it does not."""

from __future__ import annotations

from datetime import timedelta

import pytest

from billing_pipeline.rules.agreement import judge

JUST = timedelta(seconds=5)
LONG_AGO = timedelta(hours=2)


@pytest.mark.parametrize(
    ("expected", "certain", "pending", "replaces", "reported", "waited", "outcome"),
    [
        (10, None, (10,), False, 10.0, JUST, "agrees"),
        (10, None, (10,), False, 0.0, JUST, "lagging"),
        (10, None, (10,), False, 0.0, LONG_AGO, "mismatch"),
        (10, None, (10,), False, 20.0, JUST, "mismatch"),  # counted twice: no lag explains it
        (7, 10, (-3,), False, 10.0, JUST, "lagging"),
        (7, 10, (-3,), False, 6.0, JUST, "mismatch"),
        (10, 10, (), False, 9.0, JUST, "mismatch"),  # agreed before: nothing is on its way
        (10, None, (10,), False, 9.5, JUST, "lagging"),
        (5, 3, (4, 5), True, 3.0, JUST, "lagging"),
        (5, 3, (4, 5), True, 4.0, JUST, "lagging"),
        (5, 3, (4, 5), True, 8.0, JUST, "mismatch"),
        (5, None, (5,), True, 0.0, JUST, "lagging"),
        (0, None, (0,), True, 0.0, JUST, "agrees"),
    ],
)
def test_judgement(
    expected: int,
    certain: int | None,
    pending: tuple[int, ...],
    replaces: bool,
    reported: float,
    waited: timedelta,
    outcome: str,
) -> None:
    assert judge(reported, expected, certain, pending, replaces, waited) == outcome
