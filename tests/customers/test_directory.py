"""Who pays: importing the mapping, and which lines are ignored."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Engine

from billing_pipeline.customers.directory import CustomerDirectory
from billing_pipeline.errors import ConfigurationError
from billing_pipeline.operations.context import utc_now

HEADER = "organization_id,stripe_customer_id\n"


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_an_import_adds_changes_and_keeps(engine: Engine, tmp_path: Path) -> None:
    directory = CustomerDirectory(engine)
    file = write(tmp_path / "c.csv", HEADER + "a,cus_1\n組織,cus_2\n")
    report = directory.import_file(file, utc_now())
    assert (report.added, report.changed, report.unchanged) == (2, 0, 0)
    write(file, "stripe_customer_id,organization_id,note\ncus_9,a,x\ncus_3,b,\n")
    report = directory.import_file(file, utc_now())
    assert (report.added, report.changed, report.unchanged) == (1, 1, 0)
    assert directory.mapping() == {"a": "cus_9", "組織": "cus_2", "b": "cus_3"}


def test_contradictions_and_blanks_are_ignored_and_the_rest_is_imported(
    engine: Engine, tmp_path: Path
) -> None:
    directory = CustomerDirectory(engine)
    text = HEADER + 'a,cus_1\nb,cus_2\nb,cus_3\nc,\n,cus_4\n"d,e",cus_5\na,cus_1\n'
    text += f"{'x' * 256},cus_6\nf,{'c' * 256}\nnul\0,cus_7\n"
    report = directory.import_file(write(tmp_path / "c.csv", text), utc_now())
    assert directory.mapping() == {"a": "cus_1", "d,e": "cus_5"}
    assert len(report.problems) == 6
    assert any("line 5" in problem for problem in report.problems)
    assert any("b has 2 customers" in problem for problem in report.problems)


def test_a_preview_reads_the_file_and_writes_nothing(engine: Engine, tmp_path: Path) -> None:
    directory = CustomerDirectory(engine)
    file = write(tmp_path / "c.csv", HEADER + "a,cus_1\n")
    assert directory.mapping(file) == {"a": "cus_1"}
    assert directory.mapping() == {}


@pytest.mark.parametrize("text", ["", "organization,customer\na,b\n", "a,cus_1\n"])
def test_a_file_without_the_columns_is_refused_with_the_line_it_needs(
    engine: Engine, tmp_path: Path, text: str
) -> None:
    with pytest.raises(ConfigurationError, match="organization_id,stripe_customer_id"):
        CustomerDirectory(engine).import_file(write(tmp_path / "c.csv", text), utc_now())


def test_a_missing_file_is_a_clear_error(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        CustomerDirectory(engine).import_file(tmp_path / "none.csv", utc_now())
