"""The command line's groups of commands, and errors as one line instead of a traceback."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from piti.cli import checkpoints, config, doctor, run, runs, shards, stack, translate
from piti.credentials import refuse_credentials
from piti.errors import PitiError, PreflightError, first_line


class ErrorsInOneLine(TyperGroup):
    """Prints a PitiError, or an error of the operating system, as a red line on stderr and exits with 1. Wrong usage
    exits with 2, as everywhere."""

    def invoke(self, ctx: Any) -> Any:
        try:
            for argument in ctx.args:
                refuse_credentials(argument, "an argument")
            return super().invoke(ctx)
        except PitiError as error:
            raise _refused(error.problems if isinstance(error, PreflightError) else [error]) from error
        except BrokenPipeError:
            raise  # `piti ... | head`: typer ends without a word
        except OSError as error:
            raise _refused([_told(error)]) from error
        except KeyboardInterrupt:
            print("piti: interrupted", file=sys.stderr)
            raise typer.Exit(130) from None


def _refused(problems: Sequence[PitiError]) -> typer.Exit:
    for problem in problems:
        Console(stderr=True, soft_wrap=True).print(Text(f"piti: {problem}", style="bold red"))
    return typer.Exit(1)


def _told(error: OSError) -> PitiError:
    """An error of the operating system for people: the file first, where it names one."""
    if error.filename is None or error.strerror is None:
        return PitiError(first_line(error))
    return PitiError(f"{error.filename}: {error.strerror}", "check the path, and who may read and write there")


app = typer.Typer(
    cls=ErrorsInOneLine,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    help="Image-to-image translation with a pretrained diffusion model: runs the pipeline's stack and looks after its data.",
)
stack.register(app)
doctor.register(app)
run.register(app)
translate.register(app)
app.add_typer(config.app, name="config")
app.add_typer(runs.app, name="runs")
app.add_typer(shards.app, name="shards")
app.add_typer(checkpoints.app, name="checkpoints")
