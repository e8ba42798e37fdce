"""Reading ahead while a shard is written: disks are told what comes next, servers are asked for several items at once."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import pickle
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import pytest

from piti import storage
from piti.config import DataConfig
from piti.data import sharding
from piti.data.sharding import ShardPlan, plan_shards, write_shard
from piti.data.shards import ShardSet
from piti.data.sources import Item, LoadedItem, archives, open_source
from piti.data.sources.files import FileItem, FilePart, Reading, TarSpan, TreeFile
from piti.data.sources.listing import UriFile
from piti.data.sources.trees import open_tree
from piti.errors import DataError

MakeData = Callable[..., DataConfig]


def archived(pictures: Path, make_data: MakeData, folder: Path) -> tuple[DataConfig, ShardPlan]:
    """A tar of pictures as source, and the plan of its first shard."""
    with tarfile.open(folder / "pictures.tar", "w") as archive:
        archive.add(pictures, "pictures")
    data = make_data(folder / "pictures.tar")
    return data, next(iter(plan_shards(open_source(data), data, seed=0)))


@dataclass(frozen=True)
class Late:
    """An item that takes its time to load, or fails for a reason that is not its own."""

    item: Item
    seconds: float
    fails: bool = False
    is_remote: bool = False

    @property
    def key(self) -> str:
        return self.item.key

    @property
    def origin(self) -> str:
        return self.item.origin

    @property
    def size_bytes(self) -> int:
        return self.item.size_bytes

    def read_soon(self) -> None:
        assert not self.is_remote

    def load(self) -> LoadedItem:
        time.sleep(self.seconds)
        if self.fails:
            raise DataError("the server is away", "wait")
        return self.item.load()


def late(plan: ShardPlan, failing: int | None = None, is_remote: bool = False) -> ShardPlan:
    """The same plan, whose items are ready in another order than theirs."""
    items = [
        Late(item, 0.02 * (3 - number % 4), number == failing, is_remote) for number, item in enumerate(plan.items)
    ]
    return ShardPlan(plan.name, plan.split, plan.plan, [pickle.dumps(item) for item in items])


@pytest.mark.parametrize("is_remote", [False, True], ids=["local", "remote"])
def test_items_read_ahead_are_stored_in_order(
    sketch_data: DataConfig, sketch_set: ShardSet, tmp_path: Path, is_remote: bool
) -> None:
    first = next(iter(plan_shards(open_source(sketch_data), sketch_data, seed=0)))
    assert first.num_items > 5
    found = write_shard(late(first, is_remote=is_remote), sketch_data, str(tmp_path / "late"))
    assert found.tar_sha256 == sketch_set.stats[first.name].tar_sha256
    with pytest.raises(DataError, match="the server is away"):
        write_shard(late(first, failing=3, is_remote=is_remote), sketch_data, str(tmp_path / "failed"))
    assert not list((tmp_path / "failed").rglob("*.tar"))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("piti-reader")]


@dataclass(frozen=True)
class Meeting:
    """An item of a server that loads once others are being loaded, too."""

    item: Item
    others: threading.Barrier
    is_remote: bool = True

    def load(self) -> LoadedItem:
        self.others.wait(timeout=60)
        return self.item.load()


def test_a_server_is_asked_for_several_items_at_once(sketch_data: DataConfig) -> None:
    first, *others = next(iter(plan_shards(open_source(sketch_data), sketch_data, seed=0))).items
    together = threading.Barrier(4)
    items = [first, *(Meeting(item, together) for item in others[:4])]
    assert [item for item, _ in sharding._read_ahead(items)] == items


@dataclass(frozen=True)
class Noted:
    """A local item that notes what is asked of it."""

    number: int
    size_bytes: int
    notes: list[tuple[str, int]] = field(compare=False)
    is_remote: bool = False

    def read_soon(self) -> None:
        self.notes.append(("soon", self.number))

    def load(self) -> int:
        self.notes.append(("load", self.number))
        return self.number


@pytest.mark.parametrize("size_bytes", [0, 300_000, 50_000_000], ids=["unknown", "usual", "huge"])
def test_a_disk_is_told_of_each_item_before_it_is_loaded_but_not_of_all_at_once(size_bytes: int) -> None:
    notes: list[tuple[str, int]] = []
    items = [Noted(number, size_bytes, notes) for number in range(5000)]
    assert [loaded for _, loaded in sharding._read_ahead(items)] == list(range(5000))  # type: ignore[arg-type]
    for what in ("soon", "load"):
        assert [number for noted, number in notes if noted == what] == list(range(5000))
    places = {note: place for place, note in enumerate(notes)}
    assert all(places["soon", number] < places["load", number] for number in range(5000))
    told = ahead_bytes = 0
    for what, number in notes:
        told = number if what == "soon" else told
        ahead_bytes = max(ahead_bytes, (told - number) * max(size_bytes, 4096))
    assert ahead_bytes <= 4 * max(size_bytes, 2**21)


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), DataError("it is not whole", "wait")])
def test_a_hint_that_fails_is_for_loading_to_tell(error: Exception) -> None:
    class Broken(Noted):
        def read_soon(self) -> None:
            raise error

    notes: list[tuple[str, int]] = []
    found = sharding._read_ahead([Broken(number, 2**21, notes) for number in range(5)])  # type: ignore[arg-type]
    assert [loaded for _, loaded in found] == list(range(5))


def test_a_disk_that_fails_for_a_moment_while_an_archive_is_listed_ends_nothing(
    picture_folder: Path, make_data: MakeData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, plan = archived(picture_folder, make_data, tmp_path)
    failures = [OSError(errno.EIO, "Input/output error")] * 2  # as the disk is told, and as it is read

    def read(uri: str) -> IO[bytes]:
        if failures:
            raise failures.pop()
        return really_read(uri)

    really_read = storage.open_read
    monkeypatch.setattr(storage, "open_read", read)
    open_tree.cache_clear()
    written = write_shard(plan, data, str(tmp_path / "shards"))
    assert not failures
    assert written.num_samples == plan.num_items


def test_the_disk_is_not_told_of_what_will_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(storage, "read_soon", lambda path: told.append(Path(path).name))
    picture, condition = TreeFile(str(tmp_path), "a.jpg"), TreeFile(str(tmp_path), "a.png")
    reading = Reading("mask", 20)
    FileItem("a", "a.jpg", "a", reading, picture, fault="no condition").read_soon()
    FileItem("a", "a.png", "a", reading, None, condition).read_soon()
    assert told == []
    FileItem("a", "a.jpg", "a", reading, picture, condition).read_soon()
    assert told == ["a.jpg", "a.png"]


def share_in_memory(path: Path) -> float:
    """How much of a file the page cache holds (mincore(2); a trial read would itself begin to fetch it)."""
    with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        pages = (ctypes.c_ubyte * -(-len(mapped) // mmap.PAGESIZE))()
        first = ctypes.c_char.from_buffer(mapped)
        done = ctypes.CDLL(None, use_errno=True).mincore(ctypes.byref(first), ctypes.c_size_t(len(mapped)), pages)
        del first  # or the map cannot be closed
        assert done == 0, os.strerror(ctypes.get_errno())
        return sum(page & 1 for page in pages) / len(pages)


def put_out_of_memory(path: Path) -> None:
    """Drop a file from the page cache; skips the test where that is impossible (tmpfs)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
    if share_in_memory(path) > 0.02:
        pytest.skip("this filesystem keeps its files in memory")


