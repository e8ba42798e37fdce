"""Pictures as files in memory."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """What Pillow writes of a picture in a format of its own, with that format's options."""
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()
