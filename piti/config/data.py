"""Config of the dataset, its shards, and the upsampler's degraded training input."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from piti.config.section import Positive, Section, Share, WeightsRef

Modality = Literal["mask", "sketch", "geometry"]
Scenes = Literal["indoors", "outdoor"]
SketchInversion = Literal["auto"] | bool
CONDITION_CHANNELS: dict[Modality, int] = {"mask": 3, "sketch": 1, "geometry": 6}


class BundledSourceConfig(Section):
    """Crops of scikit-image's photographs, by number. Train and validation crops come from disjoint regions of each
    photograph."""

    kind: Literal["bundled"] = "bundled"
    train_crops: Annotated[int, Field(gt=0)] = 512
    validation_crops: Annotated[int, Field(gt=0)] = 64


class PairedSourceConfig(Section):
    """`images` and `conditions` are folders whose files pair up by relative path without its suffix.

    Folders may be local, in object storage, or a .zip or .tar archive. Without `conditions`, sketches are detected in
    the pictures. Without `validation_images`, a share of the pictures (drawn by key) becomes the validation split.
    For geometry, `conditions` holds depth as 16-bit pictures of multiples of `depth_unit_metres` (0: unknown) and
    `normals` pictures of (n + 1) / 2; without it, normals count as unknown. Either may also be a `.npy`: depth in
    metres, normals in [-1, 1], label ids. A folder inside an archive is written `/data/train2017.zip/train2017`.
    """

    kind: Literal["paired"] = "paired"
    images: str
    conditions: str | None = None
    normals: str | None = None
    validation_images: str | None = None
    validation_conditions: str | None = None
    validation_normals: str | None = None
    validation_share: Annotated[float, Field(gt=0, lt=1)] = 0.05
    depth_unit_metres: Annotated[float, Field(gt=0)] = 0.001

    @model_validator(mode="after")
    def _folders_agree(self) -> Self:
        for name in ("conditions", "normals"):
            here, there = getattr(self, name), getattr(self, f"validation_{name}")
            if self.validation_images is None and there is not None:
                raise ValueError(f"validation_{name} is given without validation_images")
            if self.validation_images is not None and (here is None) != (there is None):
                raise ValueError(f"give both {name} and validation_{name}, or neither")
        return self


class ListSourceConfig(Section):
    """`path`: a .csv, .tsv or .parquet whose rows name files; `root`: what relative names are relative to (default:
    the folder of `path`), a folder, a prefix in object storage, or an archive. Absolute paths and URIs may be given too.

    `image`, `condition`, `normals` and `split` are names of columns; all but `image` may be missing from the table:
    without conditions sketches are detected, without splits a share of the pictures (drawn by name) is for validation.
    Splits are called train or training, and val, valid or validation.
    """

    kind: Literal["list"] = "list"
    path: str
    root: str | None = None
    image: str = "image"
    condition: str = "condition"
    normals: str = "normals"
    split: str = "split"
    validation_share: Annotated[float, Field(gt=0, lt=1)] = 0.05
    depth_unit_metres: Annotated[float, Field(gt=0)] = 0.001


class WebdatasetSourceConfig(Section):
    """`train` and `validation` name tars: a folder that holds them, one tar, or many as `shard-{000000..000146}.tar`.

    `images`, `condition` and `normals` are what follows the key in a member's name (`jpg`, `seg.png`), without the
    dot in between. Without `condition` sketches are detected; without `validation` a share of the samples is drawn.
    """

    kind: Literal["webdataset"] = "webdataset"
    train: str
    validation: str | None = None
    images: Annotated[tuple[str, ...], Field(min_length=1)] = ("jpg", "jpeg", "png", "webp")
    condition: str | None = None
    normals: str | None = None
    validation_share: Annotated[float, Field(gt=0, lt=1)] = 0.05
    depth_unit_metres: Annotated[float, Field(gt=0)] = 0.001

    @model_validator(mode="after")
    def _suffixes_without_dot(self) -> Self:
        for suffix in (*self.images, self.condition, self.normals):
            if suffix is not None and suffix.startswith("."):
                raise ValueError(f"give the suffix {suffix!r} without its leading dot")
        return self


class Ade20kSourceConfig(Section):
    """`root`: the folder ADEChallengeData2016, the folder that holds it, or ADEChallengeData2016.zip in either form.

    Labels are kept as distributed, 0 to 150 (0: none of the 150 classes), so `data.num_classes` is 151.
    """

    kind: Literal["ade20k"] = "ade20k"
    root: str


class CocoStuffSourceConfig(Section):
    """`root`: the folder that holds train2017, val2017 and stuffthingmaps, or their archives as downloaded.

    `data.num_classes` is 182. Modality sketch needs the pictures alone.
    """

    kind: Literal["coco-stuff"] = "coco-stuff"
    root: str


class DiodeSourceConfig(Section):
    """`root`: the folder that holds train/ and val/, or their archives. `scenes`: which kinds are used.

    `normals` false: normals are not used, and their channels are black.
    """

    kind: Literal["diode"] = "diode"
    root: str
    scenes: Annotated[tuple[Scenes, ...], Field(min_length=1)] = ("indoors", "outdoor")
    normals: bool = True


SourceConfig = Annotated[
    BundledSourceConfig
    | PairedSourceConfig
    | ListSourceConfig
    | WebdatasetSourceConfig
    | Ade20kSourceConfig
    | CocoStuffSourceConfig
    | DiodeSourceConfig,
    Field(discriminator="kind"),
]


class SketchConfig(Section):
    """How sketches are detected where the dataset has none: `hed` as published, or `canny`, which needs no weights.

    `weights`: HED's network-bsds500.pytorch. `threshold`: probability above which a pixel of HED's output is an edge.
    `invert` is for given sketches: false, lines are bright; true, lines are dark; auto, lines are the part that covers
    less of the sketch.
    """

    detector: Literal["canny", "hed"] = "canny"
    weights: WeightsRef | None = None
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.6
    invert: SketchInversion = "auto"

    @model_validator(mode="after")
    def _weights_for_hed(self) -> Self:
        if self.detector == "hed" and self.weights is None:
            raise ValueError("detector hed needs weights (network-bsds500.pytorch)")
        if self.detector == "canny" and (self.weights is not None or self.threshold != 0.6):
            raise ValueError("weights and threshold have no effect with detector canny")
        return self


class DataConfig(Section):
    """What to shard, and how a picture becomes a training example.

    `image_size` is the side in pixels of a stored picture, the upsampler's output. `geometry`: `squash` resizes to the
    square as published, `center` crops the largest central square first, `random` keeps the native size and crops at
    load time. A shard has about `samples_per_shard` samples. `max_samples` training items are kept, drawn by the seed
    (None: all). Masks without any of `require_classes` are left out (None: all are kept). `max_rejected_share` is the
    share of unusable items above which sharding fails.
    """

    source: SourceConfig
    modality: Modality
    num_classes: Positive | None = None
    image_size: Positive = 256
    geometry: Literal["squash", "center", "random"] = "squash"
    samples_per_shard: Positive = 1000
    max_samples: Positive | None = None
    require_classes: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] | None = None
    sketch: SketchConfig = SketchConfig()
    max_rejected_share: Share = 0.01
    horizontal_flip: bool = True

    @model_validator(mode="after")
    def _classes_for_masks(self) -> Self:
        if (self.modality == "mask") != (self.num_classes is not None):
            raise ValueError("num_classes is required for modality mask and not allowed for others")
        if self.require_classes is not None and (
            self.num_classes is None or max(self.require_classes) >= self.num_classes
        ):
            raise ValueError("require_classes must be label ids below num_classes, with modality mask")
        if self.modality != "sketch" and self.sketch != SketchConfig():
            raise ValueError("sketch does nothing with modality " + self.modality)
        return self


class DegradationConfig(Section):
    """How the upsampler's low-resolution training input is made.

    `variants`: degraded versions stored for each picture, of which each epoch draws one; 0: none is stored, and each
    reading of a picture makes a new one.
    """

    recipe: Literal["light", "full"] = "light"
    variants: Annotated[int, Field(ge=0)] = 4
