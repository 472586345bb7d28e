"""Histories from seeds: production code in worlds full of faults must end right, every time.

More of them: `make simulate`. A failing one: `billing simulate --seeds N` makes it short.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from billing_pipeline.simulation.runner import history, shorten, simulate

SEEDS = 100
"""The next hundred are in test_simulation_goes_on.py, so that two workers share them."""


@pytest.mark.parametrize("first", range(1, SEEDS + 1, 10))
def test_every_history_ends_with_the_right_bill(first: int) -> None:
    wrong = {
        seed: found for seed in range(first, first + 10) if (found := simulate(seed).complaints)
    }
    assert wrong == {}


def test_a_seed_decides_everything() -> None:
    once, again = simulate(8), simulate(8)
    assert history(8) == history(8)
    assert (once.log, once.requests, once.crashes) == (again.log, again.requests, again.crashes)


def test_it_does_not_depend_on_the_order_of_sets() -> None:
    """Python orders sets by a secret of each process: all processes must print the same."""
    program = (
        "from billing_pipeline.simulation.runner import simulate;"
        "[print(s, v.requests, v.log) for s in (8, 226) for v in [simulate(s)]]"
    )
    stories = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": secret},
            check=True,
            capture_output=True,
            timeout=120,
        ).stdout
        for secret in ("1", "2", "3")
    }
    assert len(stories) == 1


def test_the_oracle_sees_a_bill_that_is_wrong_and_the_history_is_made_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Usage of today counts as too old: it is on hold, and the world shows that this is wrong.
    monkeypatch.setattr("billing_pipeline.rules.planning.too_old", lambda _stamp, _now: True)
    assert simulate(1).complaints
    steps, verdict = shorten(1)
    assert len(steps) < len(history(1))
    assert verdict.complaints
