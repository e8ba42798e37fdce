"""The one owner of checkpoint folders: which there are, which are whole, what they say, and when they go. No torch.

A checkpoint is `<run>/step-00000100/`. It counts once its DONE.json is there, and it is whole if its files have the
hashes that DONE.json lists. Weights that its stage does not change lie once for the run, in `<run>/frozen-<hash>.safetensors`.
`piti.models.checkpoints` writes and loads the weights in it.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, cast

from piti import storage
from piti.config import STAGE_LABELS
from piti.errors import CheckpointError, DataError

logger = logging.getLogger("piti")

FORMAT = 2  # 1: without `frozen`
_READABLE = (1, FORMAT)
MODEL_FILE = "model.safetensors"
EMA_FILE = "ema.safetensors"
TRAINER_FILE = "trainer.pt"
ASIDE_PREFIX = ".writing-"  # of a folder that a checkpoint is written in, beside its final place

_ANOTHER = "take another checkpoint, or train this one again"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint's DONE.json says: `about` is all of it, `sha256` its files' hashes by name."""

    uri: str
    about: dict[str, Any]

    @classmethod
    def at(cls, uri: str) -> Checkpoint:
        """Read DONE.json. Raises CheckpointError if it is missing, damaged or of a format that this code cannot read."""
        marker = storage.join(uri, storage.MARKER)
        try:
            about = storage.read_json(marker)
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{uri} is not a finished checkpoint: it has no {storage.MARKER}",
                "checkpoints are the step-* folders below <root>/runs/<fingerprint>/",
            ) from error
        except DataError as error:
            raise CheckpointError(f"{marker} is damaged ({error.problem})", "take another checkpoint") from error
        if (
            not isinstance(about, dict)
            or about.get("format") not in _READABLE
            or not isinstance(about.get("sha256"), dict)
        ):
            raise CheckpointError(
                f"{marker} is not that of a checkpoint in a format up to {FORMAT}", "give another checkpoint"
            )
        return cls(uri, about)

    @property
    def sha256(self) -> dict[str, str]:
        return cast(dict[str, str], self.about["sha256"])

    @property
    def stage(self) -> str:
        """The training stage that it is of; "base" for imported weights."""
        return str(self.about.get("stage", "base"))

    @property
    def step(self) -> int:
        return int(self.about.get("step", 0))

    @property
    def label(self) -> str:
        """Which stage it is of, in words."""
        return STAGE_LABELS.get(self.stage, self.stage)

    @property
    def frozen(self) -> dict[str, str] | None:
        """{"file", "sha256"} of the weights that its stage does not change: a file of the run, beside the checkpoints."""
        return cast("dict[str, str] | None", self.about.get("frozen"))

    def file(self, name: str) -> str:
        """URI of one of its files, after comparing its hash. Raises CheckpointError if it is missing or altered."""
        return _unaltered(storage.join(self.uri, name), self.sha256.get(name))

    def frozen_file(self) -> str | None:
        """URI of the file of `frozen`, after comparing its hash. Raises CheckpointError as `file`."""
        if self.frozen is None:
            return None
        run = storage.absolute(self.uri).rpartition("/")[0]
        return _unaltered(storage.join(run, self.frozen["file"]), self.frozen["sha256"])


def _unaltered(uri: str, sha256: str | None) -> str:
    try:
        found = storage.sha256_file(uri)
    except FileNotFoundError as error:
        raise CheckpointError(f"{uri} is missing", _ANOTHER) from error
    if found != sha256:
        raise CheckpointError(f"{uri} is not what was written (its sha256 differs)", _ANOTHER)
    return uri


def verify_checkpoint(uri: str) -> Checkpoint:
    """Hash every file of a checkpoint. Raises CheckpointError if one is missing or altered."""
    checkpoint = Checkpoint.at(uri)
    for name in checkpoint.sha256:
        checkpoint.file(name)
    checkpoint.frozen_file()
    return checkpoint


def checkpoint_hashes(uri: str) -> dict[str, str]:
    """The files' hashes that a checkpoint's DONE.json lists, for fingerprints. Raises CheckpointError as `Checkpoint.at`."""
    checkpoint = Checkpoint.at(uri)
    return checkpoint.sha256 | ({"frozen": checkpoint.frozen["sha256"]} if checkpoint.frozen else {})


def checkpoint_uri(run: str, step: int) -> str:
    """Where the checkpoint of a training run's step lies."""
    return storage.join(run, f"step-{step:08d}")


def newest_step(run: str) -> int:
    """The step of a run's newest finished checkpoint, which may be damaged; -1 if there is none."""
    return max((int(storage.name(uri).removeprefix("step-")) for uri in checkpoints_of(run)), default=-1)


def checkpoints_of(run: str) -> list[str]:
    """URIs of the finished checkpoints of a training run, oldest first."""
    uris = (storage.join(run, entry) for entry in storage.list_names(run) if entry.startswith("step-"))
    return [uri for uri in uris if storage.exists(storage.join(uri, storage.MARKER))]


def newest_whole_checkpoint(run: str) -> str | None:
    """The newest checkpoint of a run that verifies; damaged ones are reported and passed over."""
    for uri in reversed(checkpoints_of(run)):
        try:
            verify_checkpoint(uri)
        except CheckpointError as error:
            logger.warning("passed over a damaged checkpoint: %s", error)
            continue
        return uri
    return None


def final_checkpoint(run: str) -> str:
    """URI of the checkpoint that a finished training run handed over. Raises CheckpointError if it is not finished."""
    try:
        result = storage.read_json(storage.join(run, storage.MARKER))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"the training run {run} is not finished", "run the stage before this one first"
        ) from error
    return cast(str, result["checkpoint"])


def remove_checkpoint(uri: str) -> None:
    """Delete a checkpoint, marker first, so that nobody takes what is left for a whole one."""
    storage.remove(storage.join(uri, storage.MARKER))
    storage.remove(uri)


def prune_checkpoints(run: str, keep: int, spared: Collection[str] = ()) -> None:
    """Delete all but the newest `keep` finished checkpoints and those that are `spared`."""
    for uri in checkpoints_of(run)[:-keep]:
        if uri not in spared:
            remove_checkpoint(uri)


def clear_leftovers(run: str) -> None:
    """Delete what killed processes left half-written in a local run folder: checkpoints that nobody will finish."""
    if not storage.is_local(run) or not storage.local_path(run).is_dir():
        return
    for path in storage.local_path(run).iterdir():
        unfinished = path.name.startswith("step-") and not (path / storage.MARKER).exists()
        if path.is_dir() and (path.name.startswith(ASIDE_PREFIX) or unfinished):
            shutil.rmtree(path)
