"""The server of reports, asked as a browser does: what it shows, to whom, and what it does not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import fsspec
import httpx
import pytest

from piti.stack.report_server import Handler
from piti.stack.reports import link, reports_answer

USER, WORD = "piti", "wörd"


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    handler = type("H", (Handler,), {"password": f"{USER}:{WORD}"})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("PITI_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("PITI_REPORTS_URL", url)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield url
        server.shutdown()
        thread.join()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One report, and a secret beside the folder."""
    report = tmp_path / "my root" / "reports" / "ab12"
    report.mkdir(parents=True)
    (report / "report.html").write_text("<!doctype html>ö")
    (report / "config.yaml").write_text("seed: 1")
    (report / ".hidden").write_text("x")
    (report.parent.parent / "secret").write_text("secret")
    (report / "way out").symlink_to(report.parent.parent / "secret")
    return report.parent


def get(url: str, password: str = WORD) -> httpx.Response:
    return httpx.get(url, auth=(USER, password), trust_env=False)


def test_a_report_is_shown_to_whoever_has_the_password(address: str, folder: Path) -> None:
    url = link(str(folder), "ab12/report.html")
    assert url.startswith(address + "/")
    answer = get(url)
    assert (answer.status_code, answer.text) == (200, "<!doctype html>ö")
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert get(url.replace("report.html", "config.yaml")).headers["Content-Type"].startswith("text/plain")
    for refused in (get(url, "wrong"), httpx.get(url, trust_env=False)):
        assert refused.status_code == 401
        assert refused.headers["WWW-Authenticate"].startswith("Basic"), "a browser asks for it"
    assert reports_answer(address)
    assert httpx.head(url, auth=(USER, WORD), trust_env=False).content == b""


def test_front_page_and_folder_lead_to_the_report(address: str, folder: Path) -> None:
    name = link(str(folder), "ab12/report.html").removeprefix(address + "/").split("/")[0]
    assert f'href="{name}/"' in get(f"{address}/").text
    assert 'href="ab12/report.html"' in get(f"{address}/{name}/").text
    (folder / "index.html").write_text("leaderboard")
    assert get(f"{address}/{name}/").text == "leaderboard"


@pytest.mark.parametrize(
    "path", ["../secret", "%2e%2e/secret", "ab12/..%2f..%2fsecret", "ab12/way out", "ab12/.hidden", "ab12", "nothing", "a%00b"]
)  # fmt: skip
def test_nothing_beside_the_folder_is_shown(address: str, folder: Path, path: str) -> None:
    base = link(str(folder), "")
    assert get(base + quote(path, safe="/%")).status_code == 404


def test_a_folder_in_which_no_run_reported_is_not_shown(address: str, folder: Path) -> None:
    for path in (folder, "etc/passwd", "000000000000/ab12/report.html"):
        assert get(f"{address}/{quote(str(path))}").status_code == 404


def test_reports_in_an_object_store_are_shown(address: str) -> None:
    with fsspec.open("memory://bucket/reports/x/report.html", "wb") as stream:
        stream.write(b"far away")
    assert get(link("memory://bucket/reports", "x/report.html")).content == b"far away"


def test_without_a_server_a_link_leads_to_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PITI_REPORTS_URL", raising=False)
    assert link("/data/reports", "a/report.html") == "file:///data/reports/a/report.html"
