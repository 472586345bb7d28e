"""Replacing files: readers see the old one or the new one, whatever happens in between."""

from __future__ import annotations

from pathlib import Path

import pytest

from billing_pipeline.usage.sources.folders import Folder


def test_a_replacement_that_fails_leaves_the_old_file_and_no_draft(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    with folder.replacing("day", "usage.parquet") as draft:
        draft.write_text("old")

    def disk_full() -> None:
        with folder.replacing("day", "usage.parquet") as draft:
            draft.write_text("half of the ne")
            raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        disk_full()
    assert (tmp_path / "day" / "usage.parquet").read_text() == "old"
    assert [path.name for path in (tmp_path / "day").iterdir()] == ["usage.parquet"]


def test_a_replacement_is_readable_by_others_and_complete(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    for text in ("first", "second"):
        with folder.replacing("day", "file") as draft:
            draft.write_text(text)
    assert (tmp_path / "day" / "file").read_text() == "second"
    assert (tmp_path / "day" / "file").stat().st_mode & 0o444 == 0o444
