"""Who follows a job, and what becomes of one that nobody follows."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from piti import job, storage
from piti.config.presets import load_config
from piti.job import Followers, JobSpec, Lease
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
    followers = Followers(str(tmp_path))
    lease = Lease(followers, 60)
    followers.renew("a")
    assert not lease.expired()
    followers.leave("a")
    clock[0] += 50
    assert not lease.expired()
    clock[0] += 61
    assert lease.expired()


def test_an_abandoned_job_ends_and_says_why(tmp_path: Path) -> None:
    """The entrypoint as Ray starts it, with work that would take for ever."""
    overrides = {"root": str(tmp_path / "root"), "cluster.abandoned_job_seconds": 1.0}
    config = load_config("demo", overrides)
    spec = JobSpec.for_step(Plan(config).shard, config, str(tmp_path / "job"))
    storage.write_json(str(tmp_path / "job" / "spec.json"), spec.model_dump(mode="json"))
    Followers(spec.folder).renew("a")
    program = (
        "import sys, time; import piti.jobs.shard as job; from piti.jobs import __main__ as main;"
        "job.run = lambda context: time.sleep(100); main.LEASE_LOOK_SECONDS = 0.1; sys.exit(main.main())"
    )
    command = [sys.executable, "-c", program, "shard", "--spec", str(tmp_path / "job" / "spec.json")]
    before = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 2, done.stderr
    assert time.monotonic() - before < 80
    failure = storage.read_json(str(tmp_path / "job" / "error.json"))
    assert failure["retryable"]
    assert "nobody has followed this job" in failure["reason"]


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
    assert failure == {"reason": "a.tar is missing", "retryable": is_away}
