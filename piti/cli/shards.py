"""`piti shards`: look after sharded datasets."""

from __future__ import annotations

from typing import Annotated

import typer

from piti.errors import DataError

app = typer.Typer(no_args_is_help=True, help="Look after sharded datasets.")


# Without a second command typer would make `verify` the group itself.
@app.callback()
def group() -> None:
    """Look after sharded datasets."""


@app.command()
def verify(uri: Annotated[str, typer.Argument(help="Folder of the shards: <root>/shards/<fingerprint>.")]) -> None:
    """Read everything again and name what is damaged. Exits with 1 if anything is."""
    from piti.data.shards import verify_shards

    problems = 0
    for problem in verify_shards(uri):
        problems += 1
        typer.echo(str(problem), err=True)
    if problems:
        raise DataError(
            f"{uri}: {problems} problem{'s' if problems > 1 else ''} found",
            "delete the folder and prepare the data again",
        )
    typer.echo(f"{uri} is whole")
