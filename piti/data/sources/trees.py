"""A tree of files as a listing and a way to read one: a folder, local or in object storage, or a zip or tar archive."""

from __future__ import annotations

import os
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import IO, Any, Protocol

from piti import storage
from piti.errors import DataError

_ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")


@dataclass(frozen=True, order=True)
class Entry:
    """One file: `path` relative to the tree with `/`, and what tells that its content may have changed."""

    path: str
    size_bytes: int
    modified: str

    @property
    def identity(self) -> str:
        return f"{self.path}|{self.size_bytes}|{self.modified}"


class Tree(Protocol):
    """Files below one place."""

    def entries(self) -> list[Entry]:
        """Every file, sorted by path; hidden ones (a component begins with a dot) left out."""

    def read(self, path: str) -> bytes:
        """Content of a file by its relative path. Raises OSError."""


@lru_cache(maxsize=16)
def open_tree(uri: str) -> Tree:
    """The tree at `uri`, which may not exist yet: then listing it raises DataError. Cached for each process."""
    if uri.endswith(".zip"):
        return ZipTree(uri)
    if uri.endswith(_ARCHIVE_SUFFIXES):
        return TarTree(uri)
    return LocalTree(uri) if storage.is_local(uri) else RemoteTree(uri)


def is_hidden(path: str) -> bool:
    """Whether a component of a relative path begins with a dot, or is macOS's archive litter."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.split("/"))


class LocalTree:
    """A folder on this machine. Symbolic links are followed; a loop of links is walked once."""

    def __init__(self, uri: str) -> None:
        self._root = str(storage.local_path(uri))

    def entries(self) -> list[Entry]:
        if not os.path.isdir(self._root):
            raise DataError(f"there is no folder {self._root}", "correct the path in data.source")
        return sorted(self._walk(self._root, "", frozenset()))

    def _walk(self, folder: str, relative: str, above: frozenset[str]) -> Iterator[Entry]:
        real = os.path.realpath(folder)
        if real in above:
            return
        try:
            with os.scandir(folder) as found:
                children = list(found)
        except PermissionError as error:
            raise DataError(f"the folder {folder} may not be read", "change its permissions") from error
        for child in children:
            path = f"{relative}{child.name}"
            if is_hidden(child.name):
                continue
            if child.is_dir():
                yield from self._walk(child.path, f"{path}/", above | {real})
                continue
            try:
                status = child.stat()
                yield Entry(path, status.st_size, str(status.st_mtime_ns))
            except OSError:  # a link to nowhere is listed, and rejected when it is read
                yield Entry(path, 0, "unreadable")

    def read(self, path: str) -> bytes:
        with open(os.path.join(self._root, path), "rb") as stream:
            return stream.read()


class RemoteTree:
    """A prefix of an object store."""

    def __init__(self, uri: str) -> None:
        self._uri = uri.rstrip("/")
        self._fs, self._path = storage.filesystem(self._uri)

    def entries(self) -> list[Entry]:
        found: dict[str, dict[str, Any]] = self._fs.find(self._path, detail=True)
        if not found:
            raise DataError(f"there is nothing at {self._uri}", "correct the path in data.source")
        prefix = self._path.rstrip("/") + "/"
        entries = [
            Entry(path.removeprefix(prefix), int(about["size"]), _modified(about))
            for path, about in found.items()
            if not is_hidden(path.removeprefix(prefix))
        ]
        return sorted(entries)

    def read(self, path: str) -> bytes:
        return storage.read_bytes(storage.join(self._uri, path))


class ZipTree:
    """The members of a zip archive, read in place."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._archive: zipfile.ZipFile | None = None

    def _open(self) -> zipfile.ZipFile:
        if self._archive is None:
            try:
                self._archive = zipfile.ZipFile(_open_archive(self._uri))
            except zipfile.BadZipFile as error:
                raise DataError(f"{self._uri} is not a whole zip archive ({error})", "download it again") from error
        return self._archive

    def entries(self) -> list[Entry]:
        members = [
            member for member in self._open().infolist() if not member.is_dir() and not is_hidden(member.filename)
        ]
        return sorted(Entry(member.filename, member.file_size, f"{member.CRC:08x}") for member in members)

    def read(self, path: str) -> bytes:
        try:
            return self._open().read(path)
        except (KeyError, zipfile.BadZipFile) as error:
            raise OSError(f"{path} in {self._uri} cannot be read ({error})") from error


class TarTree:
    """The members of a tar archive. Read in place where it is not compressed (a compressed one is slow to jump in)."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._archive: tarfile.TarFile | None = None
        self._members: dict[str, tarfile.TarInfo] = {}

    def _open(self) -> tarfile.TarFile:
        if self._archive is None:
            try:
                self._archive = tarfile.open(fileobj=_open_archive(self._uri))  # noqa: SIM115 - kept open for reading
                members = [member for member in self._archive.getmembers() if member.isfile()]
            except tarfile.TarError as error:
                raise DataError(f"{self._uri} is not a whole tar archive ({error})", "download it again") from error
            self._members = {member.name.removeprefix("./"): member for member in members}
        return self._archive

    def entries(self) -> list[Entry]:
        self._open()
        found = ((path, member) for path, member in self._members.items() if not is_hidden(path))
        return sorted(Entry(path, member.size, f"{member.offset}-{int(member.mtime)}") for path, member in found)

    def read(self, path: str) -> bytes:
        archive = self._open()
        member = self._members.get(path)
        stream = archive.extractfile(member) if member is not None else None
        if stream is None:
            raise OSError(f"{path} is not in {self._uri}")
        with stream:
            data = stream.read()
        if member is not None and len(data) != member.size:
            raise OSError(f"{path} in {self._uri} is cut short")
        return data


def _open_archive(uri: str) -> IO[bytes]:
    try:
        return storage.open_read(uri)
    except FileNotFoundError as error:
        raise DataError(f"there is no archive {uri}", "correct the path in data.source") from error


def _modified(about: dict[str, Any]) -> str:
    """What an object store says about an object's version: its ETag, else its time of change, else nothing."""
    for name in ("ETag", "etag", "LastModified", "updated", "mtime", "created"):
        if about.get(name):
            return str(about[name])
    return ""
