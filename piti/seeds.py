"""Seeds and hashes of values: the same on every machine and in every process."""

from __future__ import annotations

import hashlib


def seed_of(*parts: object) -> int:
    """A 63-bit seed from any values with a stable `str()`: numbers and strings."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def stable_hash(*parts: object) -> int:
    """A 64-bit hash of `parts`, each by its `str()`."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()[:8], "big")


def unit_hash(*parts: object) -> float:
    """`stable_hash` scaled to [0, 1)."""
    return (stable_hash(*parts) >> 11) / float(1 << 53)
