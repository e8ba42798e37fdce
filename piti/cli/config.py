"""`piti config`: show and list configurations."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
import yaml

from piti.errors import ConfigError

app = typer.Typer(no_args_is_help=True, help="Show and list configurations.")


def parse_settings(assignments: list[str]) -> dict[str, Any]:
    """Parse `key=value` arguments as overrides; values are YAML (3, true, [1, 2], text). Raises ConfigError."""
    overrides: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key:
            raise ConfigError(
                f"{assignment!r} is not of the form key=value", "for example --set training.stage1.batch_size=16"
            )
        try:
            overrides[key] = yaml.safe_load(value)
            json.dumps(overrides[key], allow_nan=False)  # the form in which the server gets it
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ConfigError(f"the value of {assignment!r} is not valid YAML, or not finite") from error
        except TypeError as error:  # a date, binary data
            raise ConfigError(
                f"the value of {assignment!r} is neither text, number, list nor mapping", "quote it"
            ) from error
    return overrides


@app.command()
def show(
    preset: Annotated[str, typer.Argument(help="A preset's name, or the path of a YAML file.")],
    assignments: Annotated[list[str] | None, typer.Option("--set", help="An override: dotted.key=value.")] = None,
) -> None:
    """Validate a configuration and print it whole, defaults included."""
    from piti.config.presets import load_config

    config = load_config(preset, parse_settings(assignments or []))
    typer.echo(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), nl=False)


@app.command("list")
def list_presets() -> None:
    """List the names of the presets."""
    from piti.config.presets import preset_names

    typer.echo("\n".join(preset_names()))
