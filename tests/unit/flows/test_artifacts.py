"""What the UI shows of a run: names of files and checkpoints are shown as they are, whatever they hold."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from markdown_it import MarkdownIt
from prefect.artifacts import LinkArtifact

from flows import steps
from flows.markdown import link_target, plain
from piti import storage

HOSTILE = [
    "a|<img src=x onerror=alert(1)>.pt", "a](javascript:alert(1)).pt", "![x](https://evil/x.png)", "`a` *b* _c_ ~~d~~ **e**",
    "a\n\n# b\n| c |", "<script>alert(1)</script>", "&lt;b&gt; &amp;", "a\\|b\\", "</td></tr></table><h1>x", "https://evil.example/x",
    "[x]: y", "{{x}} $x$", "ünïcode — 雪.pt", "step-00000010",
]  # fmt: skip


class Page(HTMLParser):
    """The tags and the text of each cell and paragraph."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.texts: list[str] = []
        self.addresses: list[str] = []
        self.feed(html)
        self.texts = [text.strip() for text in self.texts if text.strip()]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in {"href", "src"}]
        self.texts.append("")
        self.texts += [value or "" for name, value in attrs if name == "alt"]

    def handle_data(self, data: str) -> None:
        self.texts[-1:] = ["".join(self.texts[-1:]) + data]


def shown(markdown: str) -> Page:
    """As CommonMark with tables and raw HTML, which renders all that any of Prefect's pages may."""
    renderer = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    renderer.validateLink = lambda address: True  # type: ignore[method-assign]
    return Page(renderer.render(markdown))


@pytest.fixture
def artifacts(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for kind, name in (("markdown", "create_markdown_artifact"), ("link", "create_link_artifact")):
        monkeypatch.setattr(steps, name, lambda text, kind=kind, **more: made.append({kind: text, **more}))
    monkeypatch.setattr(steps, "get_run_logger", lambda: SimpleNamespace(info=lambda *_: None))
    return made


@pytest.mark.parametrize("name", HOSTILE)
def test_a_report_shows_names_as_they_are(name: str, artifacts: list[dict[str, Any]], tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "grid.png"), b"png")
    network = {"name": name, "resize": name, "comparable": True, "weights_sha256": "0123456789abcdef"}
    metric = {"value": 1.0, "low": None, "high": None, "network": network, "note": name}
    addresses = {"report": f"s3://bucket/{name}/report.html", "leaderboard": "s3://bucket/index.html"}
    result = {"metrics": {"fid": metric}, "checkpoint": name, **addresses}
    step: Any = SimpleNamespace(require_result=lambda: result, output=str(tmp_path))
    steps._show_report(step, "demo", name)
    report, link = artifacts
    one_line = " ".join(name.split())
    page = shown(report["markdown"])
    assert page.tags == {"h1", "table", "thead", "tbody", "tr", "th", "td", "p", "strong", "img", "a"}
    board = (tmp_path.parent / "index.html").as_uri()
    assert [address.partition("cG5n")[0] for address in page.addresses] == ["data:image/png;base64,", board]
    assert f"Evaluation of {one_line}" in page.texts
    cells = page.texts
    assert [f"{one_line}, {one_line}, 0123456789ab", "yes", one_line] == cells[-7:-4], cells
    assert cells[-2] == " ".join(f"Whole report: s3://bucket/{name}/report.html".split())
    described = shown(report["description"])
    assert described.tags == {"p"}
    assert described.texts == [f"evaluation of {one_line}"]
    there = shown(LinkArtifact(link=link["link"], link_text=link["link_text"])._format())
    assert there.tags == {"p", "a"}
    assert there.texts == [f"report of {one_line}"]
    assert there.addresses == [(tmp_path / "report.html").as_uri()]
    assert re.fullmatch("[a-z0-9-]+", report["key"])


def test_a_target_does_not_end_its_link() -> None:
    uri = "s3://bucket/a) <b> [c](javascript:x)/report.html"
    page = shown(LinkArtifact(link=link_target(uri), link_text=plain("x"))._format())
    assert page.tags == {"p", "a"}
    assert len(page.addresses) == 1
    assert page.addresses[0].startswith("s3://bucket/a")
    assert page.addresses[0].endswith("/report.html")
    assert link_target("http://127.0.0.1:1/x/a%20b?c=d#e") == "http://127.0.0.1:1/x/a%20b?c=d#e"


def test_pictures_of_a_training_have_a_readable_name(artifacts: list[dict[str, Any]], tmp_path: Path) -> None:
    """And a history of their own: another training of the same config has another fingerprint."""
    storage.write_bytes(str(tmp_path / "step-00000020.png"), b"png")
    step: Any = SimpleNamespace(name="stage2", fingerprint="0123456789abcdef")
    steps._show_samples(step, "demo-sketch", str(tmp_path / "step-00000020.png"))
    (made,) = artifacts
    assert made["key"] == "demo-sketch-stage2-samples-0123456789ab"
    assert made["description"] == "pictures that stage2 of demo-sketch draws while it trains"
    assert "stage2 of demo-sketch, step-00000020" in shown(made["markdown"]).texts
