"""PITI: the model, and all that turns data into checkpoints and checkpoints into pictures."""

__version__ = "0.1.0"
