"""Names of files: cleaned, compared, shown to people, and made into keys that are safe in a tar."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable

from piti.seeds import stable_hash, unit_hash

_MAX_SLUG = 64
_HASH_DIGITS = 12


def clean_path(raw: str) -> str:
    """A name as a path relative to its source: one `/` between parts, no `.` or `..`, no leading `/`.

    A `..` that would leave the source is dropped, as `tar` and `unzip` do: `../a.png` is `a.png`.
    """
    if "//" not in raw and not raw.startswith(("/", ".")) and "/." not in raw:
        return raw.rstrip("/")
    parts: list[str] = []
    for part in raw.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def pairing_name(path: str) -> str:
    """What two paths have in common where they name the same thing: `clean_path`, `/` for backslashes, composed Unicode."""
    path = clean_path(path.replace("\\", "/"))
    return path if path.isascii() else unicodedata.normalize("NFC", path)


def stem(path: str) -> str:
    """A relative path without its file's suffix."""
    dot = path.rfind(".")
    return path[:dot] if dot > path.rfind("/") else path


def shown(text: str) -> str:
    r"""A name that any encoding can hold: bytes of a file name that are no UTF-8 become `\udc..`."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def is_hidden(path: str) -> bool:
    """Whether a component of a relative path begins with a dot, or is macOS's archive litter."""
    return path.startswith(".") or "/." in path or ("__MACOSX" in path and "__MACOSX" in path.split("/"))


def safe_key(path: str, *place: str) -> str:
    """A key for any relative path: its readable part, then a hash of the whole path, and of `place`.

    Letters, digits, `-` and `_` only (a WebDataset key ends at the first dot), at most 77 characters. Two paths give
    two keys, also where only their folder, suffix, case or accents differ; so do equal paths in different places (the
    splits of a dataset that keeps each in a folder of its own, say).
    """
    plain = unicodedata.normalize("NFKD", stem(path)).encode("ascii", "ignore").decode("ascii")
    slug = re.sub(r"[^A-Za-z0-9_]+", "-", plain).strip("-")[-_MAX_SLUG:].lstrip("-")
    digest = hashlib.sha256("\0".join([*place, path]).encode("utf-8", "surrogateescape")).hexdigest()[:_HASH_DIGITS]
    return f"{slug}-{digest}" if slug else digest


def draw_validation(names: Iterable[str], share: float) -> Callable[[str], bool]:
    """Whether a name is for validation: about `share` of the names, drawn by their own hash, so that one keeps its
    split when others come or go; at least one where there are two. Reads no further than to the first that is drawn.
    """

    def is_drawn(name: str) -> bool:
        return unit_hash("validation", name) < share

    passed_over = set()
    for name in names:
        if is_drawn(name):
            return is_drawn
        passed_over.add(name)
    if len(passed_over) < 2:
        return is_drawn
    only = min(passed_over, key=lambda name: (stable_hash("validation", name), name))
    return lambda name: name == only
