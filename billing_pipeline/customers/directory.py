"""The directory of organizations and their Stripe customers, and how it is filled."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from sqlalchemy import Engine, select

from billing_pipeline.customers.tables import customers
from billing_pipeline.database import upsert, writing
from billing_pipeline.settings import ConfigurationError

LONGEST = 255
"""Characters of an id, as in the readings and in Stripe."""

COLUMNS = ("organization_id", "stripe_customer_id")


@dataclass(frozen=True)
class ImportReport:
    """What an import did: counts of organizations, and the lines left out with the reason."""

    added: int = 0
    changed: int = 0
    unchanged: int = 0
    problems: list[str] = field(default_factory=list)


class CustomerDirectory:
    """The organization → customer mapping in the database."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def mapping(self, file: Path | None = None) -> dict[str, str]:
        """Every organization with its Stripe customer id; `file` as if it were imported."""
        if file is not None:
            return self.mapping() | _read(file)[0]
        with self._engine.begin() as connection:
            rows = connection.execute(
                select(customers.c.organization_id, customers.c.stripe_customer_id)
            )
            return {row.organization_id: row.stripe_customer_id for row in rows}

    def import_file(self, path: Path, now: datetime) -> ImportReport:
        """Take over a CSV file. Organizations not in it keep their customer.

        A changed customer concerns days not yet stated: what was stated stays where it is.
        Raises ConfigurationError when the file cannot be read or lacks a column.
        """
        wanted, problems = _read(path)
        known = self.mapping()
        report = ImportReport(
            added=sum(o not in known for o in wanted),
            changed=sum(o in known and known[o] != c for o, c in wanted.items()),
            unchanged=sum(known.get(o) == c for o, c in wanted.items()),
            problems=problems,
        )
        with writing(self._engine) as connection:
            for organization_id, customer in wanted.items():
                if known.get(organization_id) == customer:
                    continue
                row = {
                    "stripe_customer_id": customer,
                    "source": str(path),
                    "changed_at": now,
                }
                upsert(connection, customers, {"organization_id": organization_id}, row)
        return report


def _read(path: Path) -> tuple[dict[str, str], list[str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the customers file {path} cannot be read: {error}") from None
    reader = csv.DictReader(io.StringIO(text, newline=""))
    missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
    if missing:
        raise ConfigurationError(
            f"the customers file {path} lacks the column(s) {', '.join(missing)}; "
            f"its first line must be {','.join(COLUMNS)}"
        )
    found: dict[str, set[str]] = defaultdict(set)
    problems = []
    for line, row in enumerate(reader, start=2):
        # Organization ids are exact, spaces included: they must equal those of the readings.
        organization_id, customer = (
            row[COLUMNS[0]] or "",
            (row[COLUMNS[1]] or "").strip(),
        )
        if any("\0" in text or len(text) > LONGEST for text in (organization_id, customer)):
            problems.append(f"{path} line {line}: an id is longer than {LONGEST} or not text")
        elif organization_id.strip() and customer:
            found[organization_id].add(customer)
        elif organization_id or customer:
            problems.append(f"{path} line {line}: an organization and a customer are both needed")
    for organization_id, ids in found.items():
        if len(ids) > 1:
            problems.append(
                f"{path}: {organization_id} has {len(ids)} customers ({', '.join(sorted(ids))}); "
                "none of them was taken"
            )
    return {o: next(iter(ids)) for o, ids in found.items() if len(ids) == 1}, problems
