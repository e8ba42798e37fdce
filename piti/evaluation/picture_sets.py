"""Generated pictures in storage: which sets there are, in which files, and how they are written and read.

    final      by base network and upsampler, at the upsampler's size
    base       by the base network, at its size: what `final` was made of
    diversity  like `final`, several pictures of one condition
    stage1     like `base`, by the base network after stage 1
    untrained  like `base`, by the base network before any training
    upsampled  like `final`, but from the truth's own low-resolution picture

Each set is a folder `<root>/pictures/<fingerprint>/` of tars `<first>-<last>.tar`, the pictures of conditions number
`first` to `last` - 1 of the validation split: <key>.png (<key>.<variant>.png in `diversity`), <key>.condition.png as
people look at it, and <key>.json, how it was drawn. A tar appears whole, and all that its content depends on is in the
fingerprint, so whoever needs more pictures of a set draws the rest.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from piti import storage
from piti.config import Config
from piti.errors import DataError

PictureSetName = Literal["final", "base", "diversity", "stage1", "untrained", "upsampled"]
SET_NAMES: tuple[PictureSetName, ...] = get_args(PictureSetName)
PICTURES = "pictures_"  # before a set's name: the role of its folder among a job's inputs
_CONDITION = "condition.png"
_TAR = re.compile(r"(\d{6,})-(\d{6,})\.tar")


@dataclass(frozen=True)
class Part:
    """A piece of the work: conditions number `first` to `last` - 1 of the validation split, `variants` of each.

    Variant 0 is the picture that is measured; diversity has variants 1, 2, ...
    """

    set: PictureSetName
    first: int
    last: int
    variants: tuple[int, ...] = (0,)

    @property
    def num_pictures(self) -> int:
        """How many pictures its tar holds."""
        return (self.last - self.first) * len(self.variants)

    @property
    def file_name(self) -> str:
        """The name of its tar."""
        return f"{self.first:06d}-{self.last:06d}.tar"


def set_folders(inputs: Mapping[str, str]) -> dict[PictureSetName, str]:
    """The folders of the picture sets among a job's inputs, in the order of `SET_NAMES`."""
    return {name: inputs[f"{PICTURES}{name}"] for name in SET_NAMES if f"{PICTURES}{name}" in inputs}


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


def limit_of(config: Config, name: PictureSetName) -> int | None:
    """Of how many conditions at most a set has pictures, the first of the validation split; None: of all."""
    sampling = config.sampling
    own = {"diversity": sampling.diversity_conditions, "upsampled": sampling.upsampled_conditions}.get(name)
    return min((limit for limit in (own, sampling.num_samples) if limit is not None), default=None)


def num_wanted(config: Config, name: PictureSetName, num_conditions: int) -> int:
    """Of how many of `num_conditions` conditions a set has pictures."""
    limit = limit_of(config, name)
    return num_conditions if limit is None else min(limit, num_conditions)


def variants_of(config: Config, name: PictureSetName) -> tuple[int, ...]:
    """The variants that a set has of each condition."""
    return tuple(range(1, config.sampling.diversity_samples + 1)) if name == "diversity" else (0,)


