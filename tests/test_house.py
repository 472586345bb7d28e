"""The house: imports go one way, nothing is where it does not belong."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "billing_pipeline"

# The way of the data. A room may import the rooms before it, never one after it.
ROOMS = ["usage", "metering", "ledger", "stripe_meters"]
SHARED = {"settings", "database"}
MAY_IMPORT = {
    "usage": set[str](),
    "metering": set[str](),
    "database": {"settings"},
    "ledger": {"metering", *SHARED},
    "customers": {"metering", *SHARED},
    "stripe_meters": {"metering", "ledger", *SHARED},
    "settings": {"metering"},
    "stripe_events": {"ledger", "customers", "stripe_meters", *SHARED},
    "report": {*ROOMS, "customers", "stripe_events", *SHARED},
    # What people look at and decide, around the one report.
    "preview": {*ROOMS, "report"},
    "adjustments": {*ROOMS, "report", "settings"},
    "undo": {*ROOMS, "report", "preview", "settings"},
    "alerts": {"report", "stripe_events"},
    "defs": {*ROOMS, "report", "preview", "reconciliation", "stripe_events", "alerts", *SHARED},
    "report": {*ROOMS, "report", "preview", "undo", "reconciliation", "defs", *SHARED},
    "reconciliation": {*ROOMS, "customers", "report", "settings"},
    "explain": {*ROOMS, "report", "reconciliation", "settings"},
    "doctor": {"report", "settings", "stripe_meters", "usage"},
}


def imports(path: Path) -> set[str]:
    """The modules a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def files(room: str) -> list[Path]:
    folder = PACKAGE / room
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [PACKAGE / f"{room}.py"]


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_go_one_way(room: str) -> None:
    for path in files(room):
        if "migrations" in path.segments:
            continue
        for module in imports(path):
            segments = module.split(".")
            if segments[0] != "billing_pipeline" or len(segments) < 2 or segments[1] == room:
                continue
            assert segments[1] in MAY_IMPORT[room], f"{path.name} of {room} imports {module}"


@pytest.mark.parametrize(
    ("library", "rooms"),
    [
        ("stripe", {"stripe_meters", "sandbox", "simulation"}),
        ("dagster", {"defs", "cli"}),
        ("duckdb", {"usage", "defs"}),
        (
            "sqlalchemy",
            {"database", "ledger", "customers", "stripe_events", "settings", "simulation"},
        ),
        ("aiohttp", {"stripe_meters", "sandbox", "simulation"}),
        ("starlette", {"sandbox", "simulation"}),
    ],
)
def test_each_library_lives_in_its_rooms(library: str, context: set[str]) -> None:
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).segments[0].removesuffix(".py")
        used = {module.split(".")[0] for module in imports(path)}
        assert library not in used or room in context, f"{path} imports {library}"


def test_nothing_in_production_imports_the_sandbox() -> None:
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).segments[0].removesuffix(".py")
        if room not in ("sandbox", "simulation", "cli"):
            assert not any(m.startswith("billing_pipeline.sandbox") for m in imports(path)), path


def test_metering_has_no_clock_no_randomness_and_no_io() -> None:
    text = "".join(path.read_text("utf-8") for path in files("metering"))
    for forbidden in (
        r"\.now\(",
        r"today\(",
        r"\brandom\b",
        r"\bopen\(",
        r"\brequests\b",
        r"time\.time",
    ):
        assert not re.search(forbidden, text), forbidden


def test_every_module_opens_with_its_story() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text("utf-8"))), path


def test_only_settings_reads_the_configuration_from_the_environment() -> None:
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text("utf-8")
        if re.search(r"os\.environ|getenv", text):
            assert path.name in ("settings.py", "cli.py", "demo.py", "in_process.py"), path
