"""Finding and reading config files. Errors never quote a file that is not a config."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import yaml

from piti import storage
from piti.config.section import require_known_scheme
from piti.credentials import refuse_credentials
from piti.errors import ConfigError

PRESETS = Path(__file__).resolve().parent.parent / "configs"

# Keys of every config. A file without them is not a config, and errors must not quote its keys.
_OWN_KEYS = ("name", "root", "data", "training")
_MOST_BYTES = 1 << 20


def preset_names() -> list[str]:
    """Names of the presets that ship with the project."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def read_config_file(config: str, folders: Sequence[str] | None) -> dict[str, Any]:
    """The keys of a preset, or of a file below one of `folders` (None: any file). Raises ConfigError."""
    tree = read_yaml(config, "preset", PRESETS, preset_names(), folders)
    if missing := [key for key in _OWN_KEYS if key not in tree]:
        raise ConfigError(
            f"{config} is no config of this project: it lacks {', '.join(missing)}",
            "`piti config show demo` prints a whole one",
        )
    return tree


def read_yaml(
    file: str, kind: str, shipped: Path, names: Sequence[str], folders: Sequence[str] | None
) -> dict[str, Any]:
    """The mapping in a shipped file, given by one of `names`, or in a file below one of `folders` (None: any file).

    `kind` is the word for shipped files in errors. Raises ConfigError.
    """
    refuse_credentials(file, "a config's address" if kind == "preset" else "a study's address")
    if "\0" in file:
        raise ConfigError("a config's name holds a null character", f"give a {kind}'s name or the path of a YAML file")
    is_path = "/" in file or file.endswith((".yaml", ".yml"))
    if not is_path and file not in names:
        raise ConfigError(
            f"unknown {kind} {file!r}{nearest(file, names)}",
            f"{'presets' if kind == 'preset' else 'studies'} are {', '.join(names)}; a file of your own is given by its path",
        )
    if is_path:
        _require_allowed(file, folders)
    return _parsed(file, _content(file, file if is_path else str(shipped / f"{file}.yaml")))


def nearest(word: str, known: Sequence[str]) -> str:
    """`; did you mean ...?` with the most similar known word, empty if none is similar."""
    matches = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def _require_allowed(config: str, folders: Sequence[str] | None) -> None:
    try:
        require_known_scheme(config)
    except ValueError as error:
        raise ConfigError(f"config {config!r}: {error}") from error
    if folders is None:
        return
    refuse_credentials(folders, "PITI_CONFIG_FOLDERS or PITI_ROOT")
    is_below = _is_below_local if storage.is_local(config) else _is_below_remote
    if not any(is_below(config, folder) for folder in [*folders, str(PRESETS)]):
        raise ConfigError(
            f"config {config!r} lies outside of the folders whose configs may be run ({', '.join(folders)})",
            "move it there, run `piti up` in its folder, or name that in PITI_CONFIG_FOLDERS before `piti up`",
        )


def _is_below_local(path: str, folder: str) -> bool:
    """With links followed."""
    if not storage.is_local(folder):
        return False
    return storage.local_path(path).resolve().is_relative_to(storage.local_path(folder).resolve())


def _is_below_remote(uri: str, prefix: str) -> bool:
    """By whole components, in the same spelling; none of them may lead up again."""
    leads_up = {".", ".."} & set(unquote(uri).replace("\\", "/").split("/"))
    return not storage.is_local(prefix) and not leads_up and uri.startswith(f"{prefix.rstrip('/')}/")


def _content(config: str, uri: str) -> bytes:
    try:
        if storage.is_local(uri):
            path = storage.local_path(uri)
            if path.exists() and not path.is_file():  # a folder, or a device or pipe, which might never end
                raise ConfigError(f"{config} is not a file", "give the path of a YAML file")
        with storage.open_read(uri) as stream:
            content = stream.read(_MOST_BYTES + 1)
    except FileNotFoundError as error:
        raise ConfigError(
            f"there is no config file {config!r}", "give a preset's name or the path of a YAML file"
        ) from error
    except ConfigError:
        raise
    except Exception as error:
        if not isinstance(error, (OSError, ImportError, ValueError)) and not storage.is_client_error(error):
            raise
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise ConfigError(
            f"config {config!r} cannot be read ({reason})", "check the path and who may read it"
        ) from error
    if len(content) > _MOST_BYTES:
        raise ConfigError(f"{config} is too large for a config (over {_MOST_BYTES >> 20} MiB)")
    return content


def _parsed(config: str, content: bytes) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(content.decode("utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"
        raise ConfigError(f"{config} is not valid YAML{where}", "correct it, or give another file") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{config} must hold a mapping of config keys, not {type(tree).__name__}")
    return tree
