"""`piti shards`: look after sharded datasets."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Look after sharded datasets.")


@app.command()
def verify(uri: Annotated[str, typer.Argument(help="Folder of the shards: <root>/shards/<fingerprint>.")]) -> None:
    """Read everything again and name what is damaged. Exits with 1 if anything is."""
    from piti.data.shards import verify_shards

    problems = verify_shards(uri)
    for problem in problems:
        typer.echo(str(problem), err=True)
    if problems:
        raise typer.Exit(1)
    typer.echo(f"{uri} is whole")
