"""Who follows a job, and what becomes of one that nobody follows."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import pytest

from piti import job, storage
from piti.config.presets import load_config
from piti.job import SPEC_FILE, Followers, JobContext, JobSpec, Lease, StopRequest
from piti.plan import Plan


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the job's clock says, to be set."""
    now = [1000.0]
    monkeypatch.setattr(job.time, "monotonic", lambda: now[0])
    return now


def test_a_job_that_never_had_a_follower_is_wanted(tmp_path: Path, clock: list[float]) -> None:
    lease = Lease(Followers(str(tmp_path)), 60)
    assert not lease.expired()
    clock[0] += 1e6
    assert not lease.expired()


def test_a_lease_ends_when_the_last_follower_is_silent(tmp_path: Path, clock: list[float]) -> None:
    storage.write_json(str(tmp_path / SPEC_FILE), {})
    followers = Followers(str(tmp_path))
    lease, endless = Lease(followers, 60), Lease(followers, None)
    followers.renew("a")
    followers.renew("b")
    assert not lease.expired()
    for _ in range(10):
        clock[0] += 50
        followers.renew("b")
        assert not lease.expired(), "one of two is alive"
    followers.leave("a")
    clock[0] += 50
    assert not lease.expired()
    clock[0] += 70
    assert lease.expired()
    assert not endless.expired()
    followers.renew("c")
    clock[0] += 10
    assert not lease.expired(), "someone came just in time"


def test_a_follower_that_leaves_ends_the_lease_later(tmp_path: Path, clock: list[float]) -> None:
    storage.write_json(str(tmp_path / SPEC_FILE), {})
    followers = Followers(str(tmp_path))
    lease = Lease(followers, 60)
    followers.renew("a")
    assert not lease.expired()
    followers.leave("a")
    clock[0] += 50
    assert not lease.expired()
    clock[0] += 61
    assert lease.expired()


