"""The command `piti` in this process."""

from __future__ import annotations

from typing import Any

from typer.testing import CliRunner

from piti.cli import app


def piti(*arguments: str) -> Any:
    """Its exit code and output."""
    return CliRunner().invoke(app, list(arguments))


def fails_in_one_line(answer: Any) -> str:
    """The one line that a refused command says."""
    assert answer.exit_code == 1, answer.output
    (line,) = answer.stderr.splitlines()
    assert line.startswith("piti: ")
    return line
