"""The tree of files at a place: a folder, a prefix in an object store, an archive, or a folder inside one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache

from piti import storage
from piti.data.sources.archives import ARCHIVE_SUFFIXES, TarTree, ZipTree, is_archive
from piti.data.sources.listing import Entry, Listing, Tree, object_version, read_file
from piti.data.sources.names import clean_path, is_hidden
from piti.errors import DataError

_shared: ContextVar[dict[str, Listing] | None] = ContextVar("shared_listings", default=None)


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


@lru_cache(maxsize=64)
def open_tree(uri: str) -> Tree:
    """The tree at `uri`, which may not exist yet: then listing it raises DataError. Cached for each process.

    A folder, a prefix in an object store, a `.zip` or `.tar` (also compressed), or a folder inside one of these
    (`/data/train2017.zip/train2017`).
    """
    archive, inside = split_archive(uri)
    if archive is None:
        return FolderTree(uri)
    if inside:
        return SubTree(open_tree(archive), clean_path(inside), uri)
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
        if not len(found):
            raise DataError(f"there is nothing at {self._uri}", "correct the path in data.source")
        return found

    def read(self, path: str) -> bytes:
        return self._tree.read(f"{self._folder}/{path}")


class FolderTree:
    """A folder on this machine or a prefix in an object store. Symbolic links are followed; a loop is walked once."""

    def __init__(self, uri: str) -> None:
        self._uri = str(storage.local_path(uri)) if storage.is_local(uri) else uri.rstrip("/")

    def entries(self) -> Listing:
        shared = _shared.get()
        if shared is None:
            return self._list()
        if self._uri not in shared:
            shared[self._uri] = self._list()
        return shared[self._uri]

    def _list(self) -> Listing:
        if not storage.is_local(self._uri):
            return Listing(_stored_objects(self._uri))
        if not os.path.isdir(self._uri):
            raise DataError(f"there is no folder {self._uri}", "correct the path in data.source")
        return Listing(_walk(self._uri, "", frozenset()))

    def read(self, path: str) -> bytes:
        return read_file(f"{self._uri}/{path}")


def _walk(folder: str, relative: str, above: frozenset[str]) -> Iterator[Entry]:
    """The files of a local folder. `above`: the folders that lead here, which a link must not lead back to."""
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
                yield from _walk(child.path, f"{relative}{child.name}/", above | {real})
            else:
                yield _entry(child, f"{relative}{child.name}")


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


def _stored_objects(uri: str) -> Iterator[Entry]:
    """Every object below a prefix. Raises DataError where there is none."""
    fs, place = storage.filesystem(uri)
    fs.invalidate_cache()
    found = fs.find(place, detail=True)
    fs.invalidate_cache()  # it would keep what it has listed
    if not found:
        raise DataError(f"there is nothing at {uri}", "correct the path in data.source")
    prefix = place.rstrip("/") + "/"
    for name, about in found.items():
        path = name.removeprefix(prefix)
        if not is_hidden(path):
            yield Entry(path, int(about.get("size") or 0), object_version(about))


def find_place(root: str, candidates: Sequence[str]) -> str | None:
    """URI of the first candidate folder (relative to `root`) that is there; None if none is.

    A candidate may lead into an archive (`train2017.zip/train2017`). `root` may itself be an archive.
    """
    uris = (storage.join(root, candidate) if candidate else root for candidate in candidates)
    return next((uri for uri in uris if _is_there(uri)), None)


def _is_there(uri: str) -> bool:
    """Whether there is a folder at `uri`; of one that is in no archive, without listing its files."""
    archive, inside = split_archive(uri)
    if archive is None:
        return storage.local_path(uri).is_dir() if storage.is_local(uri) else bool(storage.list_names(uri))
    if not storage.exists(archive):
        return False
    beginning = f"{inside}/" if inside else ""
    return any(entry.path.startswith(beginning) for entry in open_tree(archive).entries())


def archive_forms(name: str) -> list[str]:
    """The names under which a folder `name` may lie packed: `name.zip`, `name.tar.gz`, ..."""
    return [f"{name}{suffix}" for suffix in ARCHIVE_SUFFIXES]


def forms(name: str, inside: str | None = None) -> list[str]:
    """Candidates for a folder: unpacked, or packed with the folder `inside` (default: `name`'s last part) in it."""
    inner = name.rsplit("/", 1)[-1] if inside is None else inside
    packed = [f"{form}/{inner}" if inner else form for form in archive_forms(name)]
    return [name, *packed]
