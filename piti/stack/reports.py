"""Which folders of reports the local stack serves, and where a browser finds what is in them.

A browser follows no link from the Prefect UI to a file, and opens no object store. A folder of reports is served once
a run made something in it: `<PITI_HOME>/reports/<id>` holds its URI, and its pages lie at `/<id>/...` of the server
(piti/stack/report_server.py). Nothing else is served.
"""

from __future__ import annotations

from urllib.parse import quote

from piti import storage
from piti.settings import settings
from piti.stack.http import request_json

HEALTH = "/health"


def link(folder: str, path: str) -> str:
    """Where a browser finds the file `path` of the folder `folder`, which is served from now on.

    On a stack that `piti up` started, an address of its server; elsewhere the file's own.
    """
    known = settings()
    if known.reports_url is None:
        return storage.as_link(storage.join(folder, path))
    folder = storage.absolute(folder)
    name = storage.sha256_bytes(folder.encode())[:12]
    storage.write_bytes(str(known.home / "reports" / name), folder.encode(), private=True)
    return f"{known.reports_url}/{name}/{quote(path)}"


def folders() -> dict[str, str]:
    """The folders that are served, by their names in addresses."""
    place = str(settings().home / "reports")
    return {name: storage.read_text(storage.join(place, name)) for name in storage.list_names(place)}


def reports_answer(url: str) -> bool:
    """Whether the server of the reports is there."""
    try:
        return request_json(url + HEALTH) is True
    except OSError:
        return False
