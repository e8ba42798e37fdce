"""A worker that hangs ends, with its stacks in its log, whether Python can still run or not."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from dataclasses import dataclass
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


HANGS: dict[str, tuple[str, tuple[int, ...], float]] = {
    "sleeps": ("time.sleep(1000)", (6, 7), 600),
    "never begins": ("time.sleep(1000)", (), 3),
    "has begun": ("time.sleep(1000)", (4,), 3),
    "holds the lock": ("ctypes.PyDLL(None).sleep(1000)", (6, 7), 600),  # the interpreter's
    "is done": ("dog.close(); time.sleep(4)", (6, 7), 600),
    "makes steps": ("[(dog.fed(step), time.sleep(0.2)) for step in range(20)]", (6, 7), 600),
}


@dataclass(frozen=True)
class Ended:
    code: int
    told: str
    folder: Path


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """How processes ended that all began at once."""
    begun = {}
    for name, (how, steps, start_seconds) in HANGS.items():
        folder = tmp_path_factory.mktemp("job")
        code = textwrap.dedent(HANG).format(hang=how, folder=str(folder), steps=steps, start_seconds=start_seconds)
        begun[name] = folder, subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    found = {}
    for name, (folder, process) in begun.items():
        _, told = process.communicate(timeout=120)
        found[name] = Ended(process.returncode, told, folder)
    return found


def test_a_worker_that_waits_for_ever_says_where_and_ends(ended: dict[str, Ended]) -> None:
    found = ended["sleeps"]
    assert found.code == 70
    assert "worker 1 of stage1 made no step for 1 s after step 7" in found.told
    assert "in reads_from_storage_for_ever" in found.told
    left = json.loads((found.folder / "stall-1.json").read_text())
    assert left == {"attempt": "first", "line": "worker 1 of stage1 made no step for 1 s after step 7"}


@pytest.mark.parametrize(("name", "last"), [("never begins", "before its first step"), ("has begun", "after step 4")])
def test_a_worker_that_hangs_before_steps_follow_each_other_gets_longer(
    ended: dict[str, Ended], name: str, last: str
) -> None:
    assert ended[name].code == 70
    assert f"worker 1 of stage1 made no step for 3 s {last}" in ended[name].told


def test_a_worker_in_which_python_itself_stands_still_ends_too(ended: dict[str, Ended]) -> None:
    """A call that keeps the interpreter's lock."""
    assert ended["holds the lock"].code == 1
    assert "in reads_from_storage_for_ever" in ended["holds the lock"].told


@pytest.mark.parametrize("name", ["is done", "makes steps"])
def test_a_worker_that_makes_steps_or_is_done_is_left_alone(ended: dict[str, Ended], name: str) -> None:
    assert (ended[name].code, ended[name].told) == (0, "")
