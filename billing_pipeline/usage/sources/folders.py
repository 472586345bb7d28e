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
    """No installed driver can read a folder's URI; the message says what is missing."""


@dataclass(frozen=True, slots=True, order=True)
class File:
    """A file as listed. `size` is in bytes; `modified` is only compared, never interpreted."""

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
        """Whether the folder is on a local disk."""
        return isinstance(self.fs, LocalFileSystem)

    def path(self, *path: str) -> str:
        """The path or URI of a file in this folder."""
        full = "/".join([self._located[1], *path])
        return full if self.is_local else str(self.fs.unstrip_protocol(full))

    def pattern(self, *path: str) -> str:
        """The path as a pattern that matches only itself: DuckDB reads every path as a pattern."""
        return re.sub(r"[*?\[]", lambda magic: f"[{magic.group()}]", self.path(*path))

    def files(self, name: str) -> list[File] | None:
        """The entries of a sub-folder, sorted by name; None if there is no such folder.

        Links are followed; a broken link is listed as a file of zero bytes. Folders are listed
        with a slash at the end of their names.
        """
        self.fs.invalidate_cache()
        try:
            entries = self.fs.ls(f"{self._located[1]}/{name}", detail=True)
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
        """The names of the sub-folders; none if this folder does not exist."""
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

    def exists(self, *path: str) -> bool:
        """Whether a file of this folder exists now; without `path`, the folder itself."""
        self.fs.invalidate_cache()
        return bool(self.fs.exists("/".join([self._located[1], *path])))

    def open(self, *path: str) -> IO[bytes]:
        """Open a file of this folder for reading bytes."""
        return self.fs.open("/".join([self._located[1], *path]), "rb")  # type: ignore[no-any-return]

    def sha256(self, *path: str) -> str:
        """The SHA-256 of a file's content, in hexadecimal."""
        with self.open(*path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]

    @contextmanager
    def replacing(self, *path: str) -> Iterator[Path]:
        """Replace a file: yields a local path to write to, and moves it into place at the end.

        Readers see the old file or the new one, never half of one. After an exception, a full disk
        or a crash the old file is still there.
        """
        target = "/".join([self._located[1], *path])
        parent = os.path.dirname(target)
        self.fs.makedirs(parent, exist_ok=True)
        # On a local disk the draft lies beside its target, so that replacing is one rename.
        folder = parent if self.is_local else None
        handle, draft_name = tempfile.mkstemp(prefix=".draft-", dir=folder)
        os.close(handle)
        draft = Path(draft_name)
        try:
            yield draft
            if self.is_local:
                _flush(draft)
                draft.chmod(0o644)  # mkstemp allows only the owner to read
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
    for key in ("mtime", "LastModified", "last_modified", "updated", "modified", "created"):
        if key in entry:
            value = entry[key]
            if isinstance(value, (int, float)):
                value = datetime.fromtimestamp(value, UTC)
            return str(value.isoformat() if isinstance(value, datetime) else value)
    return ""
