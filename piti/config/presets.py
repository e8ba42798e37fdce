"""Reading a config: a preset by name or a file by path, with dotted overrides. One error lists every mistake.

config = load_config("demo", {"training.stage2.phases": [...], "sampling.guidance_scale": 2.0})
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from piti import storage
from piti.config.data import DataConfig, SourceConfig
from piti.config.files import PRESETS, nearest, preset_names, read_config_file
from piti.config.tree import Config
from piti.config.variables import Variables, written_at
from piti.credentials import refuse_credentials
from piti.errors import ConfigError
from piti.settings import settings

__all__ = ["PRESETS", "known_keys", "load_config", "preset_names"]

_LONGEST_VALUE = 120  # characters of a wrong value that an error repeats


def load_config(
    config: str, overrides: Mapping[str, Any] | None = None, folders: Sequence[str] | None = None
) -> Config:
    """Read a preset by name, or a YAML file by path, and apply dotted overrides (`training.stage1.batch_size`).

    `folders`: where a file may lie (None: anywhere). $PITI_ROOT, $PITI_DATA, $PITI_WEIGHTS, $PITI_CACHE and the
    variables in PITI_CONFIG_VARIABLES are expanded in values. A relative `root` is resolved against the working
    directory. Raises ConfigError that lists every problem, with the nearest known key for an unknown one.
    """
    refuse_credentials(overrides or {}, "overrides")
    tree = read_config_file(config, folders)
    for dotted, value in (overrides or {}).items():
        _override(tree, str(dotted), copy.deepcopy(value))
    variables = Variables(config, settings().usable_variables())
    try:
        parsed = Config.model_validate(variables.expand(tree))
    except ValidationError as error:
        raise ConfigError(f"config {config!r}: " + "; ".join(_problems(error, tree, variables))) from error
    return parsed.model_copy(update={"root": storage.absolute(parsed.root)})


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
        if not (part.isascii() and part.isdigit()) or int(part) >= len(node):
            raise ConfigError(f"override {dotted!r}: {part!r} is not one of the positions 0..{len(node) - 1}")
        return node[int(part)]
    child = node.get(part)
    if child is None:
        child = node[part] = {}
    if not isinstance(child, dict | list):
        raise ConfigError(f"override {dotted!r}: {part!r} is a value, it has no keys below it")
    return child


def _problems(error: ValidationError, tree: dict[str, Any], variables: Variables) -> Iterator[str]:
    for detail in error.errors():
        where = [part for part in detail["loc"] if not (isinstance(part, str) and part in _union_tags())]
        dotted = ".".join(str(part) for part in where) or "config"
        if detail["type"] == "extra_forbidden":
            yield f"unknown key {dotted!r}{nearest(dotted, list(known_keys()))}"
        elif detail["type"] == "missing":
            yield f"{dotted} is missing"
        else:
            message = variables.hide(detail["msg"].removeprefix("Value error, "))
            yield f"{dotted}: {message}{_given(tree, where)}"


def _given(tree: dict[str, Any], where: Sequence[Any]) -> str:
    """The config's value there, before expansion, for errors."""
    try:
        value = written_at(tree, where)
    except (LookupError, TypeError):
        return ""
    text = repr(value)
    if isinstance(value, dict):
        return ""
    return f" (got {text if len(text) <= _LONGEST_VALUE else text[:_LONGEST_VALUE] + '...'})"


def _source_models() -> dict[str, type[BaseModel]]:
    members = get_args(get_args(SourceConfig)[0]) or (get_args(SourceConfig)[0],)
    return {member.model_fields["kind"].default: member for member in members}


def _union_tags() -> set[str]:
    return {*_source_models(), "number", "WorkerRange"}


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
