"""Connects the `prefect` command to the local stack. The checkout's prefect.toml and the profile `piti` switch the
plugin on.

It points Prefect at the local stack on whatever ports that runs, signs in there, and where no server answers it says so
in one line instead of a traceback. Loaded with every `import prefect`, so it imports little itself.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from urllib.parse import urlsplit

from prefect.plugins import HookContext, SetupResult, register_hook

from piti.errors import PitiError, StackError
from piti.stack.environment import PREFECT_SETTINGS, direct_to_loopback, is_loopback, without_broken_proxies
from piti.stack.prefect_api import auth_string, local_api_url, require_prefect

# Commands of people that ask the server for something. Others work without one, or wait for it themselves.
_ASKING = {
    "api", "artifact", "automation", "automations", "block", "blocks", "concurrency-limit", "deploy", "deployment", "deployments",
    "event", "events", "flow", "flows", "flow-run", "flow-runs", "gcl", "global-concurrency-limit", "task-run", "task-runs",
    "variable", "variables", "work-pool", "work-queue",
}  # fmt: skip


@register_hook
def setup_environment(*, ctx: HookContext) -> SetupResult | None:
    """Prefect's hook, called while `prefect` is imported. Exits with 1 if the command cannot work without a server."""
    arguments = sys.argv[1:] if os.path.basename(sys.argv[0]) in {"prefect", "-m"} else []
    try:
        api_url = os.environ.get("PREFECT_API_URL") or local_api_url() or ctx.api_url
        refuse_open_server(arguments)
        if asks(arguments):
            _require_server(api_url)
        return SetupResult(env=_environment(api_url), note="the local stack's server")
    except PitiError as problem:
        print(f"piti: {problem}", file=sys.stderr)
        raise SystemExit(1) from problem


def _environment(api_url: str | None) -> dict[str, str]:
    environment = {name: value for name, value in PREFECT_SETTINGS.items() if name not in os.environ}
    environment |= direct_to_loopback(os.environ)
    for broken in set(os.environ) - set(without_broken_proxies(os.environ)):
        del os.environ[broken]
    if api_url is not None:
        environment["PREFECT_API_URL"] = api_url
        if password := auth_string(api_url):
            environment["PREFECT_API_AUTH_STRING"] = password
    return environment


def asks(arguments: Sequence[str]) -> bool:
    """Whether a `prefect` command asks a server for something, and has nobody but us to say that there is none."""
    words = [word for word in arguments if not word.startswith("-")]
    if words[:2] == ["flow-run", "execute"]:  # a run's own process, which waits for a server that is away
        return False
    return bool(words) and words[0] in _ASKING and not {"--help", "-h"} & set(arguments)


def _require_server(api_url: str | None) -> None:
    if api_url is None:
        raise StackError("no Prefect server is known", "start one with `piti up`, or set PREFECT_API_URL")
    if is_loopback(urlsplit(api_url).hostname or ""):  # that of some team may want a login before it answers anything
        require_prefect(api_url)


def refuse_open_server(arguments: Sequence[str]) -> None:
    """Raise StackError where `prefect server start` would let everybody run code here: public, without a password."""
    if list(arguments[:2]) != ["server", "start"]:
        return
    host = os.environ.get("PREFECT_SERVER_API_HOST", "127.0.0.1")
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if word == "--host":
            host = following
        elif word.startswith("--host="):
            host = word.removeprefix("--host=")
    if not is_loopback(host) and not os.environ.get("PREFECT_SERVER_API_AUTH_STRING"):
        raise StackError(
            f"a Prefect server on {host} without a password lets everybody run code here",
            "set PREFECT_SERVER_API_AUTH_STRING to user:password (docs/security.md)",
        )
