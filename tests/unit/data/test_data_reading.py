"""Failures to read: what lies in a file rejects it, what lies in the moment is tried again, and never becomes a record."""

from __future__ import annotations

import errno
import hashlib
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import botocore.exceptions
import pytest

from piti.config import DataConfig
from piti.data.items import RejectedItem
from piti.data.publishing import published_shards
from piti.data.sharding import plan_shards, write_shard
from piti.data.shards import ShardSet
from piti.data.sources import open_source
from piti.data.sources import retrying as patience
from piti.data.sources.retrying import read_or_reject
from piti.data.sources.trees import FolderTree
from piti.errors import DataError

_TRANSIENT = [
    OSError(errno.EIO, "Input/output error"),
    OSError(errno.ESTALE, "Stale file handle"),
    OSError(errno.EREMOTEIO, "injected"),  # s3fs, once it has given up on a 500
    ConnectionResetError("peer"),
    TimeoutError("slow"),
    PermissionError("The provided token has expired."),  # s3fs: no number
    botocore.exceptions.ReadTimeoutError(endpoint_url="http://x"),  # not an OSError
]
_PERMANENT = [
    FileNotFoundError(errno.ENOENT, "no such file"),
    IsADirectoryError(errno.EISDIR, "is a folder"),
    NotADirectoryError(errno.ENOTDIR, "is none"),
    PermissionError(errno.EACCES, "denied"),
    OSError(errno.ELOOP, "links"),
    OSError(errno.ENAMETOOLONG, "long"),
]


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses are noted instead of waited."""
    noted: list[float] = []
    monkeypatch.setattr(patience.time, "sleep", noted.append)
    return noted


@pytest.mark.parametrize("error", _TRANSIENT, ids=lambda error: type(error).__name__)
def test_a_passing_failure_is_tried_again_and_then_ends_the_job(error: Exception, pauses: list[float]) -> None:
    def fail() -> bytes:
        raise error

    with pytest.raises(DataError, match=r"cannot read a\.jpg \(.+\) - run again: finished shards are kept"):
        read_or_reject("a.jpg", fail)
    assert len(pauses) >= 2
    assert pauses == sorted(set(pauses)), "growing"
    results: list[Any] = [error, b"content"]

    def once() -> bytes:
        result = results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result  # type: ignore[no-any-return]

    assert read_or_reject("a.jpg", once) == b"content"


@pytest.mark.parametrize("error", _PERMANENT, ids=lambda error: errno.errorcode[error.errno])
def test_what_lies_in_the_file_rejects_at_once(error: OSError, pauses: list[float]) -> None:
    def fail() -> bytes:
        raise error

    with pytest.raises(RejectedItem, match=rf"a\.jpg cannot be read \({error.strerror}\)"):
        read_or_reject("a.jpg", fail)
    assert pauses == []


def test_a_mistake_in_the_program_is_not_a_failure_to_read() -> None:
    with pytest.raises(ZeroDivisionError):
        read_or_reject("a.jpg", lambda: bytes(1 // 0))


def test_a_damaged_member_of_an_archive_rejects(
    picture_folder: Path, tmp_path: Path, make_data: Callable[..., DataConfig], pauses: list[float]
) -> None:
    archive = tmp_path / "pictures.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
        for path in sorted(picture_folder.rglob("*.*")):
            target.write(path, path.name)
        first = target.infolist()[0]
    content = bytearray(archive.read_bytes())
    middle = first.header_offset + 60 + first.compress_size // 2
    content[middle : middle + 40] = bytes(byte ^ 0xFF for byte in content[middle : middle + 40])
    archive.write_bytes(content)
    items = [item for split in ("train", "validation") for item in open_source(make_data(archive)).items(split)]  # type: ignore[arg-type]
    (item,) = (item for item in items if item.origin == first.filename)
    with pytest.raises(RejectedItem, match="cannot be read"):
        item.load()
    assert pauses == []


def test_a_disk_that_fails_publishes_nothing_wrong(
    sketch_data: DataConfig, sketch_set: ShardSet, shard_now: Callable[..., ShardSet], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    plans = plan_shards(open_source(sketch_data), sketch_data, seed=0)
    unlucky = next(plan for plan in plans if len(plan.items) > 2)
    path, real = unlucky.items[1].origin, FolderTree.read

    def read(self: FolderTree, wanted: str) -> bytes:
        if wanted == path:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(self, wanted)

    with monkeypatch.context() as patch:
        patch.setattr(FolderTree, "read", read)
        for plan in plans:
            if plan.name == unlucky.name:
                with pytest.raises(DataError, match="Input/output error"):
                    write_shard(plan, sketch_data, str(tmp_path))
            else:
                write_shard(plan, sketch_data, str(tmp_path))
    wanted = {plan.name: plan.plan for plan in plans}
    assert published_shards(str(tmp_path), wanted).keys() == wanted.keys() - {unlucky.name}
    write_shard(unlucky, sketch_data, str(tmp_path))
    for name in sketch_set.stats:
        ours = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        assert ours == sketch_set.stats[name].tar_sha256
    assert shard_now(sketch_data, tmp_path).rejected() == []


def test_a_listed_place_that_cannot_be_asked_is_no_missing_file(
    tmp_path: Path, picture_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from piti import storage

    picture = next(picture_folder.rglob("*.png"))
    (tmp_path / "list.csv").write_text(f"image\n{picture}\n{picture_folder / 'none.png'}\n")
    data = DataConfig.model_validate(
        {"source": {"kind": "list", "path": str(tmp_path / "list.csv")}, "modality": "sketch"}
    )
    assert open_source(data).problems() == []
    local = type(storage.filesystem(str(picture))[0])

    def fail(self: Any, path: str, **options: Any) -> dict[str, Any]:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(local, "info", fail)
    with pytest.raises(DataError, match="Input/output error"):
        list(open_source(data).items("train"))
