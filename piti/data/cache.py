"""Copies of remote files on this machine: the folder that holds them, and a bounded cache of tars."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

from piti import storage
from piti.errors import ConfigError, DataError, repair_advice
from piti.settings import settings

logger = logging.getLogger("piti")

_ATTEMPTS = 2
_ABANDONED_SECONDS = 3600.0  # a download that has not grown for so long belongs to a process that was killed


def cache_folder() -> Path:
    """Where this machine keeps copies of remote and unpacked files: `$PITI_CACHE`, else one in the temporary folder.

    Only its user may enter the folder in the temporary one. Raises ConfigError where somebody else owns that name.
    """
    if (chosen := settings().cache) is not None:
        return chosen
    folder = Path(tempfile.gettempdir()) / f"piti-cache-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700, parents=True)
    about = folder.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid():
        raise ConfigError(f"{folder} is not a folder of this user", "set PITI_CACHE to a folder of yours")
    if stat.S_IMODE(about.st_mode) & 0o077:
        folder.chmod(0o700)
    return folder


class ShardCache:
    """Whole files of an object store on local disk, the least recently used deleted first.

    All processes of a machine share it. Files appear whole. A file that another process deletes is fetched again.
    `limit_bytes` (None: `$PITI_CACHE_BYTES`) bounds the cache, but one file is always kept, even with 0.
    """

    def __init__(self, folder: Path | None = None, limit_bytes: int | None = None) -> None:
        self._folder = folder or cache_folder()
        self._limit_bytes = settings().cache_bytes if limit_bytes is None else limit_bytes
        self._lock = threading.Lock()  # guards `_fetching` and evicting
        self._fetching: dict[Path, threading.Lock] = {}

    def path(self, uri: str, sha256: str, size_bytes: int) -> Path:
        """A local copy of `uri`, which has that hash and size.

        A copy that differs is fetched once more. A copy of the right size that still differs is used with a warning:
        every sample has a hash of its own. Raises DataError for another size, FileNotFoundError if `uri` is gone.
        """
        target = self._folder / f"{hashlib.sha256(f'{uri}|{sha256}'.encode()).hexdigest()[:32]}.tar"
        with self._lock:
            mine = self._fetching.setdefault(target, threading.Lock())
        with mine:  # only those who want this file wait
            if target.exists() and target.stat().st_size == size_bytes:
                os.utime(target)
                return target
            _fetch(uri, target, sha256, size_bytes)
            with self._lock:
                self._evict(target)
            return target

    def _evict(self, keep: Path) -> None:
        storage.remove_older(self._folder, ".*.tmp", _ABANDONED_SECONDS)
        files, used = [], 0
        for path in (*self._folder.glob("*.tar"), *self._folder.glob(".*.tmp")):
            try:
                about = path.stat()
            except FileNotFoundError:  # deleted by another process
                continue
            used += about.st_size
            if path.suffix == ".tar":
                files.append((about.st_mtime, about.st_size, path))
        for _, size, path in sorted(files):
            if used <= self._limit_bytes:
                break
            if path != keep:
                path.unlink(missing_ok=True)
                used -= size


def _fetch(uri: str, target: Path, sha256: str, size_bytes: int) -> None:
    with storage.aside(target) as copy:
        for _ in range(_ATTEMPTS):
            storage.fetch(uri, copy)
            found_bytes, is_same = copy.stat().st_size, storage.sha256_file(str(copy)) == sha256
            if is_same:
                break
        if found_bytes != size_bytes:
            problem = f"{uri} has {found_bytes} bytes, its manifest says {size_bytes}"
            raise DataError(problem, repair_advice(uri.rpartition("/")[0]))
        if not is_same:
            logger.warning("%s has other bytes than were written: its damaged samples will be skipped", uri)
        os.replace(copy, target)
