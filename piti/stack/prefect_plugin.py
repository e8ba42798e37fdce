"""Makes the `prefect` command at home in the checkout (prefect.toml switches this plugin on there).

It points Prefect at the local stack on whatever ports that runs, and where no server answers it says so in one
line instead of a traceback. Loaded with every `import prefect`, so it imports little itself.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from urllib.parse import urlsplit

from prefect.plugins import HookContext, SetupResult, register_hook

from piti.settings import settings

# Commands that ask the server for something; others (server, config, version...) work without one.
_ASKING_COMMANDS = {
    "artifact", "artifacts", "deployment", "deployments", "flow-run", "flow-runs", "task-run", "task-runs",
}  # fmt: skip


@register_hook
def setup_environment(*, ctx: HookContext) -> SetupResult | None:
    """Prefect's hook, called while `prefect` is imported. Exits with 1 if the command cannot work without a server."""
    environment = {"DO_NOT_TRACK": "1"}
    api_url = os.environ.get("PREFECT_API_URL") or local_api_url()
    if api_url is not None:
        environment["PREFECT_API_URL"] = api_url
    _require_server(api_url or ctx.api_url, sys.argv[1:])
    return SetupResult(env=environment, note="the local stack's server")


def local_api_url() -> str | None:
    """Where the stack that `piti up` started has its server; None if none was started."""
    try:
        ports = json.loads((settings().home / "stack.json").read_text(encoding="utf-8"))["ports"]
    except FileNotFoundError:
        return None
    return f"http://127.0.0.1:{ports['prefect']}/api"


def _require_server(api_url: str | None, arguments: Sequence[str]) -> None:
    program = os.path.basename(sys.argv[0])
    asks = arguments[:1] and arguments[0] in _ASKING_COMMANDS and not {"--help", "-h"} & set(arguments)
    if program not in {"prefect", "-m"} or not asks or api_url is None:
        return
    if urlsplit(api_url).hostname not in {"127.0.0.1", "localhost"}:
        return  # a server of some team, which may want a login before it answers anything
    from piti.stack.http import prefect_answers

    if not prefect_answers(api_url):
        print(f"piti: no Prefect server answers at {api_url} - start one with `piti up`", file=sys.stderr)
        raise SystemExit(1)
