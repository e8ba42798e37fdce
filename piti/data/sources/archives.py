"""Zip and tar archives as trees of files, read in place; a compressed tar is unpacked into the local cache once."""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import lzma
import os
import shutil
import tarfile
import uuid
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from threading import Lock
from typing import IO, cast

from piti import storage
from piti.data.cache import cache_folder
from piti.data.sources.entries import DamagedMemberError, Entry, Listing, is_hidden
from piti.data.sources.zip_directory import ZipMember, member_span, read_member, zip_members
from piti.errors import DataError

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz")
_COPY_BYTES = 1 << 20
_REMOTE_BLOCK_BYTES = 1 << 20  # so much is fetched at once: members are small, and not read in order


def is_archive(uri: str) -> bool:
    """Whether a URI names an archive by its suffix (and is not a local folder that happens to be called so)."""
    if not uri.lower().endswith(ARCHIVE_SUFFIXES):
        return False
    return not (storage.is_local(uri) and storage.local_path(uri).is_dir())


class ZipTree:
    """The members of a zip archive."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._listing: Listing | None = None
        self._reading = Lock()  # of the one stream

    @cached_property
    def _stream(self) -> IO[bytes]:
        return _open_archive(self._uri)

    def entries(self) -> Listing:
        if self._listing is None:
            members = (member for member in self._members() if not member.path.endswith("/"))
            self._listing = Listing.located(
                (Entry(member.path, member.size_bytes, f"{member.crc:08x}"), member.place)
                for member in members
                if not is_hidden(member.path)
            )
        return self._listing

    def _members(self) -> Iterator[ZipMember]:
        try:
            with _open_archive(self._uri) as stream:
                yield from zip_members(stream)
        except zipfile.BadZipFile as error:
            raise DataError(f"{self._uri} is not a whole zip archive ({error})", "download it again") from error

    def holds(self, folder: str) -> bool:
        return storage.exists(self._uri) and bool(self.entries().below(folder) if folder else self.entries())

    def read(self, path: str) -> bytes:
        found = self.entries().located_entry(path)
        if found is None:
            raise FileNotFoundError(f"{path} is not in {self._uri}")
        entry, place = found
        try:
            with self._reading:
                return read_member(self._stream, path, entry.size_bytes, place)
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError) as error:
            raise DamagedMemberError(f"{path} in {self._uri} cannot be read ({error})") from error

    def read_soon(self, path: str) -> None:
        found = self.entries().located_entry(path)
        if found is not None and storage.is_local(self._uri):
            storage.read_soon(storage.local_path(self._uri), *member_span(found[1]))


@dataclass(frozen=True)
class TarMember:
    """Where a file lies in an uncompressed tar: `offset` of its content, in bytes."""

    path: str
    offset: int
    size_bytes: int
    modified: int


class TarTree:
    """The members of a tar archive."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._listing: Listing | None = None

    def entries(self) -> Listing:
        if self._listing is None:
            self._listing = Listing.of(
                Entry(member.path, member.size_bytes, f"{member.offset}-{member.modified}")
                for member in tar_members(self._uri)
                if not is_hidden(member.path)
            )
        return self._listing

    def holds(self, folder: str) -> bool:
        return storage.exists(self._uri) and bool(self.entries().below(folder) if folder else self.entries())

    def read(self, path: str) -> bytes:
        entry = self.entries().get(path)
        if entry is None:
            raise FileNotFoundError(f"{path} is not in {self._uri}")
        return read_span(self._uri, _offset(entry), entry.size_bytes)

    def read_soon(self, path: str) -> None:
        entry = self.entries().get(path)
        if entry is not None:
            read_span_soon(self._uri, _offset(entry), entry.size_bytes)


def _offset(member: Entry) -> int:
    """Where a tar's member begins, in bytes."""
    return int(member.modified.partition("-")[0])


def tar_members(uri: str) -> Iterator[TarMember]:
    """The regular files of a tar in the order they lie in it. Raises DataError where it is missing or not whole."""
    plain = plain_tar(uri)
    try:
        with _open_archive(plain) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep all it has passed
                if member.isfile():
                    path = member.name.removeprefix("./")
                    yield TarMember(path, member.offset_data, member.size, int(member.mtime))
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{uri} is not a whole tar archive ({error})", "download it again") from error


def read_span(uri: str, offset: int, size_bytes: int) -> bytes:
    """A stretch of a tar's content. Raises DamagedMemberError where the file ends before, OSError where reading fails."""
    plain = plain_tar(uri)
    if storage.is_local(plain):
        with storage.open_read(plain) as stream:
            stream.seek(offset)
            data = stream.read(size_bytes)
    else:
        fs, path = storage.filesystem(plain)
        data = bytes(fs.cat_file(path, start=offset, end=offset + size_bytes)) if size_bytes else b""
    if len(data) != size_bytes:
        raise DamagedMemberError(f"{uri} is cut short")
    return data


def read_span_soon(uri: str, offset: int, size_bytes: int) -> None:
    """Have a local disk begin to read what `read_span` will be asked for."""
    plain = plain_tar(uri)
    if storage.is_local(plain):
        storage.read_soon(storage.local_path(plain), offset, size_bytes)


@lru_cache(maxsize=4096)
def plain_tar(uri: str) -> str:
    """URI of the uncompressed tar: `uri` itself, or a copy in the local cache, since a compressed one cannot be
    jumped into. The copy is made once for each version of the archive and machine.

    Raises DataError where the archive is missing or not whole.
    """
    if uri.lower().endswith(".tar"):
        return uri
    fs, path = storage.filesystem(uri)
    try:
        about = fs.info(path)
    except FileNotFoundError as error:
        raise DataError(f"there is no archive {uri}", "correct the path in data.source") from error
    version = "|".join(str(about.get(name)) for name in ("size", "mtime", "ETag", "LastModified", "updated"))
    folder = cache_folder() / "archives"
    target = folder / f"{hashlib.sha256(f'{uri}|{version}'.encode()).hexdigest()[:32]}.tar"
    with storage.disk_space(f"a copy of {uri}", folder):
        folder.mkdir(parents=True, exist_ok=True)
        with open(target.with_suffix(".lock"), "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # others wait for the one that unpacks, instead of each unpacking
            if not target.exists():
                _unpack(uri, target)
    return str(target)


def _unpack(uri: str, target: Path) -> None:
    # This process holds the lock: whoever left such a file was killed.
    storage.remove_older(target.parent, f".{target.name}.*.tmp", -1)
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with _open_archive(uri) as packed, _decompressed(packed, uri) as stream, open(aside, "wb") as plain:
            shutil.copyfileobj(stream, plain, _COPY_BYTES)
        os.replace(aside, target)
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise DataError(f"{uri} is not a whole compressed archive ({error})", "download it again") from error
    finally:
        aside.unlink(missing_ok=True)


def _decompressed(packed: IO[bytes], uri: str) -> IO[bytes]:
    if uri.lower().endswith(".xz"):
        return cast(IO[bytes], lzma.LZMAFile(packed))
    return cast(IO[bytes], gzip.GzipFile(fileobj=packed))


def _open_archive(uri: str) -> IO[bytes]:
    fs, path = storage.filesystem(uri)
    try:
        if storage.is_local(uri):
            return storage.open_read(uri)
        return cast(IO[bytes], fs.open(path, "rb", block_size=_REMOTE_BLOCK_BYTES))
    except FileNotFoundError as error:
        raise DataError(f"there is no archive {uri}", "correct the path in data.source") from error
