"""Files that only their owner may read: the cluster's token, the Prefect server's password."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from piti import storage
from piti.errors import StackError


def read_secret(path: Path) -> str | None:
    """What the file says; None if there is none, or it is empty. Raises StackError if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise StackError(f"{path} cannot be read ({reason.lower()})", "delete it; `piti up` makes a new one") from error


def ensure_secret(path: Path, prefix: str = "") -> str:
    """Make the file with `prefix` and 64 random hex digits if there is none; correct its mode otherwise. Its content."""
    known = read_secret(path)
    if known is not None:
        if path.stat().st_uid == os.getuid():
            path.chmod(0o600)
        return known
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    content = prefix + secrets.token_hex(32)
    storage.write_bytes(str(path), content.encode(), private=True)
    return content
