"""The steps of an evaluation: picture sets, figures and report, each with the content of its fingerprint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from piti import storage
from piti.config import Config
from piti.evaluation.picture_sets import PICTURES, PictureSetName, covers, drawn_ranges, limit_of
from piti.evaluation.targets import Network, Target
from piti.plan import OPERATIONAL_MODEL_KEYS, Plan, Step, dump, fingerprint
from piti.provenance import FORMAT_VERSIONS
from piti.weights import weights_digest

METRICS_FILE = "metrics.json"  # what scoring leaves, and the report beside its page
_SHOWN_ONLY = {"grid_samples", "published"}  # of the evaluation's settings: the report's own
_NOT_IN_FIGURES: dict[str, Any] = {
    **dict.fromkeys((*_SHOWN_ONLY, "on_checkpoint"), True),  # what is shown, and when
    "compare_stages": True,  # the sets say it
    **dict.fromkeys(("inception", "lpips_trunk", "clip", "vgg16"), True), "alignment": {"network", "labels"},  # by content
}  # fmt: skip


@dataclass(frozen=True)
class PlannedSet:
    """A picture set of a target: its pictures lie in `folder`, for the first `wanted` conditions (None: for all)."""

    name: PictureSetName
    fingerprint: str
    folder: str
    wanted: int | None

    def is_done(self) -> bool:
        """Whether a tar is there for every wanted picture."""
        try:
            available = int(storage.read_json(storage.join(self.folder, storage.MARKER))["available"])
        except FileNotFoundError:
            return False
        count = available if self.wanted is None else min(self.wanted, available)
        return covers(drawn_ranges(self.folder), range(count))


class EvaluationPlan:
    """The steps that a target needs. Cheap to build; fingerprints hash feature networks that are not pinned."""

    def __init__(self, plan: Plan, target: Target) -> None:
        self.target = target
        self._plan = plan
        self._config = target.config

    @cached_property
    def sets(self) -> dict[PictureSetName, PlannedSet]:
        """The picture sets in the order they are drawn in."""
        config, target = self._config, self.target
        sampling = config.sampling
        base = self._base_content(_weights(target.base))
        upsampler = _upsampler_content(config, target.upsampler)
        final = {"base": fingerprint(base), **upsampler}
        contents: dict[PictureSetName, dict[str, Any]] = {"final": final, "base": base}
        if sampling.diversity_conditions:
            contents["diversity"] = {"of": fingerprint(final), "variants": sampling.diversity_samples}
        if sampling.upsampled_conditions:
            truth = {"conditions": self._plan.validation.fingerprint, "base_size": config.models.base.image_size}
            contents["upsampled"] = truth | upsampler
        if config.evaluation.compare_stages:
            if target.stage1 is not None:
                contents["stage1"] = self._base_content(_weights(target.stage1))
            contents["untrained"] = self._base_content({"untrained": config.seed})
        return {name: self._planned(name, content) for name, content in contents.items()}

    def _base_content(self, weights: Mapping[str, Any]) -> dict[str, Any]:
        """The fingerprint's content for pictures of a base network. It identifies a set; the set's name is not part of
        it."""
        config = self._config
        return {
            "conditions": self._plan.validation.fingerprint,
            "seed": config.seed,
            "weights": weights,
            "model": dump(config.models.base, exclude=OPERATIONAL_MODEL_KEYS),
            "diffusion": dump(config.diffusion.base),
            **_sampling(config, "base_sampler", "base_respacing", "guidance_scale", "normalized_guidance", "precision"),
        }

    def _planned(self, name: PictureSetName, content: Mapping[str, Any]) -> PlannedSet:
        print_ = fingerprint({"version": FORMAT_VERSIONS["sample"], **content})
        folder = storage.join(self._config.root, "pictures", print_[:16])
        return PlannedSet(name, print_, folder, limit_of(self._config, name))

    @property
    def sample(self) -> Step:
        """The step that draws all missing pictures. One job serves all sets, which share networks; `final` is made from
        `base`."""
        content = {"sets": {name: [planned.fingerprint, planned.wanted] for name, planned in self.sets.items()}}
        return self._plan.step("sample", "sample", "evaluations", content, self._inputs())

    def _inputs(self) -> dict[str, str]:
        target = self.target
        inputs = {
            "shards": self._plan.conditions.output, "checkpoint": target.base.uri, "upsampler": target.upsampler.uri,
        }  # fmt: skip
        if "stage1" in self.sets and target.stage1 is not None:
            inputs["stage1"] = target.stage1.uri
        return inputs | {f"{PICTURES}{name}": planned.folder for name, planned in self.sets.items()}

    @property
    def score(self) -> Step:
        """The step that measures the pictures. Feature networks are identified by content, not by path."""
        evaluation = self._config.evaluation
        content = {
            "evaluation": evaluation.model_dump(mode="json", exclude=_NOT_IN_FIGURES),
            "networks": {key: weights_digest(ref) for key, ref in evaluation.files.items()},
            "samples": self.sample.fingerprint,
        }
        inputs = {**self._inputs(), "samples": self.sample.output}
        return self._plan.step("score", "score", "evaluations", content, inputs)

    @property
    def report(self) -> Step:
        """The step that writes the page from stored figures and pictures."""
        score = self.score
        shown = {name: value for name, value in dump(self._config.evaluation).items() if name in _SHOWN_ONLY}
        content = {"shown": shown, "score": score.fingerprint}
        return self._plan.step("report", "report", "reports", content, {**score.inputs, "score": score.output})


def _weights(network: Network) -> dict[str, str]:
    return dict(network.sha256)


def _upsampler_content(config: Config, upsampler: Network) -> dict[str, Any]:
    return {
        "upsampler": _weights(upsampler),
        "model": dump(config.models.upsampler, exclude=OPERATIONAL_MODEL_KEYS),
        "diffusion": dump(config.diffusion.upsampler),
        "seed": config.seed,
        **_sampling(config, "upsampler_sampler", "upsampler_respacing", "upsampler_noise_scale", "precision"),
    }


def _sampling(config: Config, *names: str) -> dict[str, Any]:
    settings = dump(config.sampling)
    return {name: settings[name] for name in names}
