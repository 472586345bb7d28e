"""Run the history of a seed and judge how it ends; shorten a history that fails."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random

from billing_pipeline.database import open_database
from billing_pipeline.simulation.oracle import complaints, up_to_date_days_need_nothing
from billing_pipeline.simulation.world import World
from billing_pipeline.stripe_api import retrying

STEPS = (
    *["add_readings"] * 5, "remove_readings", *["run"] * 5, *["run_unfinished"] * 2, "verify",
    *["deliver_webhooks"] * 3, *["apply"] * 2, "backstop", "overlap", *["pass_time"] * 7,
    *["change_faults"] * 2, "remap", "check_out", "subscribe", *["change_subscription"] * 2,
    "delete_customer", "toggle_meter", "count", *["decide"] * 2, "approve_gate",
    "pass_month", *["undo"] * 2,
)  # fmt: skip
"""The steps of histories: methods of `World`, each listed as often as its weight.

A seed chooses by position: a change of the order or the number changes every history.
"""

CHECK_ONE_IN = 4
"""After one step in this many, the oracle checks the days that are called up to date."""

MOST_STEPS = 40
"""Steps of a history, at most, after the first."""


@dataclass
class Verdict:
    """The outcome of a history."""

    seed: int
    complaints: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    requests: int = 0
    crashes: int = 0


Step = tuple[str, int]
"""The name of a step, and the seed of its details."""


def history(seed: int) -> list[Step]:
    """The history of a seed."""
    chance = Random(seed)
    length = chance.randint(8, MOST_STEPS)
    return [("add_readings", chance.getrandbits(32))] + [
        (chance.choice(STEPS), chance.getrandbits(32)) for _ in range(length)
    ]


def simulate(seed: int, steps: Sequence[Step] | None = None) -> Verdict:
    """Run a history (default: that of the seed), and judge how it ends."""
    chosen = history(seed) if steps is None else steps
    with (
        tempfile.TemporaryDirectory(prefix="simulation-", dir=_fast_folder()) as folder,
        no_backoff(),
    ):
        world = World(Path(folder), template_database(), seed)
        try:
            for name, detail in chosen:
                getattr(world, name)(Random(detail))
                if detail % CHECK_ONE_IN == 0:
                    world.crash_points.disarm()
                    world.complaints += up_to_date_days_need_nothing(world, world.context("check"))
            rounds = world.become_quiet()
            found = complaints(world)
            if rounds < 0:
                found.append("it never becomes quiet")
        finally:
            world.close()
    return Verdict(seed, found, world.log, sum(world.sandbox.seen.values()), world.crashes)


def simulate_all(
    seeds: Sequence[int], processes: int, watch: Callable[[int], None]
) -> list[Verdict]:
    """Simulate seeds in several processes. `watch` is called with the number that are done."""
    verdicts = []
    with ProcessPoolExecutor(processes) as pool:
        for number, verdict in enumerate(pool.map(simulate, seeds), start=1):
            verdicts.append(verdict)
            watch(number)
    return verdicts


def shorten(seed: int) -> tuple[list[Step], Verdict]:
    """Remove as many steps of a failing history as possible, so that it still fails."""
    steps = history(seed)
    verdict = simulate(seed, steps)
    size = max(1, len(steps) // 2)
    while size:
        start = 0
        while start < len(steps):
            fewer = steps[:start] + steps[start + size :]
            attempt = simulate(seed, fewer)
            if attempt.complaints:
                steps, verdict = fewer, attempt
            else:
                start += size
        size //= 2
    return steps, verdict


@cache
def template_database() -> Path:
    """A database with its schema, to copy."""
    folder = tempfile.mkdtemp(prefix="simulation-template-", dir=_fast_folder())
    path = Path(folder) / "billing.db"
    engine = open_database(f"sqlite:///{path}")
    with engine.begin() as connection:
        connection.exec_driver_sql("SELECT 1")
    engine.dispose()
    return path


def _fast_folder() -> str | None:
    """A folder in memory, if there is one: no file here has to survive a power cut."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


@contextmanager
def no_backoff() -> Iterator[None]:
    """Retry without waiting, and log nothing about tasks that died with their process."""
    before = retrying.FIRST_DELAY, retrying.LONGEST_DELAY
    logger = logging.getLogger("asyncio")
    level = logger.level
    retrying.FIRST_DELAY = retrying.LONGEST_DELAY = 0.0
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        retrying.FIRST_DELAY, retrying.LONGEST_DELAY = before
        logger.setLevel(level)
