"""The README's blocks run against a local Stripe; its tables name what exists."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from datetime import timedelta
from pathlib import Path

import typer
from typer.core import TyperGroup

from billing_pipeline.cli.app import app
from billing_pipeline.settings import Settings
from tests.support import KEY, LAST, SUM, World, yesterday

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SECONDS = 300
"""No block takes so long, on any machine."""


def blocks(heading: str, language: str = "") -> list[str]:
    """The code blocks of a section, without the indentation of a list."""
    section = re.split(r"^## ", README, flags=re.MULTILINE)
    text = next(part for part in section if part.startswith(heading))
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", block, flags=re.MULTILINE) for indent, block in found]


def run(command: list[str], world: World) -> str:
    environment = {**os.environ, **world.environment}
    done = subprocess.run(
        command, env=environment, cwd=world.home, timeout=SECONDS, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_way_to_a_first_bill_runs_as_written(world: World) -> None:
    world.make_customers(["acme"])
    usage = {
        yesterday() - timedelta(days=n): {"acme": {"a": 3, "b": n + 1}} for n in reversed(range(7))
    }
    for day, organizations in usage.items():
        world.write_readings(day, organizations)
    for name in ("BILLING_READINGS_URI", "STRIPE_SECRET_KEY", "BILLING_CUSTOMERS_FILE"):
        del world.environment[name]  # the README sets these
    own = {
        "/data/readings": str(world.home / "readings"),
        "/data/customers.csv": str(world.home / "customers.csv"),
        "sk_test_…": KEY,
        ".venv/bin/": f"{Path(sys.executable).parent}/",
    }
    script = "\n".join(["set -eu", *blocks("Your own readings, your own Stripe")])
    for written, here in own.items():
        assert written in script
        script = script.replace(written, here)
    printed = run(["bash", "-c", script], world)
    assert "--dry-run" in script
    assert "acme" in printed
    assert world.billed() == world.due(usage)


def test_the_python_example_runs_as_written(world: World) -> None:
    world.make_meters()
    world.make_customers(["acme"])
    [example] = blocks("From Python", "python")
    assert run([sys.executable, "-c", example], world) == "True None\n"
    [event] = world.sandbox.account.events
    assert (event.event_name, event.value) == (LAST, 28)


def test_the_table_of_commands_names_every_command_and_its_options() -> None:
    described = re.findall(r"^\| (`billing .*?) \| ", README, re.MULTILINE)
    named: set[str] = set()
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    for line in " ".join(described).replace("\\|", "|").split("`billing ")[1:]:
        words = line.split("`")[0].split()
        command = group.commands[words[0]]
        named.add(words[0])
        if isinstance(command, TyperGroup):
            subcommands = words[1].split("|")
            assert set(subcommands) <= set(command.commands), words
            if len(subcommands) > 1:
                assert set(subcommands) == set(command.commands), words
            command = command.commands[subcommands[-1]]
        options = {flag for parameter in command.params for flag in parameter.opts}
        assert set(re.findall(r"--[a-z-]+", line)) <= options, line
    assert named == set(group.commands)


def test_the_table_of_variables_names_every_setting() -> None:
    section = README.split("## Configuration")[1].split("\n## ")[0]
    named = set(re.findall(r"`((?:BILLING|STRIPE)_[A-Z_]+)`", section))
    assert named == {name.upper() for name in Settings.model_fields}


def test_the_python_versions_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lowest, highest = re.search(r"Python 3\.(\d+) to 3\.(\d+)", README).groups()  # type: ignore[union-attr]
    assert project["requires-python"] == f">=3.{lowest},<3.{int(highest) + 1}"


def test_links_lead_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_code_that_the_architecture_points_to_exists() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.split("## Where to look")[1]
    files = [ROOT / "billing_pipeline" / path for path in re.findall(r"`(\w[\w/]*\.py)`", table)]
    code = "".join((f if f.exists() else ROOT / f.relative_to(ROOT / "billing_pipeline"))
                   .read_text(encoding="utf-8") for f in files)  # fmt: skip
    names = re.findall(r"`(\w+)`", table)
    assert len(names) > 5
    assert [name for name in names if f"def {name}(" not in code] == []


def test_the_meters_of_the_readme_are_the_default() -> None:
    names = [meter.event_name for meter in Settings().billing_meters]
    assert sorted(names) == sorted([LAST, SUM])
    assert all(f"`{name}`" in README for name in names)
