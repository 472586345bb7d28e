"""The `billing` command in this process, and a world that is ready to be billed."""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from billing_pipeline.cli.app import main
from billing_pipeline.cli.output import out
from tests.support import KEY, World, yesterday


class Billing:
    """Runs `billing …`, checks the exit code, and returns what it printed."""

    def __init__(self, patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]) -> None:
        self._patch = patch
        self._capture = capture

    def __call__(self, *arguments: object, code: int = 0) -> Any:
        """With `--json`: the document."""
        return json.loads(self._run(*arguments, "--json", code=code)[0])

    def text(self, *arguments: object, code: int = 0) -> str:
        """What people see."""
        return "".join(self._run(*arguments, code=code))

    def _run(self, *arguments: object, code: int) -> tuple[str, str]:
        self._patch.setattr(sys, "argv", ["billing", *map(str, arguments)])
        self._capture.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        shown, errors = self._capture.readouterr()
        assert KEY not in shown + errors
        assert ended.value.code == code, shown + errors
        return shown, errors


@pytest.fixture
def billing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Billing:
    home = tmp_path / "dagster-home"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    monkeypatch.setattr(out, "width", 200)
    return Billing(monkeypatch, capsys)


@pytest.fixture
def ready(world: World) -> World:
    """Two organizations with customers, and readings of yesterday."""
    world.make_meters()
    world.make_customers(["a", "b"])
    world.write_readings(yesterday(), {"a": {"s": 3}, "b": {"t": 1}})
    return world


def last_days(number: int = 1) -> list[object]:
    """The options for so many days, yesterday the last."""
    return ["--from", yesterday() - timedelta(days=number - 1), "--to", yesterday()]
