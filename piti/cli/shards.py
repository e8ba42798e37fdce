"""`piti shards`: inspect, verify and repair sharded datasets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from piti.errors import ConfigError, DataError, repair_advice

if TYPE_CHECKING:
    from piti.data.shards import ShardSet

app = typer.Typer(no_args_is_help=True, help="Look into sharded datasets and check them.")

UriArgument = Annotated[str, typer.Argument(help="Folder of the shards: <root>/shards/<fingerprint>.")]
_LISTED = 20


@app.command("ls")
def list_sets(
    root: Annotated[str, typer.Argument(help="A config's root, a folder of sets, or one set.")],
) -> None:
    """List the sets of shards below a root: samples, tars, size."""
    from piti.data.inspection import find_sets, summarise

    uris = find_sets(root)
    if not uris:
        raise DataError(f"there are no shards below {root}", "run piti/prepare, or give the config's root")
    for uri in uris:
        summary = summarise(uri)
        if summary.samples is None:
            typer.echo(f"{uri}  not finished, {summary.num_shards} tars so far")
            continue
        samples = ", ".join(f"{count} {split}" for split, count in summary.samples.items()) or "no samples"
        typer.echo(f"{uri}  {samples}, {summary.num_shards} tars, {_size(summary.num_bytes)}")


@app.command()
def show(uri: UriArgument, key: Annotated[str | None, typer.Argument(help="One sample's key.")] = None) -> None:
    """Show a set's settings and tars; with a key, everything about that sample."""
    from piti.data.inspection import sample_about
    from piti.data.shards import ShardSet

    shards = ShardSet(uri)
    if key is not None:
        typer.echo(json.dumps(sample_about(shards, key), indent=2))
        return
    typer.echo(json.dumps(shards.about, indent=2))
    for split in shards.splits:
        for name in shards.shard_names(split):
            stats = shards.stats[name]
            typer.echo(f"{name}  {stats.num_samples} samples, {_size(stats.tar_bytes)}")


@app.command()
def stats(
    uri: UriArgument,
    sheet: Annotated[Path | None, typer.Option(help="Write a contact sheet (PNG) there.")] = None,
    sheet_samples: Annotated[int, typer.Option(min=1, help="Samples on the contact sheet.")] = 12,
    label_samples: Annotated[int, typer.Option(min=1, help="Masks of each split to count labels in.")] = 1000,
) -> None:
    """Count samples, sizes, reasons of rejection and labels; write a contact sheet if asked."""
    from piti.data.inspection import contact_sheet, count_reasons, count_status, size_quantiles
    from piti.data.shards import ShardSet

    shards = ShardSet(uri)
    for split in shards.splits:
        typer.echo(f"{split}: {shards.num_samples(split)} samples in {len(shards.shard_names(split))} tars")
    typer.echo("items: " + ", ".join(f"{count} {status}" for status, count in count_status(shards).items()))
    units = {"width": "pixels", "height": "pixels", "size": "bytes stored"}
    for name, (low, middle, high) in size_quantiles(shards).items():
        typer.echo(f"{name}: {low} to {high} {units[name]}, median {middle}")
    reasons = count_reasons(shards)
    for status, reason, count in reasons[:_LISTED]:
        typer.echo(f"{status}: {count} x {reason}")
    if len(reasons) > _LISTED:
        typer.echo(f"... and {len(reasons) - _LISTED} other reasons")
    if shards.about.get("modality") == "mask":
        _print_labels(shards, label_samples)
    if sheet is not None:
        sheet.write_bytes(contact_sheet(shards, sheet_samples))
        typer.echo(f"contact sheet: {sheet}")


@app.command()
def verify(
    uri: UriArgument,
    repair: Annotated[
        bool, typer.Option(help="Delete the records of damaged shards, so that piti/prepare writes them again.")
    ] = False,
    decode: Annotated[bool, typer.Option(help="Decode every sample, too.")] = False,
) -> None:
    """Hash every tar and name each damaged sample. Exits with 1 if there is any, unless --repair is given."""
    from piti.data.verify import ShardProblem, forget_unreadable_manifest, repair_shards, verify_shards

    if repair and decode:
        problem = "--decode finds what is damaged in the dataset itself, which --repair cannot mend"
        raise ConfigError(problem, "use one at a time, --repair first")
    if repair and (deleted := forget_unreadable_manifest(uri)):
        _print_deleted(deleted)
        typer.echo("run piti/prepare: it makes the manifest again from the shards that are there; then verify them")
        return
    problems: list[ShardProblem] = []
    for found in verify_shards(uri, decode):
        problems.append(found)
        typer.echo(str(found), err=True)
    if not problems:
        typer.echo(f"{uri} is whole")
        return
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''} found"
    if not repair:
        mendable = any(not problem.came_damaged for problem in problems)
        remedy = (
            repair_advice(uri) if mendable else "training skips them; mend them in the dataset and run piti/prepare"
        )
        raise DataError(f"{uri}: {count}", remedy)
    _print_deleted(repair_shards(uri, problems))
    typer.echo(f"{count}; run piti/prepare: it writes what is missing, and nothing else")


def _print_deleted(uris: list[str]) -> None:
    for uri in uris:
        typer.echo(f"deleted {uri}")


def _print_labels(shards: ShardSet, limit: int) -> None:
    from piti.data.inspection import count_labels

    labels, looked_at = count_labels(shards, limit)
    typer.echo(f"labels in {looked_at} masks (255 is unlabelled):")
    for entry in labels:
        typer.echo(f"  {entry.label:5d}  {100 * entry.pixel_share:6.2f} % of pixels, in {entry.num_pictures} masks")


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"
