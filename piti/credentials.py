"""Finds passwords and tokens in addresses. Configs, parameters and commands may hold none: logs, specs and reports show them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from piti.errors import ConfigError

REMEDY = "give credentials in the environment of the servers instead (docs/security.md)"

# Before an @, an address names who asks: user:password (a password may hold slashes), or a lone token. Only Azure puts
# something else there: abfs://container@account.dfs.core.windows.net/path.
_CREDENTIALS = re.compile(
    r"""
    ://[^\s/?\#@:]*:[^\n@]*@
    | (?<!\baz)(?<!\babfs)://[^\s/?\#@]*@
    | ://(?![a-z0-9-]{3,63}@)[^\s/?\#@]*@
    | [?&;\#](?:[^=&;\s]*(?:sig|token|secret|passw|credential|access.?key|api.?key)[^=&;\s]*|key|auth|authorization|pwd|pass)=
    """,
    re.IGNORECASE | re.VERBOSE,
)

_LONGEST_PLACE = 120  # characters
_Place = tuple[Any, object] | None  # of the container around, and the key there


def holds_credentials(text: str) -> bool:
    """Whether an address in `text` holds a user, a password, a token or a signature."""
    return _CREDENTIALS.search(text) is not None


def refuse_credentials(value: object, what: str) -> None:
    """Raise ConfigError where a text of `value` holds credentials: of lists and mappings, keys too, however deep.

    `what` names the value in the error, which does not repeat it.
    """
    # Each container is looked into once: YAML's aliases make circles, and billions of values from a few lines.
    seen: set[int] = set()
    waiting: list[tuple[object, _Place]] = [(value, None)]
    while waiting:
        found, place = waiting.pop()
        if isinstance(found, str) and holds_credentials(found):
            raise ConfigError(f"{_named(what, place)} holds a user's password or token", REMEDY)
        if not isinstance(found, Mapping | list | tuple) or id(found) in seen:
            continue
        seen.add(id(found))
        for key, child in found.items() if isinstance(found, Mapping) else enumerate(found):
            if isinstance(key, str) and holds_credentials(key):
                raise ConfigError(f"a key in {_named(what, place)} holds a user's password or token", REMEDY)
            waiting.append((child, (place, key)))


def _named(what: str, place: _Place) -> str:
    keys: list[str] = []
    while place is not None:
        place, key = place
        keys.append(str(key))
    return f"{what}: {'.'.join(reversed(keys))[:_LONGEST_PLACE]}" if keys else what
