"""Folders by URI: a local path, or anything fsspec reads. Writes replace whole files."""

from __future__ import annotations

import hashlib
import os
import re
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


class UnusableFolder(OSError):
    """A folder's URI that nothing installed here can read; the message says what is missing."""


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
        try:
            fs, root = fsspec.core.url_to_fs(self.uri)
        except (ImportError, ValueError) as error:  # no driver for this protocol
            raise UnusableFolder(f"{self.uri} cannot be opened: {error}") from None
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
        """A file of this folder, for people."""
        path = "/".join([self._located[1], *parts])
        return path if self.is_local else str(self.fs.unstrip_protocol(path))

    def pattern(self, *parts: str) -> str:
        """The same for DuckDB, which takes every path for a pattern: one that matches itself."""
        return re.sub(r"[*?\[]", lambda magic: f"[{magic.group()}]", self.path(*parts))

    def files(self, part: str) -> list[File] | None:
        """What lies directly in a sub-folder, by name; None when there is no such folder.

        Links count as what they lead to; one that leads nowhere is a file of zero bytes.
        Folders in it are listed too, with a slash behind their names.
        """
        self.fs.invalidate_cache()
        try:
            entries = self.fs.ls(f"{self._located[1]}/{part}", detail=True)
        except FileNotFoundError:
            return None
        return sorted(self._file(entry) for entry in entries)

    def _file(self, entry: dict[str, Any]) -> File:
        name = entry["name"].rstrip("/").rsplit("/", 1)[-1]
        if entry["type"] not in ("file", "directory"):
            try:
                entry = self.fs.info(entry["name"])
            except FileNotFoundError:
                return File(name, 0, "")
        if entry["type"] == "directory":
            return File(name + "/", 0, "")
        return File(name, int(entry["size"]), _modified(entry))

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
        """Whether the file, or without `parts` the folder, exists now."""
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
