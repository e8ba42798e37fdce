"""Zip and tar archives as trees of files, read in place by the standard library; a compressed tar is unpacked into the
local cache once.
"""

from __future__ import annotations

import bz2
import fcntl
import gzip
import hashlib
import io
import lzma
import os
import shutil
import stat
import tarfile
import weakref
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property, lru_cache
from pathlib import Path
from typing import IO, NamedTuple, cast

from piti import storage
from piti.data.cache import cache_folder
from piti.data.sources.listing import Entry, Listing, open_regular, stored_version
from piti.data.sources.members import Member, Members
from piti.data.sources.names import clean_path, is_hidden, pairing_name
from piti.data.sources.retrying import UnreadableFileError
from piti.errors import DataError

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_COPY_BYTES = 1 << 20
_ZIP_START = b"PK\3\4"
_UNICODE_PATH = 0x7075  # Info-ZIP's extra field: version, checksum of the plain name, name in UTF-8
_UTF8_FLAG, _DOS, _UNIX = 0x800, 0, 3
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError, OSError)


class _ArchiveTree(ABC):
    """The members of an archive, listed once for each process."""

    def __init__(self, uri: str) -> None:
        self._uri = uri

    @abstractmethod
    def _members(self) -> Iterator[Member]:
        """All that has a name in the archive, in its order."""

    @abstractmethod
    def _content(self, member: Member) -> bytes:
        """Content of one of `_members` that is a file or, in a zip archive, a link."""

    @cached_property
    def _files(self) -> dict[str, Member]:
        return Members(self._members()).files

    @cached_property
    def _listing(self) -> Listing:
        files = self._files.items()
        return Listing(Entry(path, file.size_bytes, file.version) for path, file in files if not is_hidden(path))

    @cached_property
    def _by_name(self) -> dict[str, Member]:
        return {pairing_name(path): member for path, member in self._files.items()}

    def entries(self) -> Listing:
        return self._listing

    def read(self, path: str) -> bytes:
        member = self._files.get(path) or self._by_name.get(pairing_name(path))
        if member is None:
            raise FileNotFoundError(f"{path} is not in {self._uri}")
        if member.fault is not None:
            raise UnreadableFileError(f"in {self._uri} it is {member.fault}")
        return self._content(member)


class ZipTree(_ArchiveTree):
    """The members of a zip archive."""

    @cached_property
    def _archive(self) -> zipfile.ZipFile:
        stream = open_archive(self._uri)
        weakref.finalize(self, stream.close)
        try:
            archive = zipfile.ZipFile(stream)
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise DataError(f"{self._uri} is not a whole zip archive ({error})", "download it again") from error
        begin = min((info.header_offset for info in archive.infolist()), default=0)
        if begin < 0:
            raise DataError(f"{self._uri} is not a whole zip archive (its beginning is missing)", "download it again")
        stream.seek(0)
        if begin and stream.read(len(_ZIP_START)) == _ZIP_START:
            raise DataError(
                f"{self._uri} begins with {begin} bytes of another zip archive, which its directory does not list",
                "take the archives that were joined apart",
            )
        return archive

    def _members(self) -> Iterator[Member]:
        for info in self._archive.infolist():
            name, kind = _zip_name(info), stat.S_IFMT(info.external_attr >> 16) if info.create_system == _UNIX else 0
            path = clean_path(name)
            if not path or name.endswith("/"):
                continue
            member = Member(path, info.file_size, f"{info.CRC:08x}", info)
            if kind == stat.S_IFLNK:
                member = self._link(member)
            elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                member = member._replace(fault="a pipe, socket or device, not a file")
            yield member

    def _link(self, member: Member) -> Member:
        try:
            return member._replace(link=os.fsdecode(self._content(member)))
        except OSError as error:
            return member._replace(fault=f"a link that cannot be read ({error})")

    def _content(self, member: Member) -> bytes:
        info: zipfile.ZipInfo = member.place
        try:
            return self._archive.read(info)
        except _ZIP_ERRORS as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise UnreadableFileError(f"{member.path} in {self._uri} cannot be read ({error})") from error


def _zip_name(info: zipfile.ZipInfo) -> str:
    """The name of a member as `unzip` shows it: its Unicode extra field, else UTF-8, else code page 437."""
    name = info.orig_filename.partition("\0")[0]
    if not info.flag_bits & _UTF8_FLAG:
        plain = name.encode("cp437")
        try:
            name = _unicode_path(info.extra, plain) or plain.decode("utf-8")
        except UnicodeDecodeError:
            if info.create_system == _UNIX:  # the bytes of the name as they were on the disk
                name = os.fsdecode(plain)
    return name.replace("\\", "/") if info.create_system == _DOS and "/" not in name else name


def _unicode_path(extra: bytes, plain: bytes) -> str | None:
    """The name in the extra field 0x7075, if it belongs to the member's plain name."""
    while len(extra) >= 4:
        kind, length = int.from_bytes(extra[:2], "little"), int.from_bytes(extra[2:4], "little")
        if kind == _UNICODE_PATH and int.from_bytes(extra[5:9], "little") == zlib.crc32(plain):
            return extra[9 : 4 + length].decode("utf-8")
        extra = extra[4 + length :]
    return None


