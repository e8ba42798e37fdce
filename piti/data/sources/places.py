"""Where below its root a part of a dataset lies: unpacked, or still in the archive it is distributed in."""

from __future__ import annotations

from collections.abc import Sequence

from piti import storage
from piti.data.sources.trees import open_tree, split_archive


def find_place(root: str, candidates: Sequence[str]) -> str | None:
    """URI of the first candidate folder (relative to `root`) that is there; None if none is.

    A candidate may lead into an archive (`train2017.zip/train2017`). `root` may itself be an archive.
    """
    for candidate in candidates:
        uri = storage.join(root, candidate) if candidate else root
        if _is_there(uri):
            return uri
    return None


def _is_there(uri: str) -> bool:
    archive, inside = split_archive(uri)
    if archive is None:
        return open_tree(uri).holds("")
    return storage.exists(archive) and open_tree(archive).holds(inside)


def archive_forms(name: str) -> list[str]:
    """The names under which a folder `name` may lie packed: `name.zip`, `name.tar.gz`, ..."""
    return [f"{name}{suffix}" for suffix in (".zip", ".tar", ".tar.gz", ".tgz")]


def forms(name: str, inside: str | None = None) -> list[str]:
    """Candidates for a folder: unpacked, or packed with the folder `inside` (default: `name`'s last part) in it."""
    inner = name.rsplit("/", 1)[-1] if inside is None else inside
    packed = [f"{form}/{inner}" if inner else form for form in archive_forms(name)]
    return [name, *packed]