def plan_parts(config: Config, name: PictureSetName, num_conditions: int, drawn: Sequence[range] = ()) -> list[Part]:
    """The parts of a set that are not `drawn` yet. The division into parts does not change the pictures."""
    variants = variants_of(config, name)
    size = max(1, config.sampling.pictures_per_part // len(variants))
    gaps, first = [], 0
    total = num_wanted(config, name, num_conditions)
    for done in sorted(drawn, key=lambda numbers: numbers.start):
        gaps.append(range(first, min(done.start, total)))
        first = max(first, done.stop)
    gaps.append(range(first, total))
    return [
        Part(name, number, min(number + size, gap.stop), variants)
        for gap in gaps
        for number in range(gap.start, gap.stop, size)
    ]


def drawn_ranges(folder: str) -> list[range]:
    """The conditions of which a set's folder holds pictures, a range for each tar."""
    found = (_TAR.fullmatch(name) for name in storage.list_names(folder))
    return [range(int(match[1]), int(match[2])) for match in found if match is not None]


def covers(drawn: Iterable[range], wanted: range) -> bool:
    """Whether pictures of all conditions in `wanted` are drawn."""
    return set(wanted) <= {number for numbers in drawn for number in numbers}


def write_pictures(
    uri: str,
    pictures: Mapping[str, NDArray[np.uint8]],
    conditions: Mapping[str, NDArray[np.uint8]] | None = None,
    about: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Publish a tar: `pictures` maps `<key>` or `<key>.<variant>` to uint8 (H,W,3) RGB; `conditions` and `about`
    (JSON-able) have what goes with a key. Same content, same bytes.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        keys: set[str] = set()
        for name, picture in pictures.items():
            key = name.partition(".")[0]
            if key not in keys:
                keys.add(key)
                if conditions is not None:
                    _add(archive, f"{key}.{_CONDITION}", png_bytes(conditions[key], key))
                if about is not None:
                    _add(archive, f"{key}.json", json.dumps(about[key], sort_keys=True).encode())
            _add(archive, f"{name}.png", png_bytes(picture, name))
    storage.write_bytes(uri, buffer.getvalue())


def png_bytes(picture: NDArray[np.uint8], name: str) -> bytes:
    """A picture uint8 (H,W,3) RGB as a PNG. `name` is for the DataError where it cannot be one."""
    import cv2  # imported here, since flows need only the listing functions

    done, data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    if not done:
        raise DataError(f"{name} of shape {picture.shape} cannot be written as a PNG")
    return bytes(data.tobytes())


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


class PictureSet:
    """The pictures in a set's folder, compressed in memory: of the conditions in `wanted`, or (None) of all.

    Empty if there are none. Raises DataError where a tar cannot be read.
    """

    def __init__(self, folder: str | None, wanted: range | None = None) -> None:
        self._encoded: dict[str, dict[int, bytes]] = {}
        self._about: dict[str, bytes] = {}
        names = [] if folder is None else storage.list_names(folder)
        for name in names:
            match = _TAR.fullmatch(name)
            if match and (wanted is None or (int(match[1]) < wanted.stop and wanted.start < int(match[2]))):
                self._read(storage.join(str(folder), name))

    def _read(self, uri: str) -> None:
        try:
            with tarfile.open(fileobj=io.BytesIO(storage.read_bytes(uri))) as archive:
                for member in archive:
                    key, _, rest = member.name.partition(".")
                    stream = archive.extractfile(member)
                    if stream is None or rest == _CONDITION:
                        continue
                    if rest == "json":
                        self._about[key] = stream.read()
                    else:
                        variant = rest.removesuffix("png").rstrip(".")
                        self._encoded.setdefault(key, {})[int(variant or 0)] = stream.read()
        except (tarfile.TarError, ValueError) as error:
            raise DataError(
                f"{uri} is damaged ({error})", "delete it and its folder's DONE.json, and run again"
            ) from error

    def about(self, key: str) -> dict[str, Any]:
        """How the pictures of a condition were drawn, as far as their tar tells."""
        return cast(dict[str, Any], json.loads(self._about.get(key, b"{}")))

    def __len__(self) -> int:
        return len(self._encoded)

    def __contains__(self, key: str) -> bool:
        return key in self._encoded

    def holds(self, key: str, variants: Iterable[int]) -> bool:
        """Whether all these variants of a condition's picture are there."""
        return self._encoded.get(key, {}).keys() >= set(variants)

    @property
    def keys(self) -> list[str]:
        """Keys of the conditions, in the order of the tars."""
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
    import cv2

    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    if decoded is None:
        raise DataError(f"the generated picture {key} does not decode", "delete its tar and DONE.json, and run again")
    return cast(NDArray[np.uint8], decoded)
