"""Prefect flows: what runs when, and with what. They touch no pixel and no tensor."""
