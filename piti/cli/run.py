"""`piti run`: start a deployment and wait for it."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    app.command()(run)


def run() -> None:
    """Start a deployment, follow it, and exit with 1 if it does not complete."""
