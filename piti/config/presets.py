"""Reading a config: a preset by name or a file by path, dotted overrides, and every mistake told at once.

config = load_config("demo", {"training.stage2.phases": [...], "sampling.guidance_scale": 2.0})
"""

from __future__ import annotations

import copy
import difflib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from piti import storage
from piti.config.data import DataConfig, SourceConfig
from piti.config.tree import Config
from piti.errors import ConfigError

PRESETS = Path(__file__).resolve().parent.parent.parent / "configs"


def preset_names() -> list[str]:
    """Names of the presets that ship with the project."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load_config(config: str, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a preset by name, or a YAML file by path, and apply dotted overrides (`training.stage1.batch_size`).

    `$VARIABLES` in string values are expanded from the environment. A relative `root` is taken from the working
    directory. Raises ConfigError that lists every problem, with the nearest known key for an unknown one.
    """
    tree = _read_tree(config)
    for dotted, value in (overrides or {}).items():
        _override(tree, dotted, copy.deepcopy(value))
    try:
        parsed = Config.model_validate(_expand(tree, config))
    except ValidationError as error:
        raise ConfigError(f"config {config!r}: " + "; ".join(_problems(error))) from error
    return parsed.model_copy(update={"root": storage.absolute(parsed.root)})


def _read_tree(config: str) -> dict[str, Any]:
    is_path = "/" in config or config.endswith((".yaml", ".yml"))
    if not is_path and not (PRESETS / f"{config}.yaml").is_file():
        near = _nearest(config, preset_names())
        raise ConfigError(
            f"unknown preset {config!r}{near}",
            f"presets are {', '.join(preset_names())}; a file of your own is given by its path",
        )
    uri = config if is_path else str(PRESETS / f"{config}.yaml")
    try:
        tree = yaml.safe_load(storage.read_text(uri))
    except FileNotFoundError as error:
        raise ConfigError(
            f"there is no config file {config!r}", "give a preset's name or the path of a YAML file"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{config} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{config} must hold a mapping of config keys, not {type(tree).__name__}")
    return tree


def _override(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, leaf = dotted.split(".")
    node: Any = tree
    for part in parents:
        node = _child(node, part, dotted)
    if isinstance(node, list):
        _child(node, leaf, dotted)
        node[int(leaf)] = value
    else:
        node[leaf] = value


def _child(node: Any, part: str, dotted: str) -> Any:
    if isinstance(node, list):
        if not part.isdigit() or int(part) >= len(node):
            raise ConfigError(f"override {dotted!r}: {part!r} is not one of the positions 0..{len(node) - 1}")
        return node[int(part)]
    child = node.get(part)
    if child is None:
        child = node[part] = {}
    if not isinstance(child, dict | list):
        raise ConfigError(f"override {dotted!r}: {part!r} is a value, it has no keys below it")
    return child


def _expand(value: Any, config: str) -> Any:
    if isinstance(value, dict):
        return {key: _expand(child, config) for key, child in value.items()}
    if isinstance(value, list):
        return [_expand(child, config) for child in value]
    if isinstance(value, str) and "$" in value:
        expanded = os.path.expandvars(value)
        if "$" in expanded:
            raise ConfigError(f"config {config!r}: {value!r} names an environment variable that is not set")
        return expanded
    return value


def _problems(error: ValidationError) -> Iterator[str]:
    for detail in error.errors():
        where = [part for part in detail["loc"] if not (isinstance(part, str) and part in _union_tags())]
        dotted = ".".join(str(part) for part in where) or "config"
        if detail["type"] == "extra_forbidden":
            yield f"unknown key {dotted!r}{_nearest(dotted, list(known_keys()))}"
        elif detail["type"] == "missing":
            yield f"{dotted} is missing"
        else:
            given = "" if isinstance(detail["input"], dict) else f" (got {detail['input']!r})"
            yield f"{dotted}: {detail['msg'].removeprefix('Value error, ')}{given}"


def _source_models() -> dict[str, type[BaseModel]]:
    members = get_args(get_args(SourceConfig)[0]) or (get_args(SourceConfig)[0],)
    return {member.model_fields["kind"].default: member for member in members}


def _union_tags() -> set[str]:
    return set(_source_models())


def known_keys(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    """Every dotted key of the config tree."""
    for field, info in model.model_fields.items():
        dotted = f"{prefix}{field}"
        yield dotted
        nested = [info.annotation, *get_args(info.annotation)]
        for candidate in nested:
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                yield from known_keys(candidate, f"{dotted}.")
    if model is DataConfig:
        for source in _source_models().values():
            yield from (f"{prefix}source.{field}" for field in source.model_fields)


def _nearest(word: str, known: list[str]) -> str:
    matches = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {matches[0]!r}?" if matches else ""
