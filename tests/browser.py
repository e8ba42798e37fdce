"""A headless Chromium that tests drive by its DevTools protocol: real clicks and strokes, real requests, screenshots."""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
START_SECONDS = 60.0


class Page:
    """One tab. `requests`: every address that it asked for; `console`: what it complained of."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self.requests: list[str] = []
        self.console: list[str] = []
        for domain in ("Network", "Runtime", "Log"):
            self.tell(f"{domain}.enable")

    def go(self, address: str) -> None:
        """Open a page and wait until it is there."""
        self.tell("Page.navigate", url=address)
        self.wait_for(f"document.readyState === 'complete' && location.href === new URL({address!r}).href")

    def tell(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the protocol; its result. Raises RuntimeError where Chromium refuses it."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            told = json.loads(self._socket.recv(timeout=120))
            if told.get("method") == "Network.requestWillBeSent":
                self.requests.append(told["params"]["request"]["url"])
            if told.get("method") in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
                self.console.append(json.dumps(told["params"]))
            if told.get("id") == number:
                if "error" in told:
                    raise RuntimeError(f"{method}: {told['error']}")
                result: dict[str, Any] = told["result"]
                return result

    def evaluate(self, script: str) -> Any:
        """The value of an expression; a promise is waited for."""
        told = self.tell("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in told:
            raise RuntimeError(str(told["exceptionDetails"]))
        return told["result"].get("value")

    def wait_for(self, script: str, timeout_seconds: float = 60.0) -> None:
        """Until an expression is true."""
        deadline = time.monotonic() + timeout_seconds
        while not self.evaluate(script):
            assert time.monotonic() < deadline, f"never true: {script}"
            time.sleep(0.1)

    def stroke(self, selector: str, *shares: tuple[float, float]) -> None:
        """Press the mouse at the first of these places (shares of the element's width and height), move, let go."""
        corner = self.evaluate(
            f"(() => {{ const box = document.querySelector({selector!r}).getBoundingClientRect();"
            " return [box.left, box.top, box.width, box.height]; })()"
        )
        places = [(corner[0] + x * corner[2], corner[1] + y * corner[3]) for x, y in shares]
        kinds = ["mousePressed", *["mouseMoved"] * (len(places) - 1), "mouseReleased"]
        for kind, (x, y) in zip(kinds, [*places, places[-1]], strict=True):
            self.tell("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def screenshot(self, path: Path) -> None:
        """The visible part, as PNG."""
        path.write_bytes(base64.b64decode(self.tell("Page.captureScreenshot")["data"]))


@contextmanager
def opened(address: str, profile: Path, width: int = 1280, height: int = 900) -> Iterator[Page]:
    """A tab with a page, in a Chromium that ends with the block. `profile`: a folder that it may fill."""
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", f"--window-size={width},{height}",
        f"--user-data-dir={profile}", "about:blank",
    ]  # fmt: skip
    (profile / "DevToolsActivePort").unlink(missing_ok=True)  # of an earlier Chromium
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as chromium:
        try:
            port = _debugging_port(profile)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=30) as answer:
                tabs = json.load(answer)
            target = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
            with connect(target, max_size=None, proxy=None) as socket:
                page = Page(socket)
                page.go(address)
                yield page
        finally:
            chromium.terminate()


def _debugging_port(profile: Path) -> int:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            return int((profile / "DevToolsActivePort").read_text().splitlines()[0])
        except (FileNotFoundError, IndexError):
            time.sleep(0.1)
    raise AssertionError("Chromium did not start")
