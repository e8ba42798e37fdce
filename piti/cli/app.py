"""The command line's groups of commands, and errors as one line instead of a traceback."""

from __future__ import annotations

import sys
from typing import Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from piti.cli import checkpoints, config, doctor, run, runs, shards, stack, translate
from piti.credentials import refuse_credentials
from piti.errors import PitiError, PreflightError


class ErrorsInOneLine(TyperGroup):
    """Prints a PitiError as a red line on stderr and exits with 1. Wrong usage exits with 2, as everywhere."""

    def invoke(self, ctx: Any) -> Any:
        try:
            for argument in ctx.args:
                refuse_credentials(argument, "an argument")
            return super().invoke(ctx)
        except PitiError as error:
            for problem in error.problems if isinstance(error, PreflightError) else [error]:
                Console(stderr=True, soft_wrap=True).print(Text(f"piti: {problem}", style="bold red"))
            raise typer.Exit(1) from error
        except KeyboardInterrupt:
            print("piti: interrupted", file=sys.stderr)
            raise typer.Exit(130) from None


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
