"""Mutation check: each money rule broken on purpose, one at a time; the simulation must notice.

`python -m tests.simulation.mutants` copies the code, breaks one rule in the copy, and lives
through histories until one ends wrong. It fails if any broken rule is not found. Each history
takes about a second; a rule that survives costs several minutes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
MOST_SEEDS = 400
SECONDS = 1800


@dataclass(frozen=True)
class Mutant:
    """A rule, and how it is broken: `old` stands exactly once in `file`."""

    rule: str
    file: str
    old: str
    new: str


PLANNING = "billing_pipeline/rules/planning.py"
DAY_INPUTS = "billing_pipeline/operations/day_inputs.py"
EVENTS = "billing_pipeline/ledger/events.py"

MUTANTS = (
    Mutant(
        "an ambiguous event is not sent again after Stripe may have forgotten its identifier",
        "billing_pipeline/stripe_facts.py",
        "RESEND_WINDOW = timedelta(hours=23)",
        "RESEND_WINDOW = timedelta(days=33)",
    ),
    Mutant(
        "a correction is the signed difference, downwards too",
        PLANNING,
        "value = target if meter.replaces else owed",
        "value = target if meter.replaces else max(owed, 0)",
    ),
    Mutant(
        "an organization that is gone from the readings is corrected to zero",
        PLANNING,
        "for cell in known if cell.event_name",
        "for cell in () if cell.event_name",
    ),
    Mutant(
        "a `last` meter is reported a zero",
        PLANNING,
        "if at_stripe is None and target == 0 and meter.formula is Formula.SUM:",
        "if at_stripe is None and target == 0:",
    ),
    Mutant(
        "a Stripe event that comes late is applied (no cursor over ids or times)",
        "billing_pipeline/stripe_events/inbox.py",
        ".where(_due(now))",
        ".where(_due(now), stripe_events.c.created >= func.coalesce("
        "select(func.max(stripe_events.c.created)).where("
        "stripe_events.c.state != EventState.RECEIVED).scalar_subquery(), "
        "stripe_events.c.created))",
    ),
    Mutant(
        "an event is stamped inside its day, not at the midnight that ends it",
        "billing_pipeline/rules/timestamps.py",
        "return chosen if start <= chosen < end else None",
        "return end",
    ),
    Mutant(
        "an event that a crash interrupted is unknown, not accepted",
        EVENTS,
        'Outcome(id, State.AMBIGUOUS, error_message="interrupted")',
        'Outcome(id, State.ACCEPTED, error_message="interrupted")',
    ),
    Mutant(
        "an event that a crash interrupted is unknown, not unsent",
        EVENTS,
        'Outcome(id, State.AMBIGUOUS, error_message="interrupted")',
        'Outcome(id, State.REJECTED, error_code=SUPERSEDED, error_message="interrupted")',
    ),
    Mutant(
        "an identifier comes from the cell and the revision alone",
        "billing_pipeline/rules/model.py",
        "cell.usage_day.isoformat(), self.revision],",
        'cell.usage_day.isoformat(), __import__("os").urandom(8).hex()],',
    ),
    Mutant(
        "a 200 is not billed yet: events that Stripe reports later as not counted are rejected",
        "billing_pipeline/ledger/error_reports.py",
        "was={State.AMBIGUOUS, *SENT}",
        "was={State.AMBIGUOUS}",
    ),
    Mutant(
        "a reported cell keeps its customer when the mapping changes",
        PLANNING,
        "return self.reported_for or self.customer",
        "return self.customer or self.reported_for",
    ),
    Mutant(
        "a day in which a period ends is reported in segments",
        DAY_INPUTS,
        "    if not wanted:\n        return {}",
        "    return {}",
    ),
    Mutant(
        "usage that cannot be reported is on record",
        "billing_pipeline/ledger/plans.py",
        "planned = {(hold.cell, hold.start): hold for hold in plan.holds if covers(hold.cell)}",
        "planned: dict[tuple[Cell, int], Hold] = {}",
    ),
    Mutant(
        "nothing is reported for a period whose invoice is final",
        "billing_pipeline/rules/eligibility.py",
        "return bool(final) and all(p.subscription in final for p in covering)",
        "return False",
    ),
    Mutant(
        "an older event about an object never overwrites a newer one",
        "billing_pipeline/customers/read_model.py",
        "known.as_of > source.created",
        "known.as_of > source.created.replace(year=9999)",
    ),
    Mutant(
        "a zero of a `last` meter that cannot be reported yet is not forgotten",
        PLANNING,
        "if reason in NEEDS_ADJUSTMENT and owed == 0 and not is_first_zero:",
        "if (reason in NEEDS_ADJUSTMENT and owed == 0) or (reason and is_first_zero):",
    ),
    Mutant(
        "an organization that gets its customer later owes its days before",
        DAY_INPUTS,
        'span.payers.organizations_digest if _last_meters(span.meters) else ""',
        '""',
    ),
    Mutant(
        "a day is planned again when the outcome that it waited for is known",
        "billing_pipeline/ledger/plans.py",
        "return plan.is_whole and not too_late",
        "return True",
    ),
    Mutant(
        "a rejected event makes its day stale",
        DAY_INPUTS,
        "events = counts.get(day, EventCounts())",
        "events = EventCounts(unresolved=counts.get(day, EventCounts()).unresolved)",
    ),
    Mutant(
        "an adjusted amount leaves the closed period",
        "billing_pipeline/ledger/adjustments.py",
        "out = Entry(cell, adjustment.at, -adjustment.amount)",
        "out = Entry(cell, adjustment.at, 0)",
    ),
    Mutant(
        "a hold is looked at again when its customer or its eligibility changes",
        DAY_INPUTS,
        "_payers_digest(span.payers, day, open_organizations.get(day, {})),",
        '"",',
    ),
    Mutant(
        "a day is planned again when a billing period is learned to end inside it",
        DAY_INPUTS,
        "_boundaries_digest(span, day),",
        '"",',
    ),
    Mutant(
        "a refused report is on hold once it is too old",
        "billing_pipeline/rules/day_inputs.py",
        "planned.deadline is not None and now.timestamp() > planned.deadline",
        "False",
    ),
    Mutant(
        "usage behind the gate is no amount to decide about",
        PLANNING,
        "if inputs.gated and (reason is None or reason in NEEDS_ADJUSTMENT):",
        "if inputs.gated and reason is None:",
    ),
    Mutant(
        "only the organizations concerned are planned again, and all of these",
        DAY_INPUTS,
        "concerned |= ledger_days.open_organizations(connection, [day]).get(day, {}).keys()",
        "pass",
    ),
)


@dataclass(frozen=True)
class Found:
    """The first seed that notices a mutant, and its first complaint; None: it survived."""

    mutant: Mutant
    seed: int | None
    complaint: str


HUNT = """
import sys
from billing_pipeline.simulation.runner import simulate
for seed in range(1, int(sys.argv[1]) + 1):
    try:
        complaints = simulate(seed).complaints
    except Exception as error:
        complaints = [f"the pipeline broke: {type(error).__name__}: {error}"]
    if complaints:
        print(seed, complaints[0].replace(chr(10), " "))
        break
