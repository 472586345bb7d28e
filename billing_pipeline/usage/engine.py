"""DuckDB in memory, with a memory limit: one short-lived connection per day counted."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path

import duckdb

from billing_pipeline.usage.kernel.limits import Limits
from billing_pipeline.usage.sources.folders import Folder
from billing_pipeline.usage.validity import BLANKS, LONGEST_ID


@dataclass(frozen=True)
class Engine:
    """How days are counted. `memory_limit` is such as "4GB"; what does not fit spills to disk.

    `clock` gives the time at which files are listed, in UTC. Without `kernel`, SQL counts every
    day. `limits` are the kernel's; by default they follow from the memory limit. `spark` is the
    address of Spark ("sc://host:port", maybe with a token; or "local[2]") if Spark counts; DuckDB
    then reads the files that Spark does not.
    """

    memory_limit: str
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    kernel: bool = True
    limits: Limits | None = None
    spark: str | None = field(default=None, repr=False)

    @contextmanager
    def connect(self, *folders: Folder) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection in UTC that can read these folders, closed at the end."""
        with self.spill() as spill:
            connection = duckdb.connect(
                config={
                    "memory_limit": self.memory_limit,
                    "temp_directory": str(spill),
                    "preserve_insertion_order": False,  # keeping an order costs memory
                    "autoinstall_known_extensions": False,  # nothing is downloaded
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

    @contextmanager
    def spill(self) -> Iterator[Path]:
        """An empty folder for what does not fit in memory, deleted at the end."""
        with tempfile.TemporaryDirectory(prefix="billing-spill-") as spill:
            yield Path(spill)

    @property
    def kernel_limits(self) -> Limits:
        """The limits of the kernel."""
        return self.limits or Limits.of(self.memory_limit)


def sql(name: str) -> str:
    """The text of `sql/<name>.sql`, with the rule that it names `{quarantine_reason}` put in."""
    text = _file(name)
    if "{quarantine_reason}" not in text:
        return text
    rule = _file("quarantine_reason").format(blanks=BLANKS, longest_id=LONGEST_ID)
    return text.replace("{quarantine_reason}", f"({rule})")


def _file(name: str) -> str:
    return (resources.files("billing_pipeline.usage") / "sql" / f"{name}.sql").read_text("utf-8")
