"""The second half of the histories of test_simulation.py, in a file that another worker takes."""

from __future__ import annotations

import pytest

from billing_pipeline.simulation.runner import simulate


@pytest.mark.parametrize("first", range(101, 201, 10))
def test_every_history_ends_with_the_right_bill(first: int) -> None:
    wrong = {
        seed: found for seed in range(first, first + 10) if (found := simulate(seed).complaints)
    }
    assert wrong == {}
