"""`piti translate` and `piti try`: draw pictures from conditions of one's own."""

from __future__ import annotations

import errno
import secrets
import socket
import time
from typing import TYPE_CHECKING, Annotated

import typer

from piti.cli.config import parse_settings
from piti.config import Sampler
from piti.errors import PitiError, StackError

if TYPE_CHECKING:
    from piti.evaluation.translation import Networks


UpsamplerOption = Annotated[
    str | None, typer.Option(help="The upsampler's checkpoint. Default: the newest of the same config.")
]
ConfigOption = Annotated[
    str | None,
    typer.Option("--config", "-c", help="Preset or YAML file. Default: the one that the checkpoint was trained with."),
]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="An override of --config: dotted.key=value.")]


def register(app: typer.Typer) -> None:
    app.command()(translate)
    app.command("try")(try_)


def translate(
    checkpoint: Annotated[
        str, typer.Argument(help="A base checkpoint or its run: <root>/runs/<fingerprint>, or a step-... below it.")
    ],
    condition: Annotated[str, typer.Argument(help="A label map (numbers), a sketch, or a depth map.")],
    upsampler: UpsamplerOption = None,
    samples: Annotated[int, typer.Option(min=1, help="How many pictures.")] = 4,
    guidance: Annotated[float | None, typer.Option(min=0, help="The scale; 1: none. Default: the config's.")] = None,
    sampler: Annotated[Sampler | None, typer.Option(help="The base network's. Default: the config's.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="The sampler's. Default: the config's.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="The noise's seed.")] = 0,
    out: Annotated[str, typer.Option(help="The folder to write <condition>-<seed>-<number>.png into.")] = ".",
    config: ConfigOption = None,
    assignments: SetOption = None,
) -> None:
    """Draw pictures from a condition. The same seed and number give the same picture."""
    from pathlib import Path

    from piti.evaluation.picture_sets import png_bytes
    from piti.evaluation.translation import Translator, Wish, picture_names, read_condition

    networks = _networks(checkpoint, upsampler, config, assignments)
    wish = Wish(samples, seed, guidance, sampler, steps)
    wish.sampling(networks.config.sampling)
    paths = picture_names(condition, wish, out)
    painted = read_condition(condition, networks.config.data)
    if Path(out).is_file():
        raise PitiError(f"--out {out} is a file", "name the folder to write the pictures into")
    Path(out).mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    for path, picture in zip(paths, Translator(networks).draw(painted, wish), strict=True):
        path.write_bytes(png_bytes(picture, path.name))
        typer.echo(f"{path}  ({time.monotonic() - started:.1f} s)")


def try_(
    checkpoint: Annotated[
        str | None,
        typer.Argument(help="A base checkpoint, or its run. Default: the newest of --config, or of the demo."),
    ] = None,
    upsampler: UpsamplerOption = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0: any free one.")] = 7860,
    browser: Annotated[bool, typer.Option(help="Open the page.")] = True,
    config: ConfigOption = None,
    assignments: SetOption = None,
) -> None:
    """Open a page to draw a sketch or paint a label map on, and show the networks' pictures of it. Ctrl-C ends it."""
    networks = _networks(checkpoint, upsampler, config or ("demo" if checkpoint is None else None), assignments)
    typer.echo(f"loading {networks.base}")
    import uvicorn

    from piti.evaluation.translation import Translator
    from piti.stack.try_page import page_facts, try_page

    page_facts(networks.config)
    key = secrets.token_urlsafe(16)
    page = try_page(Translator(networks), key)
    with _listening(port) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/{key}/"
        typer.echo(f"open {address}   (Ctrl-C ends it)")
        if browser:
            typer.launch(address)
        uvicorn.Server(uvicorn.Config(page, log_level="warning")).run(sockets=[server])


def _networks(
    checkpoint: str | None, upsampler: str | None, config: str | None, assignments: list[str] | None
) -> Networks:
    from piti.config.presets import load_config
    from piti.evaluation.translation import find_networks

    if assignments and config is None:
        raise PitiError("--set changes a config, but none is given", "give --config too")
    loaded = None if config is None else load_config(config, parse_settings(assignments or []))
    return find_networks(checkpoint, upsampler, loaded)


def _listening(port: int) -> socket.socket:
    server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        server.bind(("127.0.0.1", port))
    except OSError as error:
        server.close()
        reason = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be had ({error.strerror})"
        raise StackError(f"port {port} {reason}", "give another --port; 0 takes any that is free") from error
    return server
