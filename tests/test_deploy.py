"""What is in deploy/ names commands, options and variables that exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from billing_pipeline.settings import Settings

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
KUBERNETES = list(yaml.safe_load_all((DEPLOY / "kubernetes" / "billing.yaml").read_text()))


def containers() -> list[dict[str, Any]]:
    return [
        container
        for each in KUBERNETES
        if each["kind"] in ("Job", "Deployment")
        for container in each["spec"]["template"]["spec"]["containers"]
    ]


def commands() -> list[list[str]]:
    """Every command of ours or Dagster's that is started somewhere."""
    found = [service["command"] for service in COMPOSE.values() if "command" in service]
    return found + [container["command"] for container in containers()]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_and_its_options_exist(command: list[str]) -> None:
    words = [word for word in command if not word.startswith("-")]
    program = Path(sys.executable).parent / words[0]
    subcommands = [w for w in words[1:] if re.fullmatch("[a-z-]+", w)]
    shown = subprocess.run(
        [program, *subcommands, "--help"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**os.environ, "COLUMNS": "200"},
    ).stdout
    for option in (word for word in command if word.startswith("-")):
        assert re.search(rf"(?<![\w-]){option}(?![\w-])", shown), f"{command} has no {option}"


def test_variables_are_those_of_the_settings() -> None:
    known = {name.upper() for name in Settings.model_fields} | {
        "DAGSTER_POSTGRES_URL", "DAGSTER_LOGS", "DAGSTER_CURRENT_IMAGE",
        "POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD",
    }  # fmt: skip
    used = {name for service in COMPOSE.values() for name in service.get("environment", {})}
    [config] = [each for each in KUBERNETES if each["kind"] == "ConfigMap"]
    used |= set(config["data"])
    assert used <= known
    Settings(**{name.lower(): value for name, value in config["data"].items()})


def test_production_differs_from_development_in_where_things_are_kept_only() -> None:
    ours = yaml.safe_load((ROOT / "dagster.yaml").read_text())
    theirs = yaml.safe_load((DEPLOY / "dagster.yaml").read_text())
    kept = {"storage", "compute_logs", "local_artifact_storage"}
    assert {k: v for k, v in ours.items() if k not in kept} == {
        k: v for k, v in theirs.items() if k not in kept
    }


def test_probes_are_paths_of_the_handler() -> None:
    from webhook_handler import app

    source = Path(app.__file__).read_text()
    for container in containers():
        for probe in ("readinessProbe", "livenessProbe"):
            if probe in container:
                assert f'Route("{container[probe]["httpGet"]["path"]}"' in source


def test_the_production_lock_pins_what_the_tests_ran_with() -> None:
    def pins(path: Path) -> dict[str, str]:
        return dict(re.findall(r"^([\w.\[\]-]+)==(\S+)", path.read_text(), re.MULTILINE))

    tested, shipped = pins(ROOT / "requirements.lock"), pins(DEPLOY / "requirements.lock")
    assert {n: v for n, v in shipped.items() if n in tested and tested[n] != v} == {}
    assert "--index-url" not in (DEPLOY / "requirements.lock").read_text()
