"""The reports over HTTP, on loopback, for whoever knows the stack's password: `python -m piti.stack.report_server PORT`."""

from __future__ import annotations

import base64
import hmac
import html
import mimetypes
import shutil
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, unquote, urlsplit

from piti import storage
from piti.errors import PitiError, StackError, first_line
from piti.settings import settings
from piti.stack.ports import HOST
from piti.stack.reports import HEALTH, folders
from piti.stack.secret_files import read_secret

_PAGE = "index.html"
_TEXT = (".yaml", ".csv", ".md", ".jsonl")  # shown rather than downloaded


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD. Subclasses know the `password` (`user:password`)."""

    password = ""
    server_version = "piti"
    sys_version = ""

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path == HEALTH:
            self._answer(HTTPStatus.OK, "application/json", b"true")
        elif not self._is_allowed():
            self._answer(HTTPStatus.UNAUTHORIZED, "text/plain", b"`piti open` shows user and password\n")
        else:
            self._serve([unquote(part) for part in path.split("/")[1:]])

    do_HEAD = do_GET  # noqa: N815 - http.server's name

    def _is_allowed(self) -> bool:
        expected = b"Basic " + base64.b64encode(self.password.encode())
        return hmac.compare_digest(self.headers.get("Authorization", "").encode(), expected)

    def _serve(self, parts: list[str]) -> None:
        known = folders()
        if parts == [""]:
            self._list("Folders of reports", {f"{name}/": folder for name, folder in known.items()})
            return
        name, *path = parts
        if name not in known or any(part.startswith(".") or "/" in part or "\0" in part for part in path):
            self._missing()
            return
        try:
            self._serve_file(known[name], path)
        except FileNotFoundError:
            self._missing()
        except Exception as error:
            if not isinstance(error, OSError | PitiError) and not storage.is_client_error(error):
                raise
            self._answer(HTTPStatus.BAD_GATEWAY, "text/plain", f"{first_line(error)}\n".encode())

    def _serve_file(self, folder: str, path: list[str]) -> None:
        """Raises FileNotFoundError where there is none, or a link leads out of the folder."""
        if path in ([], [""]):
            if not storage.exists(storage.join(folder, _PAGE)):
                names = [name for name in storage.list_names(folder) if _has_report(folder, name)]
                self._list(folder, {f"{name}/report.html": name for name in names})
                return
            path = [_PAGE]
        uri = storage.join(folder, *path)
        if storage.is_local(uri):
            file = storage.local_path(uri).resolve()
            if not file.is_relative_to(storage.local_path(folder).resolve()) or not file.is_file():
                raise FileNotFoundError(uri)
        kind = mimetypes.guess_type(uri)[0] or "application/octet-stream"
        with storage.open_read(uri) as stream:
            self._head(HTTPStatus.OK, "text/plain" if uri.endswith(_TEXT) else kind)
            if self.command == "GET":
                shutil.copyfileobj(stream, self.wfile)

    def _list(self, title: str, links: dict[str, str]) -> None:
        entries = "".join(f'<li><a href="{quote(to)}">{html.escape(text)}</a></li>\n' for to, text in links.items())
        page = f"<!doctype html><title>{html.escape(title)}</title><h1>{html.escape(title)}</h1><ul>{entries}</ul>"
        self._answer(HTTPStatus.OK, "text/html", page.encode())

    def _missing(self) -> None:
        self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"no such report\n")

    def _answer(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self._head(status, kind)
        if self.command == "GET":
            self.wfile.write(content)

    def _head(self, status: HTTPStatus, kind: str) -> None:
        self.send_response(status)
        is_text = kind.startswith("text/")
        self.send_header("Content-Type", f"{kind}; charset=utf-8" if is_text else kind)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-cache")
        if status == HTTPStatus.UNAUTHORIZED:
            self.send_header("WWW-Authenticate", 'Basic realm="piti", charset="UTF-8"')
        self.end_headers()

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Nothing: the log is for what goes wrong."""


def _has_report(folder: str, name: str) -> bool:
    return storage.exists(storage.join(folder, name, "report.html"))


def main() -> None:
    """Serve until ended. Raises StackError without a password."""
    password = read_secret(settings().auth_file)
    if password is None:
        raise StackError(f"{settings().auth_file} is missing or empty", "start the stack with `piti up`")
    handler = type("Handler", (Handler,), {"password": password})
    with ThreadingHTTPServer((HOST, int(sys.argv[1])), handler) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
