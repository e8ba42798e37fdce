"""Pages in headless Chromium: what a browser finds in them."""

from __future__ import annotations

import html
import json
import re
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import Any

from tests.browser import CHROMIUM

LOOK = """
const acted = (() => {ACT})();
axe.run().then(found => parent.postMessage(JSON.stringify({
  acted,
  width: innerWidth,
  dark: matchMedia("(prefers-color-scheme: dark)").matches,
  needs: document.documentElement.scrollWidth,
  height: document.documentElement.scrollHeight,
  hidden: [...document.querySelectorAll("img")].filter(one => one.getBoundingClientRect().width < 60).length,
  broken: [...document.images].filter(one => one.naturalWidth === 0).length,
  outside: performance.getEntriesByType("resource").map(one => one.name).filter(one => !/^(file|data):/.test(one)),
  ran: String(window.ran),
  violations: found.violations.map(one => [one.impact, one.id, one.nodes[0].html]),
}), "*"));
"""
# A frame may be as narrow as a phone; a window may not.
FRAME = """<!doctype html><iframe src="page.html" style="border: 0; width: {width}px; height: 900px"></iframe>
<script>onmessage = event => document.body.setAttribute("data-found", event.data)</script>
"""


def look_at(page: str, width: int, folder: Path, *options: str, act: str = "") -> dict[str, Any]:
    """What a browser of `width` pixels finds in a page in `folder`, after the script `act`, whose result is `acted`."""
    axe = (files("axe_core_python") / "axe.min.js").read_text(encoding="utf-8")
    script = LOOK.replace("{ACT}", f"{{{act}}}")
    looked_at = page.replace("</body>", f"<script>{axe}</script><script>{script}</script></body>")
    (folder / "page.html").write_text(looked_at, encoding="utf-8")
    frame = folder / "frame.html"
    frame.write_text(FRAME.format(width=width), encoding="utf-8")
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}", *options,
        "--enable-logging=stderr", "--window-size=1400,900", "--virtual-time-budget=20000", "--dump-dom", frame.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'data-found="([^"]*)"', done.stdout)
    assert found, done.stderr[-2000:]
    result: dict[str, Any] = json.loads(html.unescape(found[1]))
    return result | {"console": [line for line in done.stderr.splitlines() if "CONSOLE" in line]}
