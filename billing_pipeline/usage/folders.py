"""Folders by URI: a local path, or anything fsspec reads. Writes replace whole files."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem


@dataclass(frozen=True, slots=True, order=True)
class File:
    """A file as a listing shows it. `size` in bytes; `modified` is compared, not interpreted."""

    name: str
    size: int
    modified: str


@dataclass(frozen=True)
class Folder:
    """A folder of files, by URI."""

    uri: str

    @cached_property
    def _located(self) -> tuple[Any, str]:
        fs, root = fsspec.core.url_to_fs(self.uri)
        return fs, str(root).rstrip("/")

    @property
    def fs(self) -> Any:
        """The fsspec file system behind the URI."""
        return self._located[0]

    @property
    def is_local(self) -> bool:
        """Whether the folder lies on this machine's disk."""
        return isinstance(self.fs, LocalFileSystem)

    def path(self, *parts: str) -> str:
        """What DuckDB opens for a file of this folder."""
        path = "/".join([self._located[1], *parts])
        return path if self.is_local else self.fs.unstrip_protocol(path)

    def files(self, part: str) -> list[File] | None:
        """The files directly in a sub-folder, by name; None when there is no such folder."""
        self.fs.invalidate_cache()
        try:
            entries = self.fs.ls(f"{self._located[1]}/{part}", detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return sorted(
            File(entry["name"].rsplit("/", 1)[-1], int(entry["size"]), _modified(entry))
            for entry in entries
            if entry["type"] == "file"
        )

    def folders(self) -> list[str]:
        """The names of the sub-folders; none when this folder does not exist."""
        self.fs.invalidate_cache()
        try:
            entries = self.fs.ls(self._located[1], detail=True)
        except FileNotFoundError:
            return []
        return sorted(
            entry["name"].rstrip("/").rsplit("/", 1)[-1]
            for entry in entries
            if entry["type"] == "directory"
        )

    def exists(self, *parts: str) -> bool:
        """Whether the file exists now."""
        self.fs.invalidate_cache()
        return bool(self.fs.exists("/".join([self._located[1], *parts])))

    def open(self, *parts: str) -> IO[bytes]:
        """A file of this folder, opened to read bytes."""
        return self.fs.open("/".join([self._located[1], *parts]), "rb")  # type: ignore[no-any-return]

    def sha256(self, *parts: str) -> str:
        """The hash of a file's content, in hexadecimal."""
        with self.open(*parts) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]

    @contextmanager
    def replacing(self, *parts: str) -> Iterator[Path]:
        """A local path to write to; when the block ends well, that file takes its place here.

        Readers see the old file or the new one, never a part. On any exception, a full disk or
        a crash the old file stands.
        """
        target = "/".join([self._located[1], *parts])
        parent = os.path.dirname(target)
        self.fs.makedirs(parent, exist_ok=True)
        # On disk the draft lies beside its target, so that the replacement is one rename.
        where = parent if self.is_local else None
        handle, draft_name = tempfile.mkstemp(prefix=".draft-", dir=where)
        os.close(handle)
        draft = Path(draft_name)
        try:
            yield draft
            if self.is_local:
                _flush(draft)
                draft.chmod(0o644)  # mkstemp lets nobody else read
                os.replace(draft, target)
                _flush(Path(parent))
            else:
                self.fs.put_file(str(draft), target)  # object stores replace a whole object
        finally:
            draft.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _modified(entry: dict[str, Any]) -> str:
    for key in (
        "mtime",
        "LastModified",
        "last_modified",
        "updated",
        "modified",
        "created",
    ):
        if key in entry:
            value = entry[key]
            if isinstance(value, (int, float)):
                value = datetime.fromtimestamp(value, UTC)
            return str(value.isoformat() if isinstance(value, datetime) else value)
    return ""