"""


def break_rule(mutant: Mutant, folder: Path) -> None:
    """Copy the code into `folder`, with one rule broken. Raises ValueError if it is gone."""
    for package in ("billing_pipeline", "webhook_handler"):
        shutil.copytree(
            ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    path = folder / mutant.file
    text = path.read_text("utf-8")
    if text.count(mutant.old) != 1:
        raise ValueError(f"{mutant.file} has not exactly one {mutant.old!r}")
    path.write_text(text.replace(mutant.old, mutant.new), "utf-8")


def hunt(mutant: Mutant, most_seeds: int = MOST_SEEDS) -> Found:
    """Live through histories with a broken rule until one ends wrong."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        break_rule(mutant, Path(folder))
        done = subprocess.run(
            [sys.executable, "-c", HUNT, str(most_seeds)],
            env={**os.environ, "PYTHONPATH": folder},
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"{mutant.rule}: {done.stderr[-2000:]}")
    seed, _, complaint = done.stdout.strip().partition(" ")
    return Found(mutant, int(seed) if seed else None, complaint)


def main() -> int:
    """Hunt every mutant; 1 if one survives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=MOST_SEEDS, help="histories at most, each")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    survivors = 0
    with ThreadPoolExecutor(given.processes) as pool:
        for found in pool.map(lambda mutant: hunt(mutant, given.seeds), MUTANTS):
            survivors += found.seed is None
            verdict = "SURVIVED" if found.seed is None else f"found by seed {found.seed}"
            print(f"{found.mutant.rule}: {verdict}", flush=True)
            print(f"    {found.complaint[:160]}", flush=True)
    print(f"{len(MUTANTS) - survivors} of {len(MUTANTS)} broken rules were found.")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
