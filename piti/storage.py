"""One way to name, read and publish files, whether they are local or in an object store.

A *URI* is a local path (`runs/demo`, `/data/x`, `file:///data/x`) or an fsspec URL (`s3://bucket/x`, `gs://bucket/x`,
`memory://x`), or a file that this package ships (`piti://x`, from piti/assets). A published file is never visible in
part: local files are written to a temporary name, flushed and renamed; object stores show an object only once its
upload is complete. A folder is published with its marker file last; a folder without its marker does not count.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.core import url_to_fs

from piti.errors import AwayError, DataError, DiskFullError, first_line

logger = logging.getLogger("piti")

MARKER = "DONE.json"
ASSETS = Path(__file__).resolve().parent / "assets"  # what the package ships
_SHIPPED = "piti://"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)  # of an OSError
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)  # of exFAT, CIFS and many FUSE mounts
_CONFLICT = "ConditionalRequestConflict"  # of S3, where another request for the object was under way: put again
_CHUNK_BYTES = 1 << 20
PATIENCE_SECONDS = 600.0  # with storage that is away
_LOOK_SECONDS = 1.0


@contextmanager
def disk_space(what: str, place: str | Path | Callable[[], str | Path]) -> Iterator[None]:
    """Wrap (or decorate) code that writes `what` to the local folder `place`: a full disk or quota raises a
    DiskFullError that names both. A nested `disk_space` keeps the innermost error, which names the folder.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        folder = place() if callable(place) else place
        raise DiskFullError(f"no space left for {what} in {folder}", "free some space there and run again") from error


_CLIENT_LIBRARIES = frozenset(
    {"aiobotocore", "aiohttp", "azure", "botocore", "fsspec", "gcsfs", "google", "requests", "s3fs", "urllib3"}
)


def is_client_error(error: BaseException) -> bool:
    """Whether an object store's client library raised this error. Some of these libraries' errors are no OSErrors."""
    return type(error).__module__.partition(".")[0] in _CLIENT_LIBRARIES


def is_failure(error: BaseException) -> bool:
    """Whether storage failed: an OSError, an error of an object store's client library, a full disk, or a set that stays
    away."""
    return isinstance(error, OSError | DiskFullError | AwayError) or is_client_error(error)


@contextmanager
def tolerated(what: str) -> Iterator[None]:
    """Where storage fails, log a warning that begins with `what`, and go on after the block."""
    try:
        yield
    except Exception as error:
        if not is_failure(error):
            raise
        logger.warning("%s: %s", what, first_line(error))


def is_local(uri: str) -> bool:
    """Whether `uri` names a file on this machine (no scheme, `file://` or `piti://`)."""
    return "://" not in uri or uri.startswith(("file://", _SHIPPED))


def local_path(uri: str) -> Path:
    """The path behind a local URI, with `~` expanded. Raises ValueError for a remote one."""
    if not is_local(uri):
        raise ValueError(f"{uri} is not a local path")
    if uri.startswith(_SHIPPED):
        return ASSETS / uri.removeprefix(_SHIPPED)
    return Path(os.path.expanduser(uri.removeprefix("file://")))  # an unknown user's ~ stays as it is


def absolute(uri: str) -> str:
    """`uri` as an absolute path. Remote URIs and shipped files stay as they are."""
    return str(local_path(uri).absolute()) if is_local(uri) and not uri.startswith(_SHIPPED) else uri.rstrip("/")


def as_link(uri: str) -> str:
    """A link for browsers: `file://` for a local path; a remote URI stays as it is."""
    return local_path(uri).absolute().as_uri() if is_local(uri) else uri


def join(uri: str, *parts: str) -> str:
    """Append path components with single slashes."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def name(uri: str) -> str:
    """The last component of a URI."""
    return uri.rstrip("/").rsplit("/", 1)[-1]


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec filesystem for `uri` and the path on it. pyarrow accepts the filesystem, too."""
    fs, path = url_to_fs(str(local_path(uri)) if is_local(uri) else uri)
    return fs, path


