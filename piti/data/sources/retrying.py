"""Failures to read are of two kinds. One is the file's own, and rejects the item for good. The other may pass: reading is
tried again, and then the job ends, so that the next run finds nothing wrongly rejected.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from typing import TypeVar

from piti import storage
from piti.data.items import RejectedItem
from piti.data.sources.names import shown
from piti.errors import DataError

logger = logging.getLogger("piti")

Value = TypeVar("Value")
_PAUSES_SECONDS = (0.2, 1.0, 3.0)
_ERRNOS_OF_THE_FILE = frozenset({errno.ELOOP, errno.ENAMETOOLONG})
_REMEDY = "run again: finished shards are kept"


class UnreadableFileError(OSError):
    """A file that will never be read: a damaged member of an archive, a link to nowhere, a pipe, a device."""


def read_patiently(what: str, read: Callable[[], Value]) -> Value:
    """What `read` gives; where it fails for a reason that may pass, tried again a few times, with growing pauses.

    Raises OSError where the file itself is the reason, DataError where it went on failing.
    """
    for pause_seconds in (*_PAUSES_SECONDS, None):
        try:
            return read()
        except Exception as error:
            if is_of_the_file(error) or not _is_of_reading(error):
                raise
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            if pause_seconds is None:
                raise DataError(f"cannot read {what} ({reason})", _REMEDY) from error
            logger.warning("cannot read %s (%s), trying again in %g s", what, reason, pause_seconds)
            time.sleep(pause_seconds)
    raise AssertionError("the last attempt returns or raises")


def read_or_reject(path: str, read: Callable[[], bytes]) -> bytes:
    """As `read_patiently`; where the file itself is the reason, RejectedItem."""
    try:
        return read_patiently(shown(path), read)
    except OSError as error:
        raise RejectedItem(shown(f"{path} cannot be read ({error.strerror or error})")) from error


_OF_THE_FILE = (FileNotFoundError, IsADirectoryError, NotADirectoryError, UnreadableFileError)


def is_of_the_file(error: Exception) -> bool:
    """Whether the file is at fault: it is missing, no file, closed to this user, or damaged.

    Object stores raise PermissionError also where a token has expired, so theirs counts as one that may pass.
    """
    if isinstance(error, PermissionError):
        return error.errno in (errno.EACCES, errno.EPERM)  # only a local filesystem gives a number
    return isinstance(error, _OF_THE_FILE) or (isinstance(error, OSError) and error.errno in _ERRNOS_OF_THE_FILE)


def _is_of_reading(error: Exception) -> bool:
    """Whether an error comes from reading at all: the system's, or one of an object store's client libraries."""
    return isinstance(error, OSError | EOFError) or storage.is_client_error(error)
