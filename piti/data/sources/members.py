"""The members of an archive, as they would lie in a folder after extraction.

Links lead to files or folders of the archive, never out of it. Of two members with one path, the later one counts. A link to
nowhere or a pipe is listed, too, and cannot be read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any, NamedTuple

from piti.data.sources.names import clean_path, is_hidden

_MOST_LINKS = 40  # followed for one name, as on Linux


class Member(NamedTuple):
    """A member of an archive. `place`: where the archive keeps a file's content, None for what is no file.

    `link`: what a symbolic link says; of a hard link, the path in the archive. `fault`: why it cannot be read.
    """

    path: str
    size_bytes: int
    version: str
    place: Any = None
    link: str | None = None
    is_hard: bool = False
    fault: str | None = None


class Members:
    """The files of an archive by path, links followed."""

    def __init__(self, members: Iterable[Member]) -> None:
        self._plain: dict[str, Member] = {}
        self._links: dict[str, str] = {}
        for member in members:
            self._add(member)
        self.files = dict(self._walk("", "", frozenset())) if self._links else self._plain

    def _add(self, member: Member) -> None:
        self._plain.pop(member.path, None)
        self._links.pop(member.path, None)
        if member.link is None:
            self._plain[member.path] = member
        elif not member.is_hard:
            self._links[member.path] = member.link
        elif (target := self._plain.get(clean_path(member.link))) is not None:
            self._plain[member.path] = target
        else:  # to a link, or to what comes later
            self._links[member.path] = "../" * member.path.count("/") + clean_path(member.link)

    def _walk(self, folder: str, relative: str, above: frozenset[str]) -> Iterator[tuple[str, Member]]:
        """What a folder of the archive holds, by the path `relative` that leads there. `above`: folders on the way."""
        if folder in above:
            return
        for name in self._folders.get(folder, ()):
            path, step = f"{relative}{name}", f"{folder}/{name}".lstrip("/")
            if step in self._links:
                target = self._target(step)
                if target in self._plain:
                    yield path, self._plain[target]
                elif target in self._folders:
                    yield from self._walk(target, f"{path}/", above | {folder})
                elif not is_hidden(path):
                    yield (
                        path,
                        Member(path, 0, "unreadable", fault=f"a link to {self._links[step]}, which is not there"),
                    )
            elif step in self._plain:
                yield path, self._plain[step]
            if step in self._folders:
                yield from self._walk(step, f"{path}/", above | {folder})

    @cached_property
    def _folders(self) -> dict[str, list[str]]:
        """Names in each folder."""
        found: dict[str, set[str]] = {}
        for path in (*self._plain, *self._links):
            while path:
                folder, _, name = path.rpartition("/")
                found.setdefault(folder, set()).add(name)
                path = folder
        return {folder: sorted(names) for folder, names in found.items()}

    def _target(self, path: str) -> str | None:
        """The file or folder to which a path leads, links followed; None where that is nowhere or outside."""
        waiting, here, num_links = path.split("/")[::-1], "", 0
        while waiting:
            part = waiting.pop()
            step = f"{here}/{part}".lstrip("/")
            if part == "..":
                if not here:
                    return None
                here = here.rpartition("/")[0]
            elif step in self._links:
                num_links += 1
                link = self._links[step]
                if num_links > _MOST_LINKS or link.startswith("/"):
                    return None
                waiting += link.split("/")[::-1]
            elif part not in ("", "."):
                here = step
        return here
