"""The command `piti`. Each module holds a few commands; heavy libraries are imported only by the command that needs them."""

from piti.cli.app import app

__all__ = ["app"]
