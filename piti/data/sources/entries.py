"""What a tree of files is: a listing, and a way to read one of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, order=True, slots=True)
class Entry:
    """One file: `path` relative to the tree with `/`, and what tells that its content may have changed."""

    path: str
    size_bytes: int
    modified: str

    @property
    def identity(self) -> str:
        return f"{self.path}|{self.size_bytes}|{self.modified}"

    @property
    def base_name(self) -> str:
        """The last component of the path."""
        return self.path.rsplit("/", 1)[-1]


class DamagedMemberError(OSError):
    """A member of an archive that is not whole, or that cannot be unpacked. Reading it again would fail the same way."""


class Tree(Protocol):
    """Files below one place."""

    def entries(self) -> list[Entry]:
        """Every file, sorted by path; hidden ones (a component begins with a dot) left out.

        Raises DataError where there is no such place.
        """

    def holds(self, folder: str) -> bool:
        """Whether there is a folder of that relative path ("": the tree itself), found without listing files."""

    def read(self, path: str) -> bytes:
        """Content of a file by its relative path. Raises OSError, and DamagedMemberError where the archive is at fault."""


def is_hidden(path: str) -> bool:
    """Whether a component of a relative path begins with a dot, or is macOS's archive litter."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.split("/"))


def stem(path: str) -> str:
    """A relative path without its file's suffix."""
    folder, slash, name = path.rpartition("/")
    return folder + slash + (name.rsplit(".", 1)[0] if "." in name else name)
