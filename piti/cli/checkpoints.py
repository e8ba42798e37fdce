"""`piti checkpoints`: inspect, import and export weights files."""

from __future__ import annotations

import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
import yaml

from piti.cli.config import parse_settings
from piti.errors import CheckpointError

app = typer.Typer(no_args_is_help=True, help="Inspect, import and export weights files and checkpoints.")


class Network(StrEnum):
    """The networks of the cascade."""

    BASE = "base"
    UPSAMPLER = "upsampler"


class Weights(StrEnum):
    """Averaged weights, or the last optimizer step's."""

    EMA = "ema"
    MODEL = "model"


ConfigOption = Annotated[
    str, typer.Option("--config", "-c", help="Preset or YAML file that gives the network's sizes.")
]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="An override: dotted.key=value.")]
NetworkOption = Annotated[Network, typer.Option(help="Which network of the cascade.")]


@app.command()
def inspect(path: Annotated[str, typer.Argument(help="A weights file or checkpoint folder.")]) -> None:
    """Print the kind of a weights file, its sizes, and its sha256 to pin in a config."""
    from piti.models.pretrained import inspect_checkpoint

    typer.echo(yaml.safe_dump(inspect_checkpoint(path), sort_keys=False), nl=False)


@app.command("import")
def import_weights(
    path: Annotated[str, typer.Argument(help="GLIDE's, PITI's or our own weights.")],
    target: Annotated[str, typer.Argument(help="The checkpoint folder to make; it must not exist.")],
    config: ConfigOption,
    network: NetworkOption = Network.BASE,
    assignments: SetOption = None,
    sha256: Annotated[str | None, typer.Option(help="The sha256 that the file must have.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the weights that the file does not hold.")] = 0,
) -> None:
    """Make a checkpoint folder of ours from published weights. A file that does not fit whole is refused."""
    from piti import storage
    from piti.config import WeightsRef
    from piti.config.presets import load_config
    from piti.models import build_model
    from piti.models.checkpoints import write_checkpoint
    from piti.models.pretrained import load_pretrained

    sizes = getattr(load_config(config, parse_settings(assignments or [])).models, network.value)
    _refuse_existing(target)
    model = build_model(sizes, seed=seed)
    origin = load_pretrained(model, WeightsRef(path=storage.absolute(path), sha256=sha256), "import")
    with tempfile.TemporaryDirectory() as folder:
        aside = Path(folder) / "checkpoint"
        state = model.state_dict()
        write_checkpoint(
            aside, model=state, ema=state, trainer={}, about={"step": 0, "network": network.value, "imported": origin}
        )
        storage.publish_folder(aside, target)
    typer.echo(f"{target}: {origin['loaded']} from {origin['kind']} weights")


@app.command()
def export(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint folder: <root>/runs/<fingerprint>/step-...")],
    target: Annotated[str, typer.Argument(help="The file to write; it must not exist.")],
    config: ConfigOption,
    network: NetworkOption = Network.BASE,
    weights: Annotated[Weights, typer.Option(help="Averaged weights, or the last step's.")] = Weights.EMA,
    assignments: SetOption = None,
) -> None:
    """Write a checkpoint as a file that PITI's published code loads."""
    from piti.config.presets import load_config
    from piti.models.checkpoints import load_model
    from piti.models.pretrained import export_piti

    sizes = getattr(load_config(config, parse_settings(assignments or [])).models, network.value)
    _refuse_existing(target)
    export_piti(load_model(checkpoint, sizes, weights.value), target)
    typer.echo(target)


def _refuse_existing(target: str) -> None:
    from piti import storage

    if storage.exists(target):
        raise CheckpointError(f"{target} exists already", "delete it or give another name")
