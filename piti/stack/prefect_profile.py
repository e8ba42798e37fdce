"""The Prefect profile `piti`, which makes `prefect ...` find the local stack from any folder.

It switches on our plugin (piti/stack/prefect_plugin.py) and holds no address and no password, so it never goes stale.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

NAME = "piti"
_SECTION = f"""
[profiles.{NAME}]
PREFECT_PLUGINS_ENABLED = "true"
PREFECT_PLUGINS_ALLOW = "piti"
PREFECT_SERVER_EPHEMERAL_ENABLED = "false"
"""


def ensure_profile() -> str | None:
    """Make the profile if it is missing. It becomes the active one only where the user has no profiles at all.

    A line to show: what was done to the user's Prefect, or how to switch to the profile; None if it is active already.
    """
    path = _profiles_path()
    if path is None:
        return None
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else None
        known = tomllib.loads(text or "")
        if NAME not in known.get("profiles", {}):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(path, "a", encoding="utf-8") as stream:  # appended, so that the file keeps its mode and comments
                stream.write((f'active = "{NAME}"\n' if text is None else "\n") + _SECTION)
        if text is None:
            return f"made the Prefect profile {NAME!r} and activated it ({path})"
    except (OSError, ValueError) as error:
        return (
            f"the Prefect profile {NAME!r} could not be made ({error}); `prefect` finds the stack in the checkout only"
        )
    active = os.environ.get("PREFECT_PROFILE") or known.get("active", "ephemeral")
    if active == NAME:
        return None
    return f"your Prefect profile {active!r} stays active; `prefect profile use {NAME}` makes `prefect` find this stack"


def _profiles_path() -> Path | None:
    """Where Prefect looks for profiles; None for a user without a home folder."""
    if given := os.environ.get("PREFECT_PROFILES_PATH"):
        return Path(given)
    if home := os.environ.get("PREFECT_HOME"):
        return Path(home).expanduser() / "profiles.toml"
    folder = Path(os.path.expanduser("~"))
    return folder / ".prefect" / "profiles.toml" if folder.is_absolute() else None
