"""Texts of others, file names say, inside the Markdown of artifacts."""

from __future__ import annotations

import re
from urllib.parse import quote

_MEANS_SOMETHING = re.compile(r"[^\w ./,%-]|_")


def plain(text: str) -> str:
    """`text` in one line, shown as it is: what Markdown or HTML could take for its own becomes an entity."""
    return _MEANS_SOMETHING.sub(lambda found: f"&#{ord(found[0])};", " ".join(text.split()))


def link_target(address: str) -> str:
    """An address as the target of a Markdown link: without what would end the link."""
    return quote(address, safe=":/?#@!$&'*+,;=%~")
