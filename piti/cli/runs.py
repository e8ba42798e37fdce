"""`piti runs`: list the training runs below a root, show one, and compare two."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Any

import typer

from piti.errors import DataError

app = typer.Typer(no_args_is_help=True, help="Look at training runs: how far, how long, with what, and what differs.")

RunArgument = Annotated[str, typer.Argument(help="Folder of a run: <root>/runs/<fingerprint>.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("ls")
def list_runs(
    root: Annotated[str, typer.Argument(help="A config's root: a folder or s3://bucket/prefix.")],
    as_json: JsonOption = False,
) -> None:
    """List the training runs below a root, the newest last."""
    from piti.runs import runs_below

    summaries = [run.summary() for run in runs_below(root)]
    if as_json:
        typer.echo(json.dumps(summaries, indent=2))
        return
    if not summaries:
        raise DataError(f"there are no training runs below {root}", "run piti/train, or give the config's root")
    columns = [
        "run",
        "stage",
        "config",
        "step",
        "loss",
        "validation",
        "took",
        "pictures/s",
        "began",
        "workers",
        "state",
    ]
    _table(columns, [_row(summary) for summary in summaries])


@app.command()
def show(run: RunArgument, as_json: JsonOption = False) -> None:
    """Show everything that is stored about one run."""
    from piti.runs import run_at

    found = run_at(run)
    if as_json:
        typer.echo(json.dumps({**found.summary(), "full_config": found.config}, indent=2))
        return
    summary = found.summary()
    rows = [[name, _shown(value)] for name, value in summary.items() if name not in ("losses", "workers", "began")]
    rows += [[f"{split} losses", _shown(values)] for split, values in summary.get("losses", {}).items()]
    rows += [["began", _when(summary)], ["workers", _where(summary)]]
    _table(["what", "value"], rows)


@app.command()
def diff(one: RunArgument, other: RunArgument, as_json: JsonOption = False) -> None:
    """Show the differences between two runs: config by dotted keys, code, data, seeds, initial weights."""
    from piti.runs import differences, run_at

    found = differences(run_at(one), run_at(other))
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    elif not found:
        typer.echo("the two runs differ in nothing that is stored of them")
    else:
        _table(["key", one, other], [[name, _shown(left), _shown(right)] for name, (left, right) in found.items()])


def _row(summary: dict[str, Any]) -> list[str]:
    losses = summary.get("losses", {})
    steps = f"{summary.get('step', 0):,} of {summary['total_steps']:,}" if "total_steps" in summary else "?"
    return [
        summary["run"], summary.get("stage", "?"), summary.get("config", "?"), steps,
        *(_shown(losses.get(split, {}).get("loss")) for split in ("train", "validation")),
        _duration(summary.get("seconds")), _shown(summary.get("pictures_per_second")), _when(summary), _where(summary),
        summary["state"],
    ]  # fmt: skip


def _when(summary: dict[str, Any]) -> str:
    return datetime.fromtimestamp(summary["began"]).isoformat(" ", "seconds") if "began" in summary else ""


def _where(summary: dict[str, Any]) -> str:
    """`2 x H100 on node-a`, say: workers by host and device."""
    workers = summary.get("workers", [])
    places = [f"{worker['device']} on {worker['host']}" for worker in workers]
    return ", ".join(f"{places.count(place)} x {place}" for place in dict.fromkeys(places))


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)


def _table(columns: list[str], rows: list[list[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    table = Table(*(Column(Text(column)) for column in columns), box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # as Text, so that square brackets are not read as markup
    Console().print(table)
