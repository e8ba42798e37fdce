"""Expands the environment variables that configs may use. Their values never appear in errors."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from typing import Any

from piti.credentials import refuse_credentials
from piti.errors import ConfigError

_VARIABLE = re.compile(r"\$(?:\{(?P<braced>[^}]*)\}|(?P<plain>\w+))")
_MOST_VALUES = 20_000  # a config has hundreds; a few lines of YAML with aliases can hold billions


class Variables:
    """Expands the values of one config, and remembers the variables' values to remove them from errors."""

    def __init__(self, config: str, usable: Collection[str]) -> None:
        self._config = config
        self._usable = usable
        self._used: dict[str, str] = {}
        self._num_values = 0

    def expand(self, tree: dict[str, Any]) -> dict[str, Any]:
        """A copy of `tree` with every `$NAME` and `${NAME}` in its strings expanded.

        Raises ConfigError, for credentials too: those of the tree and those of variables.
        """
        refuse_credentials(tree, f"config {self._config!r}")
        try:
            expanded: dict[str, Any] = self._expand(tree, ())
        except RecursionError as error:
            raise ConfigError(f"config {self._config!r} is nested too deeply") from error
        refuse_credentials(expanded, f"config {self._config!r}")
        return expanded

    def hide(self, text: str) -> str:
        """`text` with each expanded value replaced by its variable's name."""
        for name, value in sorted(self._used.items(), key=lambda item: -len(item[1])):
            # Errors repeat values as they are, and as `repr` writes them: alone, or within a text that holds both quotes.
            for written in (repr(value + "'\"")[1:-4], repr(value)[1:-1], value):
                text = text.replace(written, f"${name}") if written else text
        return text

    def _expand(self, value: Any, place: tuple[Any, ...]) -> Any:
        self._num_values += 1
        if self._num_values > _MOST_VALUES:
            raise ConfigError(f"config {self._config!r} holds too many values", "write it without aliases of aliases")
        if isinstance(value, dict):
            return {key: self._expand(child, (*place, key)) for key, child in value.items()}
        if isinstance(value, list):
            return [self._expand(child, (*place, index)) for index, child in enumerate(value)]
        if not isinstance(value, str):
            return value
        return _VARIABLE.sub(lambda match: self._value(match, place), value)

    def _value(self, match: re.Match[str], place: tuple[Any, ...]) -> str:
        name = match["plain"] or match["braced"]
        where = f"config {self._config!r}: {_dotted(place)} names the environment variable ${name}"
        if name not in self._usable:
            raise ConfigError(
                f"{where}, which configs may not use",
                f"they may use {', '.join(f'${usable}' for usable in self._usable)}; PITI_CONFIG_VARIABLES allows more",
            )
        if name not in os.environ:
            raise ConfigError(f"{where}, which is not set", "set it before `piti up`, or write the value itself")
        self._used[name] = os.environ[name]
        return os.environ[name]


def written_at(tree: Any, place: Sequence[Any]) -> Any:
    """The value at a place of a config, before expansion. Raises LookupError or TypeError if there is none."""
    for part in place:
        if not isinstance(tree, (dict, list)):
            raise TypeError(f"nothing lies below a {type(tree).__name__}")
        tree = tree[part]
    return tree


def _dotted(place: Sequence[Any]) -> str:
    return ".".join(str(part) for part in place)
