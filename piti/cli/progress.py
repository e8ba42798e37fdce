"""Progress of a run: bars with the remaining time in a terminal, otherwise a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_INTERVAL_SECONDS = 30.0
_SPEED_SECONDS = 120.0  # over which the speed is averaged for the time left; artifacts change every few seconds


class RunProgress:
    """A spinner for the whole run and a bar for each step that reports progress. Use as a context.

    The flow makes the progress artifacts from its jobs' progress files (flows/steps.py).
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._bars = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[share]}"),
            TimeElapsedColumn(), TimeRemainingColumn(),
            console=console, transient=True, disable=not console.is_terminal, get_time=clock, speed_estimate_period=_SPEED_SECONDS,
        )  # fmt: skip
        self._run = self._bars.add_task("waiting for the serving process", total=None, share="")
        self._steps: dict[str, TaskID] = {}
        self._said_seconds = clock()

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bars.stop()

    def show(self, num_done: int, running: Collection[str], artifacts: list[dict[str, Any]]) -> None:
        """Update the bars. `running`: ids of the task runs that run now; `artifacts`: the run's progress artifacts from
        Prefect's API."""
        if running or num_done:
            self._bars.update(self._run, description=f"{num_done} steps done, {len(running)} running")
        current = {artifact["id"]: artifact for artifact in artifacts if artifact["task_run_id"] in running}
        for gone in self._steps.keys() - current.keys():
            self._bars.remove_task(self._steps.pop(gone))
        for name, artifact in current.items():
            percent = float(artifact["data"])
            if name not in self._steps:
                self._steps[name] = self._bars.add_task(artifact["description"], total=100.0, share="")
            self._bars.update(
                self._steps[name], completed=percent, description=artifact["description"], share=f"{percent:.0f} %"
            )
        if self._bars.disable and current and self._clock() - self._said_seconds >= LINE_INTERVAL_SECONDS:
            self._said_seconds = self._clock()
            for artifact in current.values():
                when = time.strftime("%H:%M:%S")
                self._console.print(f"{when}  {artifact['description']}  {float(artifact['data']):.0f} %")
