"""A tree of files as a listing and a way to read one: a folder, local or in object storage, or inside an archive."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache, wraps
from typing import Any, TypeVar

from piti import storage
from piti.data.sources.archives import TarTree, ZipTree, is_archive
from piti.data.sources.entries import Entry, Listing, Tree, is_hidden
from piti.data.sources.object_store import stored_objects
from piti.errors import DataError

AnyTree = TypeVar("AnyTree", bound=Tree)

_shared: ContextVar[dict[Tree, Listing] | None] = ContextVar("shared_listings", default=None)


@contextmanager
def shared_listings() -> Iterator[None]:
    """Within this block each folder is listed once, however often it is asked for.

    For looking at a dataset from several sides in one go: millions of files in object storage take minutes to list.
    """
    token = _shared.set({})
    try:
        yield
    finally:
        _shared.reset(token)


def _shareable(lister: Callable[[AnyTree], Listing]) -> Callable[[AnyTree], Listing]:
    @wraps(lister)
    def entries(tree: AnyTree) -> Listing:
        shared = _shared.get()
        if shared is None:
            return lister(tree)
        if tree not in shared:
            shared[tree] = lister(tree)
        return shared[tree]

    return entries


@lru_cache(maxsize=64)
def open_tree(uri: str) -> Tree:
    """The tree at `uri`, which may not exist yet: then listing it raises DataError. Cached for each process.

    A folder, a prefix in an object store, a `.zip` or `.tar` (also compressed), or a folder inside one of these
    (`/data/train2017.zip/train2017`).
    """
    archive, inside = split_archive(uri)
    if archive is None:
        return LocalTree(uri) if storage.is_local(uri) else RemoteTree(uri)
    if inside:
        return SubTree(open_tree(archive), inside, uri)
    return ZipTree(archive) if archive.lower().endswith(".zip") else TarTree(archive)


def split_archive(uri: str) -> tuple[str | None, str]:
    """The archive that a URI names or leads into, and the folder inside it ("": all of it). (None, "") without one."""
    parts = uri.rstrip("/").split("/")
    for count in range(1, len(parts) + 1):
        beginning = "/".join(parts[:count])
        if is_archive(beginning):
            return beginning, "/".join(parts[count:])
    return None, ""


class SubTree:
    """A folder of another tree."""

    def __init__(self, tree: Tree, folder: str, uri: str) -> None:
        self._tree, self._folder, self._uri = tree, folder, uri

    def entries(self) -> Listing:
        found = self._tree.entries().below(self._folder)
        if not found:
            raise DataError(f"there is nothing at {self._uri}", "correct the path in data.source")
        return found

    def holds(self, folder: str) -> bool:
        return self._tree.holds(f"{self._folder}/{folder}".rstrip("/"))

    def read(self, path: str) -> bytes:
        return self._tree.read(f"{self._folder}/{path}")

    def read_soon(self, path: str) -> None:
        self._tree.read_soon(f"{self._folder}/{path}")


class LocalTree:
    """A folder on this machine. Symbolic links are followed; a loop of links is walked once."""

    def __init__(self, uri: str) -> None:
        self._root = str(storage.local_path(uri))

    @_shareable
    def entries(self) -> Listing:
        if not os.path.isdir(self._root):
            raise DataError(f"there is no folder {self._root}", "correct the path in data.source")
        return Listing.of(self._walk(self._root, "", frozenset()))

    def _walk(self, folder: str, relative: str, above: frozenset[str]) -> Iterator[Entry]:
        real = os.path.realpath(folder)
        if real in above:
            return
        try:
            children = os.scandir(folder)
        except PermissionError as error:
            raise DataError(f"the folder {folder} may not be read", "change its permissions") from error
        with children:
            for child in children:
                if is_hidden(child.name):
                    continue
                if _is_folder(child):
                    yield from self._walk(child.path, f"{relative}{child.name}/", above | {real})
                else:
                    yield _entry(child, f"{relative}{child.name}")

    def holds(self, folder: str) -> bool:
        return os.path.isdir(os.path.join(self._root, folder))

    def read(self, path: str) -> bytes:
        with open(os.path.join(self._root, path), "rb") as stream:
            return stream.read()

    def read_soon(self, path: str) -> None:
        storage.read_soon(os.path.join(self._root, path))


def _is_folder(child: os.DirEntry[str]) -> bool:
    try:
        return child.is_dir()
    except OSError:  # a link to itself is listed like one to nowhere
        return False


def _entry(child: os.DirEntry[str], path: str) -> Entry:
    try:
        status = child.stat()
    except OSError:  # a link to nowhere is listed, and rejected when it is read
        return Entry(path, 0, "unreadable")
    return Entry(path, status.st_size, str(status.st_mtime_ns))


class RemoteTree:
    """A prefix of an object store."""

    def __init__(self, uri: str) -> None:
        self._uri = uri.rstrip("/")
        self._fs, self._path = storage.filesystem(self._uri)

    @_shareable
    def entries(self) -> Listing:
        listing = Listing.of(entry for entry in self._found() if not is_hidden(entry.path))
        if not listing and next(self._found(), None) is None:
            raise DataError(f"there is nothing at {self._uri}", "correct the path in data.source")
        return listing

    def _found(self) -> Iterator[Entry]:
        for path, about in stored_objects(self._fs, self._path):
            yield Entry(path, int(about["size"]), _modified(about))

    def holds(self, folder: str) -> bool:
        return bool(storage.list_names(storage.join(self._uri, folder) if folder else self._uri))

    def read(self, path: str) -> bytes:
        return storage.read_bytes(storage.join(self._uri, path))

    def read_soon(self, path: str) -> None:
        """Nothing: a server is asked once."""


def _modified(about: dict[str, Any]) -> str:
    """What an object store says about an object's version: its ETag, else its time of change, else nothing."""
    for name in ("ETag", "etag", "LastModified", "updated", "mtime", "created"):
        if about.get(name):
            return str(about[name])
    return ""
