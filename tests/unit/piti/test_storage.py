"""Publishing shows a file whole or not at all, locally and in an object store."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from piti import storage
from piti.errors import AwayError, DataError


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else f"memory://{uuid.uuid4().hex}"


def test_bytes_and_json_come_back(root: str) -> None:
    uri = storage.join(root, "a", "b.json")
    storage.write_json(uri, {"x": [1, 2.5, None]})
    assert storage.read_json(uri) == {"x": [1, 2.5, None]}
    assert storage.exists(uri)
    assert storage.list_names(storage.join(root, "a")) == ["b.json"]
    storage.remove(storage.join(root, "a"))
    assert not storage.exists(uri)
    assert storage.list_names(storage.join(root, "a")) == []


def test_one_of_many_creates_a_file(root: str) -> None:
    uri = storage.join(root, "a", "claim.json")
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda number: storage.create_bytes(uri, f"{number}".encode() * 1000), range(8)))
    assert sum(won) == 1
    assert storage.read_bytes(uri) == f"{won.index(True)}".encode() * 1000
    assert storage.list_names(storage.join(root, "a")) == ["claim.json"]


def test_a_store_that_tells_of_an_object_in_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not every S3 server names the condition that failed, so s3fs raises a plain OSError. Any other error stays one."""
    uri = f"memory://{uuid.uuid4().hex}/claim.json"
    fs, _ = storage.filesystem(uri)

    def refuse(path: str, data: bytes, mode: str) -> None:
        raise OSError(errno.EINVAL, "PreconditionFailed")

    with monkeypatch.context() as patch:
        patch.setattr(type(fs), "pipe_file", lambda self, *arguments, **options: refuse(*arguments, **options))
        with pytest.raises(OSError, match="PreconditionFailed"):
            storage.create_bytes(uri, b"x")
    storage.write_bytes(uri, b"first")
    monkeypatch.setattr(type(fs), "pipe_file", lambda self, *arguments, **options: refuse(*arguments, **options))
    assert not storage.create_bytes(uri, b"late")
    assert storage.read_bytes(uri) == b"first"


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK])
def test_one_of_many_creates_a_file_where_there_are_no_hard_links(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, "no hard links")

    monkeypatch.setattr(os, "link", refuse)
    test_one_of_many_creates_a_file(str(tmp_path))
    assert not storage.create_bytes(str(tmp_path / "a" / "claim.json"), b"late")
    assert storage.create_bytes(str(tmp_path / "private"), b"x", private=True)
    assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o600


def test_a_full_disk_without_hard_links_leaves_no_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links")

    def full(descriptor: int) -> None:
        if (tmp_path / "claim").exists():
            raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="no space left for claim"):
        storage.create_bytes(str(tmp_path / "claim"), b"x")
    assert list(tmp_path.iterdir()) == []


def test_json_is_strict(root: str) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        storage.write_json(storage.join(root, "x.json"), {"fid": float("nan")})
    storage.write_bytes(storage.join(root, "y.json"), b"{")
    with pytest.raises(DataError, match=r"y\.json is not valid JSON"):
        storage.read_json(storage.join(root, "y.json"))


def test_a_folder_appears_with_its_marker_last(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "aside"
    (source / "deep").mkdir(parents=True)
    for relative in ("model.safetensors", "deep/x.bin", storage.MARKER):
        (source / relative).write_bytes(relative.encode())
    order: list[str] = []
    publish = storage.publish_file
    monkeypatch.setattr(storage, "publish_file", lambda path, uri: (order.append(path.name), publish(path, uri)))
    storage.publish_folder(source, storage.join(root, "step-1"))
    assert order[-1] == storage.MARKER
    assert sorted(order) == ["DONE.json", "model.safetensors", "x.bin"]
    assert storage.read_bytes(storage.join(root, "step-1", "deep/x.bin")) == b"deep/x.bin"
    assert not source.exists()


def test_a_folder_without_its_marker_is_refused(tmp_path: Path) -> None:
    (tmp_path / "half").mkdir()
    with pytest.raises(ValueError, match=storage.MARKER):
        storage.publish_folder(tmp_path / "half", str(tmp_path / "out"))


def test_fetch_gives_a_local_file(root: str, tmp_path: Path) -> None:
    uri = storage.join(root, "w.pt")
    storage.write_bytes(uri, b"weights")
    assert storage.fetch(uri, tmp_path / "cache" / "w.pt").read_bytes() == b"weights"
    assert storage.sha256_file(uri) == storage.sha256_bytes(b"weights")


def test_storage_that_stays_away_is_an_error_that_another_attempt_may_not_meet(root: str, tmp_path: Path) -> None:
    storage.write_bytes(storage.join(root, "there"), b"")
    storage.wait_until_there(storage.join(root, "there"), seconds=0)
    for gone in (storage.join(root, "gone"), storage.join(str(tmp_path / "not-mounted"), "spec.json")):
        with pytest.raises(
            AwayError, match=r"does not answer .* - mount its folder or start its server again"
        ) as found:
            storage.wait_until_there(gone, seconds=0)
        assert found.value.retryable


def test_killed_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    """A writer is killed at random moments: what lies there is always one whole version."""
    target = tmp_path / "state.json"
    script = (
        "import sys\nfrom piti import storage\nstorage.write_bytes(sys.argv[1], b'0' * 1_000_000)\nprint('ready', flush=True)\n"
        "n = 1\nwhile True:\n    storage.write_bytes(sys.argv[1], str(n % 10).encode() * 1_000_000)\n    n += 1\n"
    )
    for delay_milliseconds in (1, 7, 20):
        writer = subprocess.Popen([sys.executable, "-c", script, str(target)], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        writer.stdout.readline()
        try:
            writer.wait(timeout=delay_milliseconds / 1000)
        except subprocess.TimeoutExpired:
            os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        content = target.read_bytes()
        assert len(content) == 1_000_000
        assert len(set(content)) == 1
    assert storage.list_names(str(tmp_path)) == ["state.json"]


def test_links_open_in_a_browser() -> None:
    assert storage.as_link("/data/my runs/report.html") == "file:///data/my%20runs/report.html"
    assert storage.as_link("s3://bucket/report.html") == "s3://bucket/report.html"


def test_a_private_file_is_its_owners_alone(tmp_path: Path) -> None:
    assert storage.create_bytes(str(tmp_path / "spec.json"), b"{}", private=True)
    assert stat.S_IMODE((tmp_path / "spec.json").stat().st_mode) == 0o600
    storage.write_json(str(tmp_path / "spec.json"), {"a": 2})
    assert storage.read_json(str(tmp_path / "spec.json")) == {"a": 2}
