"""Draw seconds by size: `python -m benchmarks.plot results.json out.svg`.

The input is the JSON of `python -m benchmarks --json`. Only this module needs matplotlib.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot

Row = dict[str, Any]
ENGINES = {
    "scan": "bare scan", "kernel": "kernel", "sql": "the pipeline's SQL",
    "DuckDB query": "DuckDB, counts only", "pandas": "pandas, counts only",
    "Polars": "Polars, counts only", "Spark": "Spark, local",
}  # fmt: skip


def draw(results: dict[str, Any], target: Path) -> None:
    """Draw a panel for counting and one for planning and verification, on logarithmic scales."""
    figure, (counting, organizations) = pyplot.subplots(1, 2, figsize=(11, 4.2))
    for engine, name in ENGINES.items():
        _line(counting, name, results["counting"], "readings", f"{engine} s")
    counting.set(title="Counting a day", xlabel="readings")
    for database in ("SQLite", "PostgreSQL"):
        rows = [row for row in results["planning"] if row["database"] == database]
        name = f"planned, {database}"
        _line(organizations, name, rows, "organizations", "plan a day s")
    rows = results["verification"]
    _line(organizations, "verified, SQLite", rows, "organizations", "verified s")
    organizations.set(title="A day by organizations, two meters", xlabel="organizations")
    for panel in (counting, organizations):
        panel.set(xscale="log", yscale="log", ylabel="seconds")
        panel.grid(which="major", alpha=0.3)
        panel.legend(fontsize=8)
    figure.suptitle(results["machine"], fontsize=8)
    figure.tight_layout()
    figure.savefig(target, metadata={"Date": None})


def _line(panel: Any, name: str, rows: list[Row], x: str, y: str) -> None:
    points = [(row[x], row[y]) for row in rows if row.get(y) not in (None, "")]
    if points:
        panel.plot(*zip(*points, strict=True), marker="o", label=name)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text("utf-8")), Path(sys.argv[2]))
