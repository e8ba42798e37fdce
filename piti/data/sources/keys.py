"""Names that are safe in a tar, and numbers that follow from a name alone."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from piti.seeds import stable_hash, unit_hash

_MAX_SLUG = 64
_HASH_DIGITS = 12


def safe_key(path: str, *place: str) -> str:
    """A key for any relative path: its readable part, then a hash of the whole path, and of `place`.

    Letters, digits, `-` and `_` only (a WebDataset key ends at the first dot), at most 77 characters. Two paths give
    two keys, also where only their folder, suffix, case or accents differ; so do equal paths in different places (the
    splits of a dataset that keeps each in a folder of its own, say).
    """
    stem = path.rsplit(".", 1)[0] if "." in path.rsplit("/", 1)[-1] else path
    plain = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode("ascii")
    slug = re.sub(r"[^A-Za-z0-9_]+", "-", plain).strip("-")[-_MAX_SLUG:].lstrip("-")
    digest = hashlib.sha256("\0".join([*place, path]).encode("utf-8", "surrogateescape")).hexdigest()[:_HASH_DIGITS]
    return f"{slug}-{digest}" if slug else digest


@dataclass(frozen=True)
class ValidationDraw:
    """Which names are for validation: about `share` of them by their own hash, and `extra`."""

    share: float
    extra: str | None = None

    def __contains__(self, name: str) -> bool:
        return name == self.extra or unit_hash("validation", name) < self.share


def draw_validation(names: Iterable[str], share: float) -> ValidationDraw:
    """About `share` of the names, drawn by their own hash, so that one keeps its split when others come or go; at
    least one where there are two. Reads no further than to the first that is drawn.
    """
    draw, first, least = ValidationDraw(share), None, None
    several = False
    for name in names:
        if name in draw:
            return draw
        first = name if first is None else first
        several = several or name != first
        candidate = (stable_hash("validation", name), name)
        least = candidate if least is None else min(least, candidate)
    return ValidationDraw(share, least[1]) if several and least is not None else draw
