"""`piti up`, `piti down`, `piti status`, `piti open`."""

from __future__ import annotations

import sys
import webbrowser
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from piti.errors import StackError
from piti.settings import settings
from piti.stack import Ports, Stack
from piti.stack import down as stop_stack
from piti.stack import running as recorded_stack
from piti.stack import up as start_stack
from piti.stack.prefect_api import auth_string, require_prefect
from piti.stack.prefect_profile import ensure_profile

_console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)


def register(app: typer.Typer) -> None:
    app.command()(up)
    app.command()(down)
    app.command()(status)
    app.command("open")(open_ui)


def up(
    prefect_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Prefect server and UI; 0: any free port.")
    ] = 4200,
    ray_dashboard_port: Annotated[int, typer.Option(min=0, max=65535, help="Ray dashboard and Jobs API.")] = 8265,
    ray_port: Annotated[int, typer.Option(min=0, max=65535, help="Ray's own control service.")] = 6379,
    free_ports: Annotated[bool, typer.Option("--free-ports", help="Choose free ports for everything.")] = False,
    num_cpus: Annotated[int | None, typer.Option(min=1, help="CPU cores that jobs may use; all, if not given.")] = None,
) -> None:
    """Start the stack on this machine: Prefect server, Ray head, report server, serving process. Parts that run already
    stay."""
    given = Ports(prefect_port, ray_dashboard_port, ray_port)
    wanted = Ports.free() if free_ports else None if given == Ports() else given
    with _console.status("starting") as spinner:
        stack = start_stack(wanted, num_cpus, report=lambda line: spinner.update(Text(line)))
    _show(stack)
    if line := ensure_profile():
        _console.print(line)


def down() -> None:
    """Stop exactly what `piti up` started."""
    with _console.status("stopping"):
        stopped = stop_stack()
    _console.print("stopped" if stopped else "nothing was running")


def status() -> None:
    """Show the parts of the stack. Exits with 1 unless all of them answer."""
    stack = recorded_stack()
    if stack is None:
        _console.print("nothing is running; `piti up` starts the stack")
        raise typer.Exit(1)
    if not _show(stack):
        raise typer.Exit(1)


def open_ui() -> None:
    """Open the Prefect UI of the local stack in a browser, and print the password for it and for the reports."""
    stack = recorded_stack()
    if stack is None:
        raise StackError("nothing is running", "`piti up` starts the stack")
    require_prefect(stack.ports.prefect_api_url)
    _console.print(f"reports: {stack.ports.reports_url}")
    _console.print(f"{stack.ports.prefect_url} and the reports ask once for this, and the browser keeps it:")
    _console.print(auth_string(stack.ports.prefect_api_url) or "(nothing)")
    if sys.stdout.isatty():
        webbrowser.open(stack.ports.prefect_url)


def _show(stack: Stack) -> bool:
    urls = {
        "prefect": stack.ports.prefect_url,
        "ray": stack.ports.ray_url,
        "reports": stack.ports.reports_url,
        "serve": f"{stack.ports.prefect_url}/deployments",
    }
    everything_answers = True
    for service in stack.services():
        answers = stack.answers(service)
        everything_answers &= answers
        if answers:
            state = Text(f"{'answers':<16}", style="green")
        elif stack.lives(service.name):
            state = Text(f"{'does not answer':<16}", style="yellow")
        else:
            state = Text(f"{'ended':<16}", style="red")
        _console.print(f"{service.title:<16}", state, urls[service.name], sep="")
    _console.print(f"{'password':<32}{settings().auth_file} (`piti open` shows it)")
    _console.print(f"{'logs':<32}{stack.home / 'logs'}")
    return everything_answers
