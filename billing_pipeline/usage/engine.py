"""DuckDB, in memory and bounded: one short-lived connection per day counted."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources

import duckdb

from billing_pipeline.usage.folders import Folder


@dataclass(frozen=True)
class Engine:
    """How DuckDB is run: `memory_limit` such as "4GB"; what does not fit spills to disk.

    `clock` tells when files were listed, in UTC.
    """

    memory_limit: str
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)

    @contextmanager
    def connect(self, *folders: Folder) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection in UTC that can read these folders, closed at the end."""
        with tempfile.TemporaryDirectory(prefix="billing-spill-") as spill:
            connection = duckdb.connect(
                config={
                    "memory_limit": self.memory_limit,
                    "temp_directory": spill,
                    "preserve_insertion_order": False,  # keeping an order costs memory
                    "autoinstall_known_extensions": False,  # nothing is fetched behind our back
                }
            )
            try:
                connection.execute("SET TimeZone = 'UTC'")
                connection.execute("SET enable_progress_bar = false")  # it goes to standard output
                for fs in {id(f.fs): f.fs for f in folders if not f.is_local}.values():
                    connection.register_filesystem(fs)
                yield connection
            finally:
                connection.close()


def sql(name: str) -> str:
    """The text of `sql/<name>.sql`."""
    return (resources.files("billing_pipeline.usage") / "sql" / f"{name}.sql").read_text("utf-8")
