"""Pages in headless Chromium: what a browser finds in them."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from tests.browser import opened

MOST_PHONE_PIXELS = 10_000  # of height, that a page has on a phone until something in it is unfolded

# The page as it opens; then everything in it, unfolded.
LOOK = """
(async () => {
  const acted = (() => {ACT})();
  const height = document.documentElement.scrollHeight;
  for (const folded of document.querySelectorAll("details")) folded.open = true;
  await Promise.all([...document.images].map(one => one.decode().catch(() => null)));
  const found = window.axe && await axe.run();
  return {
    acted, height,
    width: innerWidth,
    dark: matchMedia("(prefers-color-scheme: dark)").matches,
    needs: document.documentElement.scrollWidth,
    hidden: [...document.images].filter(one => one.getBoundingClientRect().width < 60).length,
    broken: [...document.images].filter(one => one.naturalWidth === 0).length,
    ran: String(window.ran),
    violations: found && found.violations.map(one => [one.impact, one.id, one.nodes[0].html]),
  };
})()
"""


def look_at(
    page: str, width: int, folder: Path, dark: bool = False, act: str = "", axe: bool = False
) -> dict[str, Any]:
    """What a browser of `width` pixels finds in a page in `folder`, after the script `act`, whose result is `acted`.

    `axe`: with what axe-core says of the page unfolded (`violations`), which takes seconds.
    """
    path = folder / "page.html"
    path.write_text(page, encoding="utf-8")
    with opened("about:blank") as tab:
        tab.tell("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        tab.tell("Emulation.setEmulatedMedia", features=scheme)
        tab.go(path.as_uri())
        if axe:
            tab.evaluate((files("axe_core_python") / "axe.min.js").read_text(encoding="utf-8") + "; 0")
        result: dict[str, Any] = tab.evaluate(LOOK.replace("{ACT}", f"{{{act}}}"))
        outside = [one for one in tab.requests if not one.startswith(("file:", "data:", "about:"))]
        return result | {"outside": outside, "console": tab.console}
