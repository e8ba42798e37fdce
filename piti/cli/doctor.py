"""`piti doctor`: is this machine fit to run the pipeline?"""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    app.command()(doctor)


def doctor() -> None:
    """Check Python, disk, ports, servers and GPU. Exits with 1 if something must be put right."""