def parts_in(folder: Path, content: bytes) -> dict[str, tuple[FilePart, Path]]:
    """The same file `a/b.bin`, kept in every way that sources read; and the file of the disk that it lies in."""
    (folder / "a").mkdir()
    plain, tar, packed = folder / "a" / "b.bin", folder / "all.tar", folder / "all.zip"
    plain.write_bytes(content)
    with tarfile.open(tar, "w") as archive:
        archive.add(plain, "a/b.bin")
    with tarfile.open(tar) as archive:
        offset = archive.getmember("a/b.bin").offset_data
    with zipfile.ZipFile(packed, "w") as members:
        members.write(plain, "a/b.bin")
    return {
        "folder": (TreeFile(str(folder), "a/b.bin"), plain),
        "uri": (UriFile(plain.as_uri()), plain),
        "tar": (TreeFile(str(tar), "a/b.bin"), tar),
        "folder in a tar": (TreeFile(f"{tar}/a", "b.bin"), tar),
        "zip": (TreeFile(str(packed), "a/b.bin"), packed),
        "span": (TarSpan(str(tar), "a/b.bin", offset, len(content)), tar),
    }


@pytest.mark.skipif(sys.platform != "linux", reason="other systems tell it otherwise, or not at all")
@pytest.mark.parametrize("kind", ["folder", "uri", "tar", "folder in a tar", "zip", "span"])
def test_what_is_read_soon_comes_into_memory_by_itself(tmp_path: Path, kind: str) -> None:
    content = os.urandom(4 << 20)  # more than a read of a directory or header brings along
    part, path = parts_in(tmp_path, content)[kind]
    assert part.read() == content
    assert not part.is_remote
    put_out_of_memory(path)
    part.read_soon()
    deadline = time.monotonic() + 20
    while share_in_memory(path) < 0.98 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert share_in_memory(path) >= 0.98
    assert part.read() == content


def test_a_hint_waits_for_nothing_and_complains_of_nothing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # opened in the usual way, it would wait for someone who writes
    (tmp_path / "loop").symlink_to("loop")
    for name in ("pipe", "loop", "missing", ".", "no\0name"):
        storage.read_soon(tmp_path / name)
    (tmp_path / "small").write_bytes(b"small")
    for offset, size_bytes in ((0, None), (9, None), (0, 2**63), (2**63, 2**63), (2, 1)):
        storage.read_soon(tmp_path / "small", offset, size_bytes)
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"), tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    for place in (tmp_path, tmp_path / "empty.zip", tmp_path / "empty.tar"):
        TreeFile(str(place), "missing").read_soon()


def test_an_archive_is_listed_once_for_all_that_read_it(
    picture_folder: Path, make_data: MakeData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, plan = archived(picture_folder, make_data, tmp_path)
    listed = []

    def members(uri: str) -> Iterator[archives.TarMember]:
        listed.append(uri)
        time.sleep(0.1)
        yield from every_member(uri)

    every_member = archives.tar_members
    monkeypatch.setattr(archives, "tar_members", members)
    open_tree.cache_clear()  # as in a worker, which has listed nothing yet
    write_shard(plan, data, str(tmp_path / "shards"))
    assert len(listed) == 1
