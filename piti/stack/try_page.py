"""The page of `piti try`: draw a sketch or paint a label map, and see what the networks make of it.

A web application for loopback alone. It answers only under loopback's names and to its own page, so that no other page that
the browser shows can make it work, and the page asks nobody else for anything.
"""

from __future__ import annotations

import base64
import colorsys
import re
import threading
import time
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import cv2
import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from eval.grid import data_uri
from piti import storage
from piti.config import BundledSourceConfig, Config, Sampler
from piti.data.conditions import label_colors
from piti.data.decoding import decode_condition, decode_image
from piti.data.items import RawCondition, RejectedItem
from piti.data.resizing import CropBox
from piti.data.shards import DamagedSample, ShardReader
from piti.errors import ConfigError, DataError, PitiError, first_line
from piti.evaluation.translation import Translator, Wish, paint
from piti.plan import Plan
from piti.stack.http import LOOPBACK

_MOST_STEPS = 250
_MOST_GUIDANCE = 20.0
_MOST_CLASSES = 255  # the page sends a byte a pixel; 255 is unlabelled
_FOLDER = Path(storage.ASSETS) / "try"
_FILES = {
    "/": ("page.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}
_CONTENT_POLICY = (
    "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)


class Drawing(BaseModel):
    """What the page asks for. `values`: base64 of a byte a pixel, row by row: labels, or 255 on a sketch's line."""

    model_config = ConfigDict(extra="forbid")

    values: str
    samples: Annotated[int, Field(ge=1, le=16)] = 4
    guidance: Annotated[float, Field(ge=0, le=_MOST_GUIDANCE)] = 1.5
    seed: Annotated[int, Field(ge=0, lt=1 << 31)] = 0
    sampler: Sampler = "dpm++"
    steps: Annotated[int, Field(ge=1, le=_MOST_STEPS)] = 16


def try_page(translator: Translator, key: str) -> FastAPI:
    """The application, at `/<key>/`: whoever does not know the key sees nothing.

    Raises ConfigError where the config's conditions cannot be painted.
    """
    config = translator.config
    about = page_facts(config)
    examples = _examples(config)
    drawing = threading.Lock()
    app = FastAPI(openapi_url=None)

    @app.middleware("http")
    async def own_page_only(request: Request, call_next: Any) -> Response:
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        if urlsplit(f"//{host}").hostname not in LOOPBACK or (origin is not None and origin != f"http://{host}"):
            return _problem("this page works for itself only", 403)
        response: Response = await call_next(request)
        response.headers["Content-Security-Policy"] = _CONTENT_POLICY
        response.headers["Cache-Control"] = "no-store"
        return response

    @app.exception_handler(PitiError)
    async def told(request: Request, error: PitiError) -> Response:
        return _problem(first_line(error), 400)

    @app.exception_handler(RequestValidationError)
    async def misfit(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return _problem(f"{'.'.join(str(part) for part in first['loc'][1:])}: {first['msg']}", 400)

    for route, (name, media_type) in _FILES.items():
        content = (_FOLDER / name).read_bytes()
        app.get(f"/{key}{route}")(
            lambda content=content, media_type=media_type: Response(content, media_type=media_type)
        )

    @app.get(f"/{key}/about")
    def tell() -> dict[str, Any]:
        return about | {"examples": 0 if examples is None else len(examples)}

    @app.get(f"/{key}/examples/{{number}}")
    def example(number: int) -> dict[str, str]:
        """A validation sample: its condition's values as `Drawing` has them, and its photograph."""
        if examples is None or not 0 <= number < len(examples):
            raise DataError("there is no such example")
        try:
            members = examples.read(number)
        except DamagedSample as error:
            raise DataError(f"this example is damaged: {error}") from error
        image = decode_image(members)
        box = CropBox.central(*image.shape[:2])
        values, side = box.cut(decode_condition(members).values), config.data.image_size
        values = cv2.resize(values, (side, side), interpolation=cv2.INTER_NEAREST)
        return {
            "values": base64.b64encode(values.astype(np.uint8).tobytes()).decode(),
            "truth": data_uri(box.cut(image)),
        }

    @app.post(f"/{key}/draw")
    def draw(asked: Drawing) -> dict[str, Any]:
        started = time.monotonic()
        painted = painted_values(asked.values, config)
        wish = Wish(asked.samples, asked.seed, asked.guidance, asked.sampler, asked.steps)
        with drawing:  # requests wait for each other: a second would only make both slower
            pictures = [data_uri(picture) for picture in translator.draw(painted, wish)]
        return {"pictures": pictures, "seconds": round(time.monotonic() - started, 1)}

    return app


def page_facts(config: Config) -> dict[str, Any]:
    """What the page has to know. Raises ConfigError where it cannot paint such conditions."""
    data, sampling = config.data, config.sampling
    if data.modality == "geometry":
        raise ConfigError("piti try paints label maps and sketches, no geometry", "use `piti translate`")
    classes = 0 if data.modality == "sketch" else data.num_classes or 0
    if classes > _MOST_CLASSES:
        raise ConfigError(
            f"piti try paints at most {_MOST_CLASSES} classes, {config.name} has {classes}", "use `piti translate`"
        )
    colors = label_colors(classes) if classes else np.zeros((0, 3), np.uint8)
    of_colours = isinstance(data.source, BundledSourceConfig)  # its labels are the photographs' own colours
    return {
        "name": config.name, "modality": data.modality, "size": data.image_size,
        "classes": [
            {"color": color.tolist(), "name": f"{label} {color_name(color)}" if of_colours else f"class {label}"}
            for label, color in enumerate(colors)
        ],
        "order": sorted(range(classes), key=lambda label: _rainbow(colors[label])) if of_colours else list(range(classes)),
        "guidance": min(sampling.guidance_scale, _MOST_GUIDANCE), "sampler": sampling.base_sampler,
        "steps": min(sum(int(number) for number in re.findall(r"\d+", sampling.base_respacing)) or 50, _MOST_STEPS),
    }  # fmt: skip


def color_name(color: NDArray[np.uint8]) -> str:
    """A colour (R, G, B) in words, for the quarter of each channel's range that begins there."""
    hue, light, _ = _hue_light_saturation(color)
    shade = "dark " if light < 0.3 else "light " if light > 0.7 else ""
    if max(color) // 64 == min(color) // 64:
        return ("black", "dark grey", "light grey", "white")[int(max(color)) // 64]
    hues = (20, "red"), (45, "orange"), (70, "yellow"), (160, "green"), (200, "cyan"), (260, "blue"), (320, "purple")
    return shade + next((name for end, name in hues if 360 * hue < end), "red")


def _hue_light_saturation(color: NDArray[np.uint8]) -> tuple[float, float, float]:
    """Each in [0, 1], of the middle of the quarters that begin at a colour."""
    return colorsys.rgb_to_hls(*(((int(level) & 0xC0) + 32) / 255 for level in color))


def _rainbow(color: NDArray[np.uint8]) -> tuple[float, float]:
    """Greys first, then twelve hues, each from dark to light."""
    hue, light, saturation = _hue_light_saturation(color)
    return (-1.0 if saturation == 0 else round(12 * hue) % 12), light


def painted_values(values: str, config: Config) -> NDArray[np.uint8]:
    """A `Drawing`'s values as the task encoder sees them. Raises DataError in one line where they are no such condition."""
    data = config.data
    try:
        content = base64.b64decode(values, validate=True)
    except ValueError as error:
        raise DataError("values are not base64") from error
    if len(content) != data.image_size**2:
        raise DataError(f"the condition has {len(content)} pixels, not {data.image_size}x{data.image_size}")
    pixels = np.frombuffer(content, dtype=np.uint8).reshape(data.image_size, data.image_size).copy()
    try:
        return paint(RawCondition(pixels), data)
    except RejectedItem as reason:
        raise DataError(str(reason)) from reason


def _examples(config: Config) -> ShardReader | None:
    """The validation samples, where the dataset has been sharded on this machine."""
    try:
        return ShardReader(Plan(config).shard.output, "validation")
    except PitiError:
        return None


def _problem(line: str, status: Literal[400, 403]) -> JSONResponse:
    return JSONResponse({"error": line}, status)