def exists(uri: str) -> bool:
    fs, path = filesystem(uri)
    fs.invalidate_cache()
    return bool(fs.exists(path))


def wait_until_there(uri: str, seconds: float = PATIENCE_SECONDS) -> bool:
    """Return once `uri`, which was there before, exists: at once (False), or when its mount or its server is back (True).

    Raises AwayError after `seconds`.
    """
    deadline, is_told = time.monotonic() + seconds, False
    while True:
        try:
            if exists(uri):
                return is_told
            reason = "it is not there"
        except Exception as error:
            if not is_failure(error):
                raise
            reason = first_line(error)
        if time.monotonic() >= deadline:
            raise AwayError(f"{uri} does not answer ({reason})", "mount its folder or start its server again")
        if not is_told:
            logger.warning("%s does not answer (%s); waiting for it", uri, reason)
            is_told = True
        time.sleep(_LOOK_SECONDS)


def list_names(uri: str) -> list[str]:
    """Sorted names of the files and folders directly in `uri`; empty if it does not exist.

    Names beginning with a dot (files still being written) are left out.
    """
    fs, path = filesystem(uri)
    fs.invalidate_cache()
    try:
        entries = fs.ls(path, detail=False)
    except (FileNotFoundError, NotADirectoryError):
        return []
    names = {name(str(entry)) for entry in entries if str(entry).rstrip("/") != path.rstrip("/")}
    return sorted(entry for entry in names if not entry.startswith("."))


def open_read(uri: str) -> IO[bytes]:
    """Open for reading bytes; local or remote. Raises FileNotFoundError."""
    fs, path = filesystem(uri)
    return fs.open(path, "rb")  # type: ignore[no-any-return]


def read_bytes(uri: str) -> bytes:
    with open_read(uri) as stream:
        return stream.read()


def read_text(uri: str) -> str:
    return read_bytes(uri).decode("utf-8")


def read_json(uri: str) -> Any:
    """Parse a JSON file. Raises FileNotFoundError, or DataError where it is not JSON."""
    try:
        return json.loads(read_bytes(uri))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{uri} is not valid JSON ({error})", "delete it and run again") from error


@contextmanager
def aside(target: Path) -> Iterator[Path]:
    """A new name beside `target` to write to, before the file is moved there. What is left there is deleted."""
    path = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def write_bytes(uri: str, data: bytes, private: bool = False) -> None:
    """Write `data` to `uri` atomically: a process killed at any moment leaves the old file or the new one. `private`:
    mode 600 for a local file. Raises DiskFullError."""
    if not is_local(uri):
        fs, path = filesystem(uri)
        fs.pipe_file(path, data)
        return
    target = local_path(uri)
    with disk_space(target.name, target.parent), aside(target) as whole:
        target.parent.mkdir(parents=True, exist_ok=True)
        mode = 0o600 if private else 0o666
        with open(whole, "wb", opener=lambda path, flags: os.open(path, flags, mode)) as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(whole, target)


def create_bytes(uri: str, data: bytes, private: bool = False) -> bool:
    """As `write_bytes`, but only if `uri` does not exist yet. Returns whether this call created it: exactly one of
    several callers at once gets True. On a filesystem without hard links, a process killed in between leaves a part."""
    if not is_local(uri):
        return _create_object(*filesystem(uri), data)
    target = local_path(uri)
    with aside(target) as whole:
        write_bytes(str(whole), data, private)
        try:
            os.link(whole, target)  # fails where the name is taken, unlike a rename
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            return _create_in_place(target, data, private)
    return True


def _create_object(fs: fsspec.AbstractFileSystem, path: str, data: bytes, may_repeat: bool = True) -> bool:
    try:
        fs.pipe_file(path, data, mode="create")
    except OSError as error:  # stores other than AWS's tell in words of their own that there is such an object
        fs.invalidate_cache()
        if fs.exists(path):
            return False
        if may_repeat and _CONFLICT in str(error):
            return _create_object(fs, path, data, may_repeat=False)
        raise
    return True


