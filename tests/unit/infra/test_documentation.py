"""The documents name what exists: links, files, commands with their options, deployments and config keys."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from piti.cli import app
from piti.config.presets import known_keys, preset_names
from piti.settings import PROJECT
from tests.command_line import piti

DOCUMENTS = [
    *sorted((PROJECT / "docs").glob("*.md")),
    *(PROJECT / name for name in ("README.md", "CONTRIBUTING.md", "infra/README.md", "piti/assets/README.md")),
]
ROOMS = "piti|flows|tests|benchmarks|scripts|configs|docs|degradations|eval|infra|studies"
DEPLOYMENTS = {each["name"] for each in yaml.safe_load((PROJECT / "prefect.yaml").read_text())["deployments"]}
NO_FILES = {"infra/secrets/prefect-auth", "infra/secrets/ray-token", "infra/secrets/storage-credentials"}
NO_FILES |= {f"piti/{name}" for name in DEPLOYMENTS}
each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(PROJECT)))


def anchors(document: Path) -> set[str]:
    """The names that GitHub gives the headings."""
    titles = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    """A command of `piti`, and the words after its name. Raises KeyError for a name that no command has."""
    command: Any = typer.main.get_command(app)
    while words and hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    return command, words


def commands(command: Any, name: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The name of every command and group of `piti`, in words."""
    yield name
    for word, child in getattr(command, "commands", {}).items():
        yield from commands(child, (*name, word))


@each_document
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


@each_document
def test_files_that_are_named_exist(path: Path) -> None:
    for name in re.findall(rf"`((?:{ROOMS})/[\w./*-]*)`", path.read_text()):
        assert name in NO_FILES or list(PROJECT.glob(name.rstrip("/"))), name


@each_document
def test_commands_have_the_options_that_are_given(path: Path) -> None:
    text = path.read_text().replace("`piti training on", "`")  # a concurrency limit's name
    lines = [
        *re.findall(r"^ *(piti [^#\n]*)", text, re.MULTILINE),
        *re.findall(r"`(piti [a-z][^`\n]*)`", text),
    ]
    for line in lines:
        command, rest = command_of(shlex.split(line)[1:])
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert {word for word in rest if word.startswith("-")} <= known, line
    assert set(re.findall(r"deployment run piti/([\w-]+)", text)) <= DEPLOYMENTS
    assert set(re.findall(r"(?:-p config=|--config )([a-z][\w-]+)(?![\w./])", text)) <= set(preset_names())


@each_document
def test_config_keys_exist(path: Path) -> None:
    sections = "data|degradation|models|diffusion|pretrained|training|sampling|evaluation|cluster"
    keys = {re.sub(r"phases\.\d+", "phases", key) for key in known_keys()}
    for name in re.findall(rf"[`\"]((?:{sections})\.(?!py)[\w.*]+)[`\":]", path.read_text()):
        assert any(fnmatch(key, re.sub(r"phases\.\d+", "phases", name)) for key in keys), name


@pytest.mark.parametrize("name", list(commands(typer.main.get_command(app))), ids=" ".join)
def test_every_command_tells_what_it_does(name: tuple[str, ...]) -> None:
    """`piti translate --help` once failed: brackets in a help text are markup to the library that prints it."""
    answer = piti(*name, "--help")
    assert answer.exit_code == 0, answer.output
    assert "Usage" in answer.stdout


def test_quoted_figures_of_the_demo_are_the_stored_ones() -> None:
    text = (PROJECT / "docs" / "performance.md").read_text().replace("\n", " ")
    prior = json.loads((PROJECT / "piti" / "assets" / "demo-prior-check.json").read_text())
    ratios = [losses["shuffled"] / losses["right"] for losses in prior["losses"].values()]
    assert f"{min(ratios):.1f} to {max(ratios):.1f} times smaller" in text
    demo = json.loads((PROJECT / "docs" / "demo-result.json").read_text())["upsampler"]
    for psnr in (prior["psnr_db"], demo["psnr_db"]):
        assert f"the upsampler reaches {psnr['upsampler']:.1f} dB" in text
        assert f"bicubic enlargement {psnr['bicubic']:.1f} dB" in text
    assert f"distance to the truth is {demo['perceptual']['upsampler']:.2f}" in text
