"""`piti doctor`: is this machine fit to run the pipeline?"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import psutil
import typer
from rich.console import Console
from rich.text import Text

from piti.errors import PitiError
from piti.settings import settings
from piti.stack import Ports
from piti.stack import running as recorded_stack
from piti.stack.http import ray_answers
from piti.stack.ports import problems as port_problems
from piti.stack.prefect_api import prefect_answers
from piti.stack.secret_files import read_secret

NEEDED_DISK_GIB = 5
NEEDED_MEMORY_GIB = 6
GIB = 2**30


class Verdict(Enum):
    """The mark of a finding."""

    GOOD = ("ok", "green")
    NOTE = ("note", "yellow")
    BAD = ("fix", "red")


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report."""

    verdict: Verdict
    subject: str
    detail: str


def register(app: typer.Typer) -> None:
    app.command()(doctor)


def doctor(
    config: Annotated[
        str | None, typer.Option("--config", "-c", help="Also check the weights that this config needs.")
    ] = None,
) -> None:
    """Check Python, disk, memory, ports, servers, GPU and weights. Exits with 1 if something must be fixed."""
    console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
    healthy = True
    for finding in findings(config):
        label, color = finding.verdict.value
        console.print(Text(f"{label:<5}", style=color), f"{finding.subject:<11} {finding.detail}", sep="")
        healthy &= finding.verdict is not Verdict.BAD
    if not healthy:
        raise typer.Exit(1)


def findings(config: str | None) -> Iterator[Finding]:
    """All findings, in the order of the report."""
    yield Finding(Verdict.GOOD, "python", platform.python_version())
    yield _libraries()
    yield _disk()
    yield _memory()
    yield from _servers()
    yield _gpu()
    if config is not None:
        yield from _weights(config)


def _libraries() -> Finding:
    found = []
    for library in ("torch", "ray", "prefect"):
        try:
            found.append(f"{library} {version(library)}")
        except PackageNotFoundError:
            return Finding(Verdict.BAD, "libraries", f"{library} is not installed - run `make setup`")
    return Finding(Verdict.GOOD, "libraries", ", ".join(found))


def _disk() -> Finding:
    folder = settings().home.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / GIB
    if free < NEEDED_DISK_GIB:
        return Finding(
            Verdict.BAD, "disk", f"{free:.1f} GiB free at {folder}, {NEEDED_DISK_GIB} are needed - make room"
        )
    return Finding(Verdict.GOOD, "disk", f"{free:.0f} GiB free at {folder}")


def _memory() -> Finding:
    total = psutil.virtual_memory().total / GIB
    if total < NEEDED_MEMORY_GIB:
        return Finding(Verdict.NOTE, "memory", f"{total:.1f} GiB; the demo wants {NEEDED_MEMORY_GIB}")
    return Finding(Verdict.GOOD, "memory", f"{total:.0f} GiB, {os.cpu_count()} cores")


def _servers() -> Iterator[Finding]:
    stack = recorded_stack()
    api_url = os.environ.get("PREFECT_API_URL", (stack.ports if stack else Ports()).prefect_api_url)
    ray_url = os.environ.get("PITI_RAY_JOBS_URL", stack.ports.ray_url if stack else settings().ray_jobs_url)
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    known = settings().model_copy(update={"ray_token_file": Path(path)}) if path else settings()
    token = os.environ.get("RAY_AUTH_TOKEN") or read_secret(known.token_file)
    for subject, url, answers in (
        ("prefect", api_url, prefect_answers(api_url)),
        ("ray", ray_url, ray_answers(ray_url, token)),
    ):
        if answers:
            yield Finding(Verdict.GOOD, subject, f"answers at {url}")
        else:
            yield Finding(Verdict.NOTE, subject, f"does not answer at {url} - start it with `piti up`")
    if stack is None:
        taken = list(port_problems(Ports(), ["prefect", "ray_dashboard", "ray"]))
        yield from (Finding(Verdict.NOTE, "ports", str(problem)) for problem in taken)
        if not taken:
            yield Finding(Verdict.GOOD, "ports", "the default ports are free")


def _gpu() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding(Verdict.NOTE, "gpu", "none that torch can use; the demo does without")
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return Finding(Verdict.GOOD, "gpu", ", ".join(names))


def _weights(config: str) -> Iterator[Finding]:
    from piti.config.presets import load_config
    from piti.models.pretrained import pretrained_problems
    from piti.weights import weights_problems

    wanted = load_config(config)
    problems: list[PitiError] = [*weights_problems(wanted), *pretrained_problems(wanted)]
    yield from (Finding(Verdict.BAD, "weights", str(problem)) for problem in problems)
    if not problems:
        yield Finding(Verdict.GOOD, "weights", f"all that config {config!r} needs are there")