def _create_in_place(target: Path, data: bytes, private: bool) -> bool:
    try:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666)
    except FileExistsError:
        return False
    try:
        with disk_space(target.name, target.parent), open(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    return True


def read_json_if_there(uri: str) -> dict[str, Any] | None:
    """`read_json` of an object; None where there is no file, or a file where its folder would be. Raises DataError for
    any other JSON."""
    try:
        found = read_json(uri)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not isinstance(found, dict):
        raise DataError(f"{uri} holds no JSON object", "delete it and run again")
    return found


def write_json(uri: str, value: Any) -> None:
    """Publish `value` as strict JSON. Raises ValueError for NaN and Infinity."""
    write_bytes(uri, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode("utf-8"))


def publish_file(source: Path, uri: str) -> None:
    """Move a finished local file to `uri`, where it appears whole. `source` is deleted. Raises DiskFullError, and
    DataError if the uploaded size differs."""
    if not is_local(uri):
        fs, path = filesystem(uri)
        fs.put_file(str(source), path)
        if fs.info(path)["size"] != source.stat().st_size:
            raise DataError(f"{uri} has another size than what was uploaded", "run again")
        source.unlink()
        return
    target = local_path(uri)
    with disk_space(target.name, target.parent), aside(target) as whole:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.replace(source, whole)
        except OSError:  # another filesystem
            shutil.copyfile(source, whole)
            source.unlink()
        with open(whole, "rb") as stream:
            os.fsync(stream.fileno())
        os.replace(whole, target)


def publish_folder(source: Path, uri: str) -> None:
    """Move every file of a local folder to `uri`, DONE.json last. `source` is deleted.

    Raises ValueError if `source` lacks the marker.
    """
    if not (source / MARKER).is_file():
        raise ValueError(f"{source} has no {MARKER}")
    files = sorted(path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file())
    for relative in [*(path for path in files if path != MARKER), MARKER]:
        publish_file(source / relative, join(uri, relative))
    shutil.rmtree(source)


def fetch(uri: str, target: Path) -> Path:
    """A local file with the content of `uri`: the file itself if local, else a download at `target`. Raises
    FileNotFoundError for a missing remote file, DiskFullError."""
    if is_local(uri):
        return local_path(uri)
    with disk_space(f"a copy of {uri}", target.parent), aside(target) as whole:
        target.parent.mkdir(parents=True, exist_ok=True)
        fs, path = filesystem(uri)
        fs.get_file(path, str(whole))
        os.replace(whole, target)
    return target


def remove_older(folder: Path, pattern: str, seconds: float) -> None:
    """Delete this user's files in a local folder that match `pattern` and have not been written to for `seconds`."""
    for path in folder.glob(pattern):
        with suppress(OSError):  # deleted by another process, or not ours to delete
            about = path.lstat()
            if about.st_uid == os.getuid() and time.time() - about.st_mtime > seconds:
                path.unlink()


def remove(uri: str) -> None:
    """Delete a file, or a folder with everything in it. A missing one is no error."""
    fs, path = filesystem(uri)
    if fs.exists(path):
        fs.rm(path, recursive=True)


def untouched_seconds(uri: str) -> float:
    """Seconds since the last write of a file in a folder; 0 for an empty folder, or a store that does not tell."""
    fs, path = filesystem(uri)
    fs.invalidate_cache()
    try:
        times = [fs.modified(file).timestamp() for file in fs.find(path)]
    except NotImplementedError:
        return 0.0
    return time.time() - max(times) if times else 0.0


def sha256_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_file(uri: str) -> str:
    """Hex sha256 of a file's content, read in pieces."""
    digest = hashlib.sha256()
    with open_read(uri) as stream:
        while piece := stream.read(_CHUNK_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def free_bytes(uri: str) -> int | None:
    """Bytes free where a local URI lies (its nearest existing parent); None for an object store."""
    if not is_local(uri):
        return None
    path = local_path(uri).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
