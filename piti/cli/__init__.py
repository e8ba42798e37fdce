"""The command `piti`. Each module holds a few commands, which import heavy libraries only when they run."""

from piti.cli.app import app

__all__ = ["app"]
