"""A headless Chromium that tests drive by its DevTools protocol: real clicks and strokes, real requests."""

from __future__ import annotations

import atexit
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from websockets.sync.client import ClientConnection, connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
START_SECONDS = 60.0


class Protocol:
    """Commands for a browser or a tab. `requests`: every address that it asked for; `console`: what it complained of."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self.requests: list[str] = []
        self.console: list[str] = []

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


class Page(Protocol):
    """One tab."""

    def __init__(self, socket: ClientConnection) -> None:
        super().__init__(socket)
        for domain in ("Network", "Runtime", "Log"):
            self.tell(f"{domain}.enable")

    def go(self, address: str) -> None:
        """Open a page and wait until it is there."""
        self.tell("Page.navigate", url=address)
        self.wait_for(f"document.readyState === 'complete' && location.href === new URL({address!r}).href")

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


class Chromium:
    """One browser for all tests of this process, which ends with it."""

    def __init__(self) -> None:
        stack = ExitStack()
        atexit.register(stack.close)
        profile = stack.enter_context(TemporaryDirectory(ignore_cleanup_errors=True))
        command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", f"--user-data-dir={profile}"]  # fmt: skip
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        stack.callback(process.wait, 30)
        stack.callback(process.terminate)
        self._port, path = _debugging_address(Path(profile))
        socket = connect(f"ws://127.0.0.1:{self._port}{path}", proxy=None, ping_interval=None)
        self._tell = Protocol(stack.enter_context(socket)).tell

    @contextmanager
    def tab(self, address: str) -> Iterator[Page]:
        """A tab with a page, whose cookies and storage no other tab shares."""
        context = self._tell("Target.createBrowserContext")
        try:
            size = {"width": 1280, "height": 900}
            target = self._tell("Target.createTarget", url="about:blank", **context, **size)["targetId"]
            with connect(f"ws://127.0.0.1:{self._port}/devtools/page/{target}", max_size=None, proxy=None) as socket:
                page = Page(socket)
                page.go(address)
                yield page
        finally:
            self._tell("Target.disposeBrowserContext", **context)


_chromium = cache(Chromium)


def opened(address: str) -> AbstractContextManager[Page]:
    """A tab with a page."""
    return _chromium().tab(address)


def _debugging_address(profile: Path) -> tuple[int, str]:
    """Port and path of the protocol of a Chromium that starts."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            port, path = (profile / "DevToolsActivePort").read_text().splitlines()
            return int(port), path
        except (FileNotFoundError, ValueError):
            time.sleep(0.1)
    raise AssertionError("Chromium did not start")