class TarSpan(NamedTuple):
    """A member of the tar at `place` by its bytes there, headers and all: to read it, the tar need not be listed again."""

    place: str
    path: str
    begin: int
    end: int

    def read(self) -> bytes:
        """The member's content. Raises OSError, UnreadableFileError where the tar is at fault."""
        fs, path = storage.filesystem(plain_tar(self.place))
        data = io.BytesIO(fs.cat_file(path, start=self.begin, end=self.end))
        try:
            with tarfile.open(fileobj=data, mode="r:") as archive:
                member = archive.next()
                stream = None if member is None else archive.extractfile(member)
                content = b"" if stream is None or member is None else stream.read()
                if member is None or len(content) != member.size:
                    raise tarfile.ReadError("unexpected end of data")
                return content
        except tarfile.TarError as error:
            raise UnreadableFileError(f"{self.path} in {self.place} cannot be read ({error})") from error


class TarTree(_ArchiveTree):
    """The members of a tar archive."""

    def _members(self) -> Iterator[Member]:
        return tar_members(self._uri)

    def _content(self, member: Member) -> bytes:
        span: TarSpan = member.place
        return span.read()


def tar_members(uri: str) -> Iterator[Member]:
    """All but the folders of a tar, in the order in which they lie in it; of tars that were joined, of each.

    Raises DataError where it is missing, damaged or cut short.
    """
    plain = plain_tar(uri)
    try:
        with open_archive(plain) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            while True:
                found = archive.next()
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep all it has passed
                if found is None:
                    if not _goes_on(archive, stream, uri):
                        return
                elif not found.isdir() and (path := clean_path(found.name)):
                    yield _tar_member(found, path, TarSpan(uri, path, found.offset, archive.offset))
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{uri} is not a whole tar archive ({error})", "download it again") from error


def _tar_member(found: tarfile.TarInfo, path: str, span: TarSpan) -> Member:
    member = Member(path, found.size, f"{span.begin}-{int(found.mtime)}")
    if found.issym() or found.islnk():
        return member._replace(link=found.linkname, is_hard=found.islnk())
    if not found.isfile():
        return member._replace(fault="a pipe, socket or device, not a file")
    return member._replace(place=span)


def _goes_on(archive: tarfile.TarFile, stream: IO[bytes], uri: str) -> bool:
    """Whether another tar follows where `archive` has found no further header; it goes on there.

    A tar ends with two blocks of zeros. Raises DataError where something else lies there.
    """
    begin = position = archive.offset
    stream.seek(position)
    while block := stream.read(tarfile.BLOCKSIZE):
        if any(block):
            if position - begin < 2 * tarfile.BLOCKSIZE:
                raise DataError(f"{uri} is damaged: the tar has no header at byte {begin}", "download it again")
            archive.offset = position
            return True
        position += len(block)
    if position == begin:
        raise DataError(
            f"{uri} is cut short: the tar ends at byte {begin} without its last blocks", "download it again"
        )
    return False


def is_archive(uri: str) -> bool:
    """Whether a URI names an archive by its suffix (and is not a local folder that happens to be called so)."""
    if not uri.lower().endswith(ARCHIVE_SUFFIXES):
        return False
    return not (storage.is_local(uri) and storage.local_path(uri).is_dir())


def plain_tar(uri: str) -> str:
    """URI of the uncompressed tar: `uri` itself, or a copy in the local cache, since a compressed one cannot be
    jumped into. The copy is made once for each version of the archive and machine, and again once it was deleted.

    Raises DataError where the archive is missing or not whole.
    """
    if uri.lower().endswith(".tar"):
        return uri
    copy = _unpacked_copy(uri)
    if not copy.exists():
        _unpacked_copy.cache_clear()
        copy = _unpacked_copy(uri)
    return str(copy)


@lru_cache(maxsize=4096)
def _unpacked_copy(uri: str) -> Path:
    version = stored_version(uri)
    folder = cache_folder() / "archives"
    target = folder / f"{hashlib.sha256(f'{uri}|{version}'.encode()).hexdigest()[:32]}.tar"
    with storage.disk_space(f"a copy of {uri}", folder):
        folder.mkdir(parents=True, exist_ok=True)
        with open(target.with_suffix(".lock"), "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # others wait for the one that unpacks, instead of each unpacking
            if not target.exists():
                _unpack(uri, target)
    return target


def _unpack(uri: str, target: Path) -> None:
    # This process holds the lock: whoever left such a file was killed.
    storage.remove_older(target.parent, f".{target.name}.*.tmp", -1)
    try:
        with storage.aside(target) as whole:
            with open_archive(uri) as packed, _decompressed(packed, uri) as stream, open(whole, "wb") as plain:
                shutil.copyfileobj(stream, plain, _COPY_BYTES)
            os.replace(whole, target)
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the disk, not of the archive
            raise
        raise DataError(f"{uri} is not a whole compressed archive ({error})", "download it again") from error


def _decompressed(packed: IO[bytes], uri: str) -> IO[bytes]:
    if uri.lower().endswith(".xz"):
        return cast(IO[bytes], lzma.LZMAFile(packed))
    if uri.lower().endswith(".bz2"):
        return cast(IO[bytes], bz2.BZ2File(packed))
    return cast(IO[bytes], gzip.GzipFile(fileobj=packed))


def open_archive(uri: str) -> IO[bytes]:
    """Raises DataError where there is no archive."""
    try:
        return open_regular(uri)
    except FileNotFoundError as error:
        raise DataError(f"there is no archive {uri}", "correct the path in data.source") from error
    except UnreadableFileError as error:
        raise DataError(f"{uri} cannot be opened ({error})", "correct the path in data.source") from error
