"""The report in headless Chromium: accessible, nothing off-screen on a phone, and nothing from data runs."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from eval.report import render_report
from tests.unit.eval.test_report import HOSTILE, report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")

LOOK = """
axe.run().then(found => parent.postMessage(JSON.stringify({
  width: innerWidth,
  dark: matchMedia("(prefers-color-scheme: dark)").matches,
  needs: document.documentElement.scrollWidth,
  hidden: [...document.querySelectorAll("img")].filter(one => one.getBoundingClientRect().width < 60).length,
  broken: [...document.images].filter(one => one.naturalWidth === 0).length,
  ran: String(window.ran),
  violations: found.violations.map(one => [one.impact, one.id, one.nodes[0].html]),
}), "*"));
"""
# A frame may be as narrow as a phone; a window may not.
FRAME = """<!doctype html><iframe src="page.html" style="border: 0; width: {width}px; height: 900px"></iframe>
<script>onmessage = event => document.body.setAttribute("data-found", event.data)</script>
"""


def look_at(page: str, width: int, folder: Path, *options: str) -> dict[str, Any]:
    """What a browser of `width` pixels finds in a page."""
    axe = (files("axe_core_python") / "axe.min.js").read_text(encoding="utf-8")
    looked_at = page.replace("</body>", f"<script>{axe}</script><script>{LOOK}</script></body>")
    (folder / "page.html").write_text(looked_at, encoding="utf-8")
    frame = folder / "frame.html"
    frame.write_text(FRAME.format(width=width), encoding="utf-8")
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}", *options,
        "--window-size=1400,900", "--virtual-time-budget=20000", "--dump-dom", frame.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'data-found="([^"]*)"', done.stdout)
    assert found, done.stderr[-2000:]
    result: dict[str, Any] = json.loads(html.unescape(found[1]))
    return result


@pytest.mark.parametrize(("width", "dark"), [(360, True), (1280, False)])
def test_nothing_is_off_screen_and_axe_finds_nothing(width: int, dark: bool, tmp_path: Path) -> None:
    options = ["--blink-settings=preferredColorScheme=0"] if dark else []
    found = look_at(render_report(report()), width, tmp_path, *options)
    assert (found["width"], found["dark"]) == (width, dark)
    assert found["needs"] <= width
    assert found["hidden"] == found["broken"] == 0
    assert found["violations"] == []


def test_names_from_data_run_nothing(tmp_path: Path) -> None:
    payload = HOSTILE.replace("alert(1)", "window.ran=1").replace("alert(2)", "window.ran=2")
    page = render_report(report(title=payload, facts=[(payload, payload)], seeds=[(payload, 1)], command=payload))
    assert look_at(page, 1280, tmp_path)["ran"] == "undefined"
