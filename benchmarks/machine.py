"""A description of the machine, in one line."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from pathlib import Path

import duckdb


def machine() -> str:
    """CPU, cores, memory, versions, today's date, and the load before the benchmarks."""
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return (
        f"{_cpu()}, {os.cpu_count()} cores, {ram / 2**30:.0f} GiB, {platform.system()}; "
        f"Python {platform.python_version()}, DuckDB {duckdb.__version__}; "
        f"{datetime.now(UTC).date()}, load {os.getloadavg()[0]:.1f} before"
    )


def _cpu() -> str:
    known = Path("/proc/cpuinfo")  # Linux only
    lines = known.read_text("utf-8").splitlines() if known.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
