"""A worker that hangs ends, with its stacks in its log, whether Python can still run or not."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

HANG = """
    import ctypes, logging, time
    from functools import partial
    from piti.training import watchdog

    def reads_from_storage_for_ever():
        {hang}

    logging.basicConfig(format="%(message)s")
    watchdog.LINGER_SECONDS, watchdog.START_SECONDS = 0.5, {start_seconds}
    last_words = partial(watchdog.leave_stall, {folder!r}, "first", 1)
    dog = watchdog.Watchdog(1.0, "worker 1 of stage1", last_words)
    for step in {steps}:
        dog.fed(step)
    reads_from_storage_for_ever()
"""


def hang(
    folder: Path, how: str, steps: tuple[int, ...] = (6, 7), start_seconds: float = 600
) -> subprocess.CompletedProcess[str]:
    code = textwrap.dedent(HANG).format(hang=how, folder=str(folder), steps=steps, start_seconds=start_seconds)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)


def test_a_worker_that_waits_for_ever_says_where_and_ends(tmp_path: Path) -> None:
    done = hang(tmp_path, "time.sleep(1000)")
    assert done.returncode == 70
    assert "worker 1 of stage1 made no step for 1 s after step 7" in done.stderr
    assert "in reads_from_storage_for_ever" in done.stderr
    left = json.loads((tmp_path / "stall-1.json").read_text())
    assert left == {"attempt": "first", "line": "worker 1 of stage1 made no step for 1 s after step 7"}


@pytest.mark.parametrize(("steps", "last"), [((), "before its first step"), ((4,), "after step 4")])
def test_a_worker_that_hangs_before_steps_follow_each_other_gets_longer(
    tmp_path: Path, steps: tuple[int, ...], last: str
) -> None:
    done = hang(tmp_path, "time.sleep(1000)", steps, start_seconds=3)
    assert done.returncode == 70
    assert f"worker 1 of stage1 made no step for 3 s {last}" in done.stderr


def test_a_worker_in_which_python_itself_stands_still_ends_too(tmp_path: Path) -> None:
    """A call that keeps the interpreter's lock."""
    done = hang(tmp_path, "ctypes.PyDLL(None).sleep(1000)")
    assert done.returncode == 1
    assert "in reads_from_storage_for_ever" in done.stderr


@pytest.mark.parametrize("ended", [True, False])
def test_a_worker_that_makes_steps_or_is_done_is_left_alone(tmp_path: Path, ended: bool) -> None:
    how = "dog.close(); time.sleep(4)" if ended else "[(dog.fed(step), time.sleep(0.2)) for step in range(20)]"
    done = hang(tmp_path, how)
    assert (done.returncode, done.stderr) == (0, "")
