"""The house: imports go one way, nothing is where it does not belong, functions stay short."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "billing_pipeline"
LONGEST_FUNCTION = 70

BASE = {"errors", "stripe_facts"}
SHARED = {*BASE, "settings", "database", "rules"}
# The way of the data. Each may import what stands here, and never something after it.
MAY_IMPORT = {
    "errors": set[str](),
    "stripe_facts": set[str](),
    "usage": {"errors"},
    "rules": {"stripe_facts"},
    "settings": {*BASE, "rules"},
    "database": {"errors"},
    "ledger": {*BASE, "database", "rules"},
    "customers": SHARED,
    "stripe_api": {*SHARED, "ledger"},
    "stripe_events": {*SHARED, "ledger", "customers", "stripe_api"},
    "operations": {*SHARED, "usage", "ledger", "customers", "stripe_api", "stripe_events"},
    "defs": {*SHARED, "usage", "ledger", "stripe_api", "stripe_events", "operations"},
}
# Inside operations, one use case may build on another, but these stand below all of them.
BELOW_THE_USE_CASES = {"operations/context.py": set[str](), "operations/day_inputs.py": {"context"}}


def imports(path: Path) -> set[str]:
    """The modules a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def files(package: str) -> list[Path]:
    folder = PACKAGE / package
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [PACKAGE / f"{package}.py"]


def package_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_go_one_way(package: str) -> None:
    for path in files(package):
        if "migrations" in path.parts:
            continue
        for module in imports(path):
            parts = module.split(".")
            if parts[0] != "billing_pipeline" or len(parts) < 2 or parts[1] == package:
                continue
            assert parts[1] in MAY_IMPORT[package], f"{path.name} of {package} imports {module}"


@pytest.mark.parametrize("name", BELOW_THE_USE_CASES)
def test_day_inputs_stand_below_the_use_cases(name: str) -> None:
    for module in imports(PACKAGE / name):
        parts = module.split(".")
        if parts[:2] == ["billing_pipeline", "operations"] and len(parts) > 2:
            assert parts[2] in BELOW_THE_USE_CASES[name], f"{name} imports {module}"


def test_the_webhook_handler_imports_neither_dagster_nor_the_pipeline() -> None:
    for path in (ROOT / "webhook_handler").rglob("*.py"):
        used = {module.split(".")[0] for module in imports(path)}
        assert not used & {"dagster", "billing_pipeline"}, path


@pytest.mark.parametrize(
    ("library", "packages"),
    [
        ("stripe", {"stripe_api", "sandbox", "simulation"}),
        ("dagster", {"defs"}),
        ("duckdb", {"usage"}),
        (
            "sqlalchemy",
            {"database", "ledger", "customers", "stripe_events", "operations", "settings",
             "simulation"},
        ),
        ("aiohttp", {"stripe_api", "sandbox", "simulation"}),
        ("starlette", {"sandbox", "simulation"}),
    ],
)  # fmt: skip
def test_each_library_is_used_only_where_it_belongs(library: str, packages: set[str]) -> None:
    for path in PACKAGE.rglob("*.py"):
        used = {module.split(".")[0] for module in imports(path)}
        assert library not in used or package_of(path) in packages, f"{path} imports {library}"


def test_nothing_in_production_imports_the_sandbox_or_the_simulation() -> None:
    for path in PACKAGE.rglob("*.py"):
        if package_of(path) not in ("sandbox", "simulation", "cli"):
            used = {".".join(module.split(".")[:2]) for module in imports(path)}
            assert not used & {"billing_pipeline.sandbox", "billing_pipeline.simulation"}, path


def test_rules_have_no_clock_no_randomness_and_no_io() -> None:
    text = "".join(path.read_text("utf-8") for path in files("rules"))
    for forbidden in (
        r"\.now\(",
        r"today\(",
        r"\brandom\b",
        r"\bopen\(",
        r"\brequests\b",
        r"time\.time",
        r"sqlalchemy",
    ):
        assert not re.search(forbidden, text), forbidden


def test_day_inputs_are_put_together_in_one_place() -> None:
    made = [
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if re.search(r"(?<!class )\bDayInputs\(", path.read_text("utf-8"))
    ]
    assert made == ["operations/day_inputs.py"]


def test_every_module_opens_with_a_docstring() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text("utf-8"))), path


def test_functions_stay_short() -> None:
    long = []
    for folder in (PACKAGE, ROOT / "webhook_handler"):
        for path in folder.rglob("*.py"):
            if "migrations" in path.parts:
                continue
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    lines = (node.end_lineno or 0) - node.lineno + 1
                    if lines > LONGEST_FUNCTION:
                        long.append(f"{path.relative_to(ROOT)}: {node.name} has {lines} lines")
    assert not long, "\n".join(long)


def test_only_settings_reads_the_configuration_from_the_environment() -> None:
    for path in PACKAGE.rglob("*.py"):
        if re.search(r"os\.environ|getenv", path.read_text("utf-8")):
            assert path.name in ("settings.py", "ui.py", "demo.py", "in_process.py"), path
