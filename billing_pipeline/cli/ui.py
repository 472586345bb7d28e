"""`billing ui`: the Dagster UI."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from billing_pipeline.cli.options import Json
from billing_pipeline.cli.output import print_answer


def ui(
    port: Annotated[int, typer.Option(help="Port of the Dagster UI.")] = 3000, as_json: Json = False
) -> None:
    """Start the Dagster UI. Without a Stripe key, it uses the local Stripe of an earlier demo."""
    from billing_pipeline.sandbox.demo import demo_environment

    environment = dict(os.environ)
    if Path("dagster.yaml").exists():
        environment.setdefault("DAGSTER_HOME", str(Path.cwd()))
    command = [
        sys.executable, "-m", "dagster", "dev", "-w", "workspace.yaml",
        "-h", "127.0.0.1", "-p", str(port),
    ]  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    with demo_environment(environment) as on_demo:
        where = " on the demo's local Stripe" if on_demo else ""
        shown = f"Dagster runs at {url}{where}. Press Ctrl-C to stop it."
        print_answer(as_json, {"url": url, "pid": os.getpid()}, [shown])
        quiet = subprocess.DEVNULL if as_json else None
        dagster = subprocess.Popen(command, env=environment, stdout=quiet, start_new_session=True)

        def end(number: int, frame: object) -> None:
            """End Dagster's daemon and servers with this process; kill them after 10 seconds."""
            os.killpg(dagster.pid, signal.SIGKILL if number == signal.SIGALRM else signal.SIGTERM)
            signal.alarm(10 if number != signal.SIGALRM else 0)

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
            signal.signal(number, end)
        raise typer.Exit(dagster.wait())