class Storage:
    """A job's folder that goes and comes back. `errors`: reading raises; else it is a mount that shows nothing."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder, self._monkeypatch = folder, monkeypatch
        storage.write_json(str(folder / SPEC_FILE), {})

    def goes(self, errors: bool) -> None:
        if errors:
            self._monkeypatch.setattr(storage, "list_names", self._fail)
        else:
            self._folder.rename(self._folder.with_name("away"))

    def comes_back(self, errors: bool) -> None:
        if errors:
            self._monkeypatch.undo()
        else:
            self._folder.with_name("away").rename(self._folder)

    def _fail(self, uri: str) -> list[str]:
        raise ConnectionError("away")


@pytest.mark.parametrize("errors", [True, False])
def test_an_outage_is_not_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, errors: bool) -> None:
    """Storage is away for ten minutes: when it is back, followers have their time to say that they are there."""
    folder = tmp_path / "job"
    now, mount = [1000.0], Storage(folder, monkeypatch)
    followers = Followers(str(folder))
    lease = Lease(followers, 60)
    followers.renew("a")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job.time, "monotonic", lambda: now[0])
        assert not lease.expired()
        mount.goes(errors)
        for _ in range(60):
            now[0] += 10
            assert not lease.expired()
        mount.comes_back(errors)
        now[0] += 10
        assert not lease.expired(), "it counts the outage as silence"
        followers.renew("a")
        now[0] += 50
        assert not lease.expired()
        now[0] += 61
        assert lease.expired(), "nobody renewed, with storage there"


def test_storage_that_hangs_is_an_outage(tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """One look takes ten minutes, in which no follower can write either."""
    followers, read_bytes = Followers(str(tmp_path)), storage.read_bytes
    lease = Lease(followers, 60)
    followers.renew("a")
    assert not lease.expired()

    def hang(uri: str) -> bytes:
        clock[0] += 600
        return read_bytes(uri)

    clock[0] += 10
    monkeypatch.setattr(storage, "read_bytes", hang)
    assert not lease.expired()
    monkeypatch.setattr(storage, "read_bytes", read_bytes)
    clock[0] += 10
    assert not lease.expired()
    clock[0] += 61
    assert lease.expired()


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b"\xff"])
def test_damaged_files_of_followers_and_requests_end_nothing(
    tmp_path: Path, clock: list[float], content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    followers, request = Followers(str(tmp_path)), StopRequest(str(tmp_path))
    lease = Lease(followers, 60)
    storage.write_bytes(str(tmp_path / "followers" / "a.json"), content)
    storage.write_bytes(str(tmp_path / "stop.json"), content)
    for _ in range(3):
        clock[0] += 10
        assert not lease.expired()
        assert request.reason() is None
    assert caplog.text.count("stop.json is damaged") == 1
    for reason in ("its run was cancelled", "another reason, later"):
        StopRequest(str(tmp_path)).make(reason)
    clock[0] += 10
    assert request.reason() == "its run was cancelled"


def stored_spec(folder: Path, overrides: dict[str, Any]) -> JobSpec:
    """What a job that shards is told, in its folder."""
    config = load_config("demo", overrides)
    spec = JobSpec.for_step(Plan(config).shard, config, str(folder))
    storage.write_json(str(folder / "spec.json"), spec.model_dump(mode="json"))
    return spec


def failure_of(program: str, spec: JobSpec) -> dict[str, Any]:
    """What a job left that ends with exit code 2, as it should. `program`: Python, with the entrypoint's arguments."""
    command = [sys.executable, "-c", program, "shard", "--spec", str(Path(spec.folder, "spec.json"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 2, done.stderr
    return cast(dict[str, Any], storage.read_json(str(Path(spec.folder, "error.json"))))


def test_an_abandoned_job_ends_and_says_why(tmp_path: Path) -> None:
    """The entrypoint as Ray starts it, with work that would take for ever."""
    overrides = {"root": str(tmp_path / "root"), "cluster.abandoned_job_seconds": 1.0}
    spec = stored_spec(tmp_path / "job", overrides)
    Followers(spec.folder).renew("a")
    program = (
        "import sys, time; import piti.jobs.shard as job; from piti.jobs import __main__ as main;"
        "job.run = lambda context: time.sleep(100); main.LEASE_LOOK_SECONDS = 0.1; sys.exit(main.main())"
    )
    before = time.monotonic()
    failure = failure_of(program, spec)
    assert time.monotonic() - before < 80
    assert failure["retryable"]
    assert failure["stopped"], "`piti runs` does not call it failed"
    assert "nobody has followed this job" in failure["reason"]


def test_a_job_that_was_asked_to_end_was_stopped(tmp_path: Path) -> None:
    spec = stored_spec(tmp_path / "job", {"root": str(tmp_path / "root")})
    StopRequest(spec.folder).make("its run was cancelled")
    program = (
        "import sys; import piti.jobs.shard as job; from piti.jobs import __main__ as main\n"
        "def run(context):\n"
        "    raise context.stop_reason()\n"
        "job.run = run; sys.exit(main.main())"
    )
    failure = failure_of(program, spec)
    assert failure["stopped"]
    assert failure["reason"].startswith("shard: its run was cancelled - ")


def test_a_job_that_waits_keeps_its_progress(tmp_path: Path) -> None:
    """A driver that waits for room, where a worker published the progress before."""
    config = load_config("demo", {"root": str(tmp_path / "root")})
    context, worker = (JobContext(JobSpec.for_step(Plan(config).shard, config, str(tmp_path))) for _ in range(2))

    def published() -> list[object]:
        told = storage.read_json(str(tmp_path / "progress.json"))
        return [told["done"], told["total"], told["message"], told.get("picture")]

    context.waits("waits for 1 worker")
    assert published() == [0, 1, "waits for 1 worker", None]
    worker.progress(30, 40, "step 30", force=True, picture="s3://x/y.png")
    context.waits("waits for 2 workers")
    assert published() == [30, 40, "waits for 2 workers", "s3://x/y.png"]


@pytest.mark.parametrize("is_away", [False, True])
def test_what_is_missing_while_the_root_is_away_may_be_there_in_another_attempt(tmp_path: Path, is_away: bool) -> None:
    """The entrypoint, with work that finds a tar missing; the folder of everything comes back a second later."""
    config = load_config("demo", {"root": str(tmp_path / "root")})
    spec = JobSpec.for_step(Plan(config).shard, config, str(tmp_path / "root" / "job"))
    storage.write_json(str(tmp_path / "root" / "job" / "spec.json"), spec.model_dump(mode="json"))
    back = f"os.rename({str(tmp_path / 'away')!r}, {str(tmp_path / 'root')!r})"
    program = (
        "import os, sys, threading; import piti.jobs.shard as job; from piti.errors import DataError\n"
        "from piti.jobs import __main__ as main\n"
        "def run(context):\n"
        f"    if {is_away}:\n"
        f"        os.rename({str(tmp_path / 'root')!r}, {str(tmp_path / 'away')!r})\n"
        f"        threading.Timer(1, lambda: {back}).start()\n"
        "    raise DataError('a.tar is missing')\n"
        "job.run = run; sys.exit(main.main())"
    )
    command = [sys.executable, "-c", program, "shard", "--spec", str(tmp_path / "root" / "job" / "spec.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 2, done.stderr
    failure = storage.read_json(str(tmp_path / "root" / "job" / "error.json"))
    assert failure == {"reason": "a.tar is missing", "retryable": is_away, "stopped": False}
