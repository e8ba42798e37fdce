"""Many evaluations beside each other: one page to sort and compare, and the same as Markdown, LaTeX and a table of numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from eval.pages import environment, format_interval, format_number, measured_with
from eval.pictures import Metric

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """A figure measured in one way: figures of one column compare with each other where they are of one group.

    Args:
        name: its own, which says through which network, and its resizing where that alone tells columns apart.
        heading, unit, better, meaning: as people read them; `better` is "lower" or "higher".
    """

    name: str
    heading: str
    unit: str
    better: str
    meaning: str


@dataclass(frozen=True)
class Entry:
    """An evaluation. Texts are plain, whoever wrote them.

    Args:
        title: what was evaluated, in a few words.
        folder: of its report.html and grid.png, relative to the page.
        facts: (what, value) that tell evaluations apart: checkpoint, sampler, number of pictures ...
        metrics: by the column's name.
        group: names the pictures that it was measured on; figures of other pictures do not compare.
    """

    title: str
    folder: str
    facts: Mapping[str, str]
    metrics: Mapping[str, Metric]
    group: str = ""

    def link(self, file: str) -> str:
        """Address of one of its files, relative to the page; never one with a scheme of its own."""
        return link_to(self.folder, file)


def link_to(folder: str, file: str) -> str:
    """Address of a file relative to the page; never one with a scheme of its own."""
    return f"./{quote(folder, errors='surrogateescape')}/{file}"


@dataclass(frozen=True)
class Leaderboard:
    """All that the page shows. `unreadable`: sentences on reports that are not listed, and why. `studies`: (name, folder) of
    each study's page.
    """

    title: str
    columns: Sequence[Column]
    entries: Sequence[Entry]
    unreadable: Sequence[str] = ()
    studies: Sequence[tuple[str, str]] = ()

    def is_best(self, entry: Entry, column: Column) -> bool:
        """Whether its value is the best of its group in a column, and not the only one."""
        rivals = [other.metrics for other in self.entries if other.group == entry.group]
        values = [metrics[column.name].value for metrics in rivals if column.name in metrics]
        if column.name not in entry.metrics or len(values) < 2:
            return False
        return entry.metrics[column.name].value == (min(values) if column.better == "lower" else max(values))

    def measured_with(self, column: Column) -> str:
        """Networks, hashes, resizing and notes of a column's figures, in words."""
        return measured_with(entry.metrics[column.name] for entry in self.entries if column.name in entry.metrics)

    @property
    def fact_names(self) -> list[str]:
        """Every fact that some entry has, in the order they are first met."""
        return list(dict.fromkeys(name for entry in self.entries for name in entry.facts))

    @property
    def telling_facts(self) -> list[str]:
        """Names of the facts that tell entries apart."""
        return [name for name in self.fact_names if len({entry.facts.get(name) for entry in self.entries}) > 1]

    @property
    def common_facts(self) -> list[tuple[str, str]]:
        """What is the same for all entries."""
        telling = self.telling_facts
        return [(name, self.entries[0].facts[name]) for name in self.fact_names if name not in telling]


def render_leaderboard(board: Leaderboard) -> str:
    """One HTML page that loads nothing but the grids of the two reports that are compared."""
    studies = [(name, link_to(folder, "study.html")) for name, folder in board.studies]
    return environment().get_template("leaderboard.html.jinja").render(board=board, studies=studies)


def leaderboard_markdown(board: Leaderboard) -> str:
    """The table with intervals, and below it what each figure was measured with."""
    telling = board.telling_facts
    heads = ["evaluation", *map(_markdown, telling), *(_heading(column) for column in board.columns)]
    lines = [f"# {_markdown(board.title)}", "", _row(heads), _row("---" for _ in heads)]
    for entry in board.entries:
        cells = [f"[{_markdown(entry.title)}]({entry.link('report.html')})"]
        cells += [_markdown(entry.facts.get(name, "")) for name in telling]
        cells += [_cell(entry.metrics.get(column.name)) for column in board.columns]
        lines.append(_row(cells))
    lines += ["", *(f"- {_heading(column)}: {_markdown(board.measured_with(column))}." for column in board.columns)]
    lines += [f"- {_markdown(name)}: {_markdown(value)}" for name, value in board.common_facts]
    lines += [f"- Not listed: {_markdown(problem)}" for problem in board.unreadable]
    return "\n".join(lines) + "\n"


def leaderboard_latex(board: Leaderboard) -> str:
    """A `tabular` for `booktabs`; what each figure was measured with is in comments above it."""
    comments = [f"% {column.name}: {_one_line(board.measured_with(column))}" for column in board.columns]
    heads = ["evaluation", *(f"{_latex(column.heading)} {_arrow(column)}" for column in board.columns)]
    rows = [
        [_latex(entry.title), *(_latex_cell(board, column, entry) for column in board.columns)]
        for entry in board.entries
    ]
    table = [" & ".join(heads) + r" \\", r"\midrule", *(" & ".join(row) + r" \\" for row in rows)]
    begin = rf"\begin{{tabular}}{{l{'r' * len(board.columns)}}}"
    return "\n".join([*comments, begin, r"\toprule", *table, r"\bottomrule", r"\end{tabular}"]) + "\n"


def leaderboard_rows(board: Leaderboard) -> Iterator[dict[str, Any]]:
    """A row for each evaluation and figure, with all that the figure carries; for a table of numbers."""
    headings = {column.name: column for column in board.columns}
    for entry in board.entries:
        for name, metric in entry.metrics.items():
            column, network = headings[name], metric.network
            yield {
                "evaluation": entry.title, "report": entry.link("report.html"), **dict.fromkeys(board.fact_names), **entry.facts,
                "figure": name, "heading": column.heading, "unit": column.unit, "better": column.better,
                "value": metric.value, "low": metric.low, "high": metric.high, "standard_error": metric.standard_error,
                "note": metric.note, "network": network and network.name,
                "weights_sha256": network and network.weights_sha256, "resize": network and network.resize,
                "comparable": network and network.comparable,
            }  # fmt: skip


def _arrow(column: Column) -> str:
    return r"$\downarrow$" if column.better == "lower" else r"$\uparrow$"


def _heading(column: Column) -> str:
    unit = f", {column.unit}" if column.unit else ""
    return f"{_markdown(column.heading)} `{column.name}`{unit} ({column.better} is better)"


def _cell(metric: Metric | None) -> str:
    return "" if metric is None else f"{format_number(metric.value)} ({format_interval(metric)})"


def _latex_cell(board: Leaderboard, column: Column, entry: Entry) -> str:
    if column.name not in entry.metrics:
        return "--"
    value = format_number(entry.metrics[column.name].value)
    return rf"\textbf{{{value}}}" if board.is_best(entry, column) else value


def _row(cells: Sequence[str] | Iterator[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _one_line(text: str) -> str:
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def _markdown(text: str) -> str:
    """Text that no reader of Markdown takes for anything else."""
    escaped = _one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{char}" if char in r"\`*_[]()|#!" else char for char in escaped)


def _latex(text: str) -> str:
    return "".join(_LATEX.get(char, char) for char in _one_line(text))
