"""What `piti run` shows of a run: in a terminal bars with the time left, elsewhere a line now and then."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from piti.cli.progress import RunProgress


class Clock:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def artifact(percent: float, task: str = "training") -> dict[str, Any]:
    """As Prefect's API tells of it."""
    description = f"stage2 of demo: step {percent:.0f} of 100"
    return {"id": f"of {task}", "task_run_id": task, "data": percent, "description": description}


def test_a_terminal_shows_the_time_left() -> None:
    """10 percent in 20 seconds: 80 percent more take 160. A step that has ended has no bar."""
    clock, text = Clock(), io.StringIO()
    with RunProgress(Console(file=text, force_terminal=True, width=120), clock) as progress:
        for percent in (10.0, 20.0):
            progress.show(3, {"training"}, [artifact(percent), artifact(50.0, "ended")])
            clock.seconds += 20
        progress._bars.refresh()
        shown = text.getvalue()
        assert "3 steps done, 1 running" in shown
        assert "step 20 of 100" in shown
        assert "20 %" in shown
        assert "0:02:40" in shown
        assert "step 50" not in shown
        progress.show(4, set(), [artifact(20.0)])
        text.truncate(0)
        progress._bars.refresh()
        assert "stage2" not in text.getvalue()


def test_a_file_gets_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with RunProgress(Console(width=120), clock) as progress:
        for percent in range(0, 70, 5):
            progress.show(3, {"training"}, [artifact(percent)])
            clock.seconds += 5
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-2] for line in lines] == ["30", "60"]
