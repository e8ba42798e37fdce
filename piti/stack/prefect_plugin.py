"""Connects the `prefect` command to the local stack. The checkout's prefect.toml and the profile `piti` switch the
plugin on.

It points Prefect at the local stack on whatever ports that runs, signs in there, and where no server answers it says so
in one line instead of a traceback. Loaded with every `import prefect`, so it imports little itself.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from typing import NamedTuple
from urllib.parse import urlsplit

from prefect.plugins import HookContext, SetupResult, register_hook

from piti.errors import PitiError, StackError
from piti.stack.environment import PREFECT_SETTINGS, direct_to_loopback, is_loopback, without_broken_proxies
from piti.stack.prefect_api import auth_string, local_api_url, require_prefect, server_address

# Commands of people that ask the server for something. Others work without one, or wait for it themselves.
_ASKING = {
    "api", "artifact", "automation", "automations", "block", "blocks", "concurrency-limit", "concurrency-limits", "deploy",
    "deployment", "deployments", "event", "events", "flow", "flows", "flow-run", "flow-runs", "gcl", "global-concurrency-limit",
    "task-run", "task-runs", "variable", "work-pool", "work-pools", "work-queue", "work-queues",
}  # fmt: skip
# Commands that open a server to those who reach its address.
_SERVING = (["server", "start"], ["dev", "start"], ["dev", "api"])


class Command(NamedTuple):
    """A command line of `prefect`: the profile that it names, and the rest without options that may stand anywhere."""

    profile: str | None
    rest: list[str]

    @classmethod
    def of(cls, arguments: Sequence[str]) -> Command:
        """As `prefect.cli._app` reads it: `--profile NAME` and `--[no-]prompt` anywhere, `-p NAME` before the command."""
        profile: str | None = None
        rest: list[str] = []
        waiting = iter(arguments)
        for word in waiting:
            if word == "--profile" or (word == "-p" and all(before.startswith("-") for before in rest)):
                profile = next(waiting, None)
            elif word.startswith("--profile="):
                profile = word.removeprefix("--profile=")
            elif word.partition("=")[0] not in {"--prompt", "--no-prompt"}:
                rest.append(word)
        return cls(profile, rest)

    @property
    def words(self) -> list[str]:
        """What is no option, the command first."""
        return [word for word in self.rest if not word.startswith("-")]


@register_hook
def setup_environment(*, ctx: HookContext) -> SetupResult | None:
    """Prefect's hook, called while `prefect` is imported. Exits with 1 if the command cannot work without a server."""
    arguments = sys.argv[1:] if os.path.basename(sys.argv[0]) in {"prefect", "-m"} else []
    try:
        named = os.environ.get("PREFECT_API_URL") or local_api_url() or ctx.api_url
        api_url = None if named is None else server_address(named)
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
    words = Command.of(arguments).words
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
    command = Command.of(arguments)
    if command.words[:2] not in _SERVING:
        return
    configured_host, has_password = _configured_server(command.profile)
    hosts = [word.removeprefix("--host=") for word in command.rest if word.startswith("--host=")]
    hosts += [following for word, following in pairwise(command.rest) if word == "--host"]
    public = [host for host in hosts or [configured_host] if not is_loopback(host)]
    if public and not has_password:
        raise StackError(
            f"a Prefect server on {public[-1]} without a password lets everybody run code here",
            "set PREFECT_SERVER_API_AUTH_STRING to user:password (docs/security.md)",
        )


def _configured_server(profile: str | None) -> tuple[str, bool]:
    """The host of Prefect's settings, and whether they hold a password. A profile that a command names wins over the
    environment, the active one does not: so does Prefect."""
    from prefect.context import get_settings_context, use_profile

    context = get_settings_context()
    with suppress(KeyError):  # there is no such profile: Prefect says so
        if profile is not None and profile != context.profile.name:
            with use_profile(profile, override_environment_variables=True) as named:
                context = named
    server = context.settings.server.api
    return server.host, bool(server.auth_string and server.auth_string.get_secret_value())
