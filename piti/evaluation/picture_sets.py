"""Generated pictures in storage: which sets there are, in which files, and how they are written and read.

    <folder>/final-000000.tar ...    <key>.png at the upsampler's size
    <folder>/base-000000.tar ...     <key>.png at the base network's size, what `final` was made of
    <folder>/stage1-*, untrained-*   <key>.png like `base`, by the base network after stage 1 and before any training
    <folder>/diversity-000000.tar    <key>.<variant>.png like `final`, several pictures of one condition
    <folder>/upsampled-000000.tar    <key>.png like `final`, but from the truth's own low-resolution picture

A tar appears whole, and its content follows from the sample step's inputs, so a restart keeps the tars it finds.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from piti import storage
from piti.config import Config
from piti.errors import DataError

PictureSetName = Literal["final", "base", "stage1", "untrained", "diversity", "upsampled"]
Drawing = Literal["cascade", "stage1", "untrained", "diversity", "upsampled"]
"""What draws a part: both networks one after the other, the base network of some stage alone, or the upsampler alone."""

SET_NAMES: tuple[PictureSetName, ...] = get_args(PictureSetName)
_PRODUCTS: dict[Drawing, tuple[PictureSetName, ...]] = {
    "cascade": ("base", "final"),
    "diversity": ("diversity",),
    "upsampled": ("upsampled",),
    "stage1": ("stage1",),
    "untrained": ("untrained",),
}


@dataclass(frozen=True)
class Part:
    """A piece of the work: conditions number `first` to `last` - 1 of the validation split, `variants` of each.

    Variant 0 is the picture that is measured; diversity has variants 1, 2, ...
    """

    drawing: Drawing
    number: int
    first: int
    last: int
    variants: tuple[int, ...] = (0,)

    @property
    def products(self) -> tuple[PictureSetName, ...]:
        """The sets that this part adds a tar to."""
        return _PRODUCTS[self.drawing]

    @property
    def num_pictures(self) -> int:
        """How many pictures its tars hold, each."""
        return (self.last - self.first) * len(self.variants)

    @property
    def file_names(self) -> list[str]:
        """Names of its tars."""
        return [_file_name(product, self.number) for product in self.products]

    def uri(self, folder: str, product: PictureSetName) -> str:
        """Where the tar that it adds to a set lies."""
        return storage.join(folder, _file_name(product, self.number))


def describe_sampling(config: Config) -> dict[str, Any]:
    """Samplers, guidance and seeds as the result and the report tell them."""
    sampling = config.sampling
    return {
        "sampler": {
            "base": f"{sampling.base_sampler}, {sampling.base_respacing} steps",
            "upsampler": f"{sampling.upsampler_sampler}, {sampling.upsampler_respacing} steps",
        },
        "guidance": {"scale": sampling.guidance_scale, "normalized": sampling.normalized_guidance},
        "seeds": {"config": config.seed, "rule": "sha256 of (seed, key, variant, network); variant 0 is measured"},
    }


def plan_parts(config: Config, num_conditions: int) -> list[Part]:
    """All parts of a sample step, the expensive ones first. They do not depend on batch size or workers."""
    sampling = config.sampling
    size = sampling.pictures_per_part
    parts = _cut("cascade", num_conditions, size)
    diverse = min(sampling.diversity_conditions, num_conditions)
    parts += _cut("diversity", diverse, size, tuple(range(1, sampling.diversity_samples + 1)))
    parts += _cut("upsampled", min(sampling.upsampled_conditions, num_conditions), size)
    if config.evaluation.compare_stages:
        parts += _cut("stage1", num_conditions, size) + _cut("untrained", num_conditions, size)
    return parts


def _file_name(product: PictureSetName, number: int) -> str:
    return f"{product}-{number:06d}.tar"


def _cut(drawing: Drawing, num_conditions: int, pictures: int, variants: tuple[int, ...] = (0,)) -> list[Part]:
    size = max(1, pictures // len(variants))
    return [
        Part(drawing, number, first, min(first + size, num_conditions), variants)
        for number, first in enumerate(range(0, num_conditions, size))
    ]


def write_pictures(uri: str, pictures: Mapping[str, NDArray[np.uint8]]) -> None:
    """Publish a tar of PNGs: `pictures` maps `<key>` or `<key>.<variant>` to uint8 (H,W,3) RGB. Same pictures, same bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, picture in pictures.items():
            done, data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
            if not done:
                raise DataError(f"{name} of shape {picture.shape} cannot be written as a PNG")
            info = tarfile.TarInfo(f"{name}.png")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data.tobytes()))
    storage.write_bytes(uri, buffer.getvalue())


class PictureSet:
    """One set of pictures in a folder, compressed in memory. Empty if the folder holds none of that name.

    Raises DataError where a tar cannot be read.
    """

    def __init__(self, folder: str, product: PictureSetName) -> None:
        self._encoded: dict[str, dict[int, bytes]] = {}
        for name in storage.list_names(folder):
            if name.startswith(f"{product}-") and name.endswith(".tar"):
                self._read(storage.join(folder, name))

    def _read(self, uri: str) -> None:
        try:
            with tarfile.open(fileobj=io.BytesIO(storage.read_bytes(uri))) as archive:
                for member in archive:
                    key, *variant = member.name.removesuffix(".png").split(".")
                    stream = archive.extractfile(member)
                    if stream is not None:
                        self._encoded.setdefault(key, {})[int(variant[0]) if variant else 0] = stream.read()
        except (tarfile.TarError, ValueError) as error:
            raise DataError(
                f"{uri} is damaged ({error})", "delete it and its folder's DONE.json, and run again"
            ) from error

    def __len__(self) -> int:
        return len(self._encoded)

    def __contains__(self, key: str) -> bool:
        return key in self._encoded

    @property
    def keys(self) -> list[str]:
        """Keys of the conditions, in the order they were drawn in."""
        return list(self._encoded)

    def digest(self, keys: Sequence[str]) -> str:
        """Hex sha256 of the keys and of all their pictures as stored. Raises KeyError for a key without a picture."""
        digest = hashlib.sha256()
        for key in keys:
            digest.update(f"{key}\n".encode("utf-8", "surrogateescape"))
            for variant, data in sorted(self._encoded[key].items()):
                digest.update(f"{variant} {len(data)}\n".encode())
                digest.update(data)
        return digest.hexdigest()

    def picture(self, key: str) -> NDArray[np.uint8]:
        """The picture of a condition, the first where there are several: uint8 (H,W,3) RGB."""
        return cast(NDArray[np.uint8], self.variants(key)[0])

    def variants(self, key: str) -> NDArray[np.uint8]:
        """All pictures of a condition: uint8 (K,H,W,3) RGB."""
        return np.stack([_decode(data, key) for _, data in sorted(self._encoded[key].items())])


def _decode(data: bytes, key: str) -> NDArray[np.uint8]:
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    if decoded is None:
        raise DataError(f"the generated picture {key} does not decode", "delete its tar and DONE.json, and run again")
    return cast(NDArray[np.uint8], decoded)
