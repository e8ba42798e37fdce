"""Prefect flows: what runs when, and with what. They touch no pixel and no tensor."""

from flows import readable_errors

readable_errors.install()
