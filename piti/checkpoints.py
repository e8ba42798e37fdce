"""Checkpoint folders: listing, verifying, claiming and deleting them. Imports no torch.

A checkpoint is a folder `<run>/step-00000100/`. It is finished once it has a DONE.json, and whole if its files have the
hashes that DONE.json lists. One that a resumed run found damaged is set aside: it has a DAMAGED.json instead. Weights that the stage does not train are stored once a run, in
`<run>/frozen-<hash>.safetensors`. `piti.models.checkpoints` writes and loads the weights in it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from piti import storage
from piti.config import STAGE_LABELS, StageConfig
from piti.errors import CheckpointError, DataError

logger = logging.getLogger("piti")

FORMAT = 2
MODEL_FILE = "model.safetensors"
EMA_FILE = "ema.safetensors"
TRAINER_FILE = "trainer.pt"
DAMAGED = "DAMAGED.json"  # the name of the marker of a checkpoint that is set aside
ASIDE_PREFIX = ".writing-"  # of the folder in which a checkpoint is written before it is renamed
_SCRATCH_PREFIX = ".piti-checkpoint-"  # of folders in the temporary folder

NETWORK_ROLES = ("checkpoint", "upsampler", "stage1")  # among an evaluation's inputs
CLAIM_SECONDS = 24 * 3600.0  # after which a claim ends by itself; longer than an evaluation takes
LEFTOVER_SECONDS = 4 * 3600.0  # longer than the upload of a checkpoint's largest file takes
_ANOTHER = "take another checkpoint, or train this one again"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint and the content of its DONE.json: `about` is all of it, `sha256` has the files' hashes by name."""

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
        if not isinstance(about, dict) or about.get("format") != FORMAT or not isinstance(about.get("sha256"), dict):
            raise CheckpointError(f"{marker} is not that of a checkpoint in format {FORMAT}", "give another checkpoint")
        return cls(uri, about)

    @property
    def sha256(self) -> dict[str, str]:
        return cast(dict[str, str], self.about["sha256"])

    @property
    def stage(self) -> str:
        """The training stage that wrote the checkpoint; "base" for imported weights."""
        return str(self.about.get("stage", "base"))

    @property
    def step(self) -> int:
        return int(self.about.get("step", 0))

    @property
    def label(self) -> str:
        """The stage's name for people."""
        return STAGE_LABELS.get(self.stage, self.stage)

    @property
    def frozen(self) -> dict[str, str] | None:
        """{"file", "sha256"} of the weights that the stage does not train: a file in the run's folder. None if the
        stage trains all."""
        return cast("dict[str, str] | None", self.about.get("frozen"))

    def file(self, name: str) -> CheckpointFile:
        """One of the checkpoint's files, by name."""
        return CheckpointFile(storage.join(self.uri, name), self.sha256.get(name))

    def frozen_file(self) -> CheckpointFile | None:
        """The file of `frozen`; None if there is none."""
        if self.frozen is None:
            return None
        run = storage.absolute(self.uri).rpartition("/")[0]
        return CheckpointFile(storage.join(run, self.frozen["file"]), self.frozen["sha256"])


@dataclass(frozen=True)
class CheckpointFile:
    """A file's URI, and the sha256 that it was written with."""

    uri: str
    sha256: str | None

    @contextmanager
    def fetched(self) -> Iterator[Path]:
        """The file on this machine, read from storage once. Raises CheckpointError if it is missing or altered."""
        with _scratch() as folder:
            try:
                path = storage.fetch(self.uri, folder / storage.name(self.uri))
            except FileNotFoundError as error:
                raise CheckpointError(f"{self.uri} is missing", _ANOTHER) from error
            self.verify(str(path))
            yield path

    def verify(self, copy: str | None = None) -> None:
        """Hash the file (a remote one after a download). Raises CheckpointError if it is missing or altered."""
        try:
            found = storage.sha256_file(copy or self.uri)
        except FileNotFoundError as error:
            raise CheckpointError(f"{self.uri} is missing", _ANOTHER) from error
        if found != self.sha256:
            raise CheckpointError(f"{self.uri} is not what was written (its sha256 differs)", _ANOTHER)


def verify_checkpoint(uri: str) -> Checkpoint:
    """Hash every file of a checkpoint. Raises CheckpointError if one is missing or altered."""
    checkpoint = Checkpoint.at(uri)
    for name in checkpoint.sha256:
        checkpoint.file(name).verify()
    if (frozen := checkpoint.frozen_file()) is not None:
        frozen.verify()
    return checkpoint


def checkpoint_uri(run: str, step: int) -> str:
    """URI of the checkpoint of a training run at `step`."""
    return storage.join(run, f"step-{step:08d}")


def newest_step(run: str) -> int:
    """The step of a run's newest finished checkpoint, which may be damaged; -1 if there is none."""
    return max((_step_of(uri) for uri in checkpoints_of(run)), default=-1)


def checkpoints_of(run: str) -> list[str]:
    """URIs of the finished checkpoints of a training run, oldest first."""
    uris = (storage.join(run, entry) for entry in storage.list_names(run) if entry.startswith("step-"))
    return [uri for uri in uris if storage.exists(storage.join(uri, storage.MARKER))]


def newest_whole_checkpoint(run: str) -> str | None:
    """The newest checkpoint of a run that passes verification; damaged ones are logged and skipped. None if there is
    none."""
    for uri in reversed(checkpoints_of(run)):
        try:
            verify_checkpoint(uri)
        except CheckpointError as error:
            logger.warning("passed over a damaged checkpoint: %s", error)
            continue
        return uri
    return None


def final_checkpoint(run: str) -> str:
    """URI of a finished training run's final checkpoint. Raises CheckpointError if it is not finished."""
    try:
        result = storage.read_json(storage.join(run, storage.MARKER))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"the training run {run} is not finished", "run the stage before this one first"
        ) from error
    return cast(str, result["checkpoint"])


def remove_checkpoint(uri: str) -> None:
    """Delete a checkpoint, the marker first: a half-deleted checkpoint does not count as finished."""
    storage.remove(storage.join(uri, storage.MARKER))
    storage.remove(uri)


def set_aside(uri: str) -> None:
    """Have a damaged checkpoint not count as finished any more, by renaming its DONE.json to DAMAGED.json.

    Its files stay, for people to look at, until a checkpoint of the same step is written.
    """
    fs, path = storage.filesystem(uri)
    fs.mv(storage.join(path, storage.MARKER), storage.join(path, DAMAGED))


def claim_checkpoint(uri: str, who: str, seconds: float = CLAIM_SECONDS) -> None:
    """Keep a training run from deleting a checkpoint that `who` reads, until `release_checkpoint` or for `seconds`.

    Checkpoints outside of runs are never deleted and need no claim. If the claim cannot be written, a warning is
    logged.
    """
    if not _is_of_a_run(uri):
        return
    with storage.tolerated(f"could not claim {uri}, so its run may delete it meanwhile"):
        storage.write_json(_claim(uri, who), {"until": time.time() + seconds})


def release_checkpoint(uri: str, who: str) -> None:
    """Remove a claim."""
    if not _is_of_a_run(uri):
        return
    with storage.tolerated(f"could not take back the claim on {uri}; it ends by itself"):
        storage.remove(_claim(uri, who))


class Claims:
    """The claims of one reader on any number of checkpoints, until the end of a `with` block."""

    def __init__(self, who: str) -> None:
        self._who = who
        self._until_seconds: dict[str, float] = {}  # by URI

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for uri in self._until_seconds:
            release_checkpoint(uri, self._who)

    def add(self, *uris: str) -> None:
        """Claim checkpoints."""
        for uri in uris:
            if uri not in self._until_seconds:
                self._claim(uri)

    def renew(self) -> None:
        """Claim anew what would run out within half of CLAIM_SECONDS."""
        for uri, until_seconds in self._until_seconds.items():
            if until_seconds - time.time() < CLAIM_SECONDS / 2:
                self._claim(uri)

    def _claim(self, uri: str) -> None:
        self._until_seconds[uri] = time.time() + CLAIM_SECONDS
        claim_checkpoint(uri, self._who)


def kept_steps(
    steps: Sequence[int], keep: int, spared: Collection[int] = (), every_steps: int | None = None
) -> set[int]:
    """The steps whose checkpoints are kept, of those that finished ones have, rising: the newest `keep`, those in
    `spared`, and multiples of `every_steps`."""
    multiples = set() if every_steps is None else {step for step in steps if step % every_steps == 0}
    return {*steps[-keep:], *multiples, *(step for step in steps if step in spared)}


def most_checkpoints(settings: StageConfig) -> int:
    """How many checkpoints a training stage has at once at most, while its last one is written. Claimed ones come on
    top."""
    every_steps = settings.checkpoint_every_steps
    steps = sorted({*range(every_steps, settings.total_steps + 1, every_steps), *settings.phase_ends})
    kept = kept_steps(steps[:-1], settings.keep_checkpoints, settings.phase_ends, settings.keep_every_steps)
    return len(kept) + 1


def prune_checkpoints(run: str, keep: int, spared: Collection[int] = (), every_steps: int | None = None) -> None:
    """Delete finished checkpoints except those of `kept_steps` and claimed ones. Unfinished ones that nobody has touched
    for LEFTOVER_SECONDS go too."""
    uris = {_step_of(uri): uri for uri in checkpoints_of(run)}
    kept = kept_steps(list(uris), keep, spared, every_steps)
    for step, uri in uris.items():
        if step not in kept and not _is_claimed(uri):
            remove_checkpoint(uri)
    _clear_untouched(run)


def _is_of_a_run(uri: str) -> bool:
    return storage.name(uri).startswith("step-")


def _claim(uri: str, who: str) -> str:
    run, _, name = uri.rstrip("/").rpartition("/")
    return storage.join(run, "claims", name, f"{who}.json")


def _is_claimed(uri: str) -> bool:
    folder = _claim(uri, "").rpartition("/")[0]
    for name in storage.list_names(folder):
        try:
            if storage.read_json(storage.join(folder, name))["until"] > time.time():
                return True
        except FileNotFoundError:
            continue  # removed just now
    return False


def _step_of(uri: str) -> int:
    return int(storage.name(uri).removeprefix("step-"))


def aside_folder(run: str) -> Path:
    """Where a run's checkpoints are written first: within a local run, so that publishing is a rename, or else in this
    machine's temporary folder."""
    return storage.local_path(run) if storage.is_local(run) else Path(tempfile.gettempdir())


@contextmanager
def aside_of(run: str) -> Iterator[Path]:
    """A new folder in `aside_folder` to write in, deleted afterwards."""
    if not storage.is_local(run):
        with _scratch() as folder:
            yield folder
        return
    beside = aside_folder(run)
    beside.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=ASIDE_PREFIX, dir=beside))
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _scratch() -> Iterator[Path]:
    """A new folder in this machine's temporary folder, deleted afterwards: if this process is killed, by the next run
    that begins here."""
    folder = Path(tempfile.mkdtemp(prefix=_SCRATCH_PREFIX))
    lock = _lock(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """A descriptor that locks a folder until it is closed or its process ends. None where another one locks it, where
    the folder is another user's, and on file systems without locks."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _clear_scratch() -> None:
    """Delete folders of `_scratch` whose processes were killed, whatever run they were of."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_SCRATCH_PREFIX}*"):
        if (lock := _lock(folder)) is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def clear_leftovers(run: str) -> None:
    """Before a run goes on, delete checkpoints that killed processes left unfinished. Those set aside stay.

    In an object store, where a process on another machine may still be uploading, only those that nobody has touched for
    LEFTOVER_SECONDS; and on this machine, what killed processes left in the temporary folder.
    """
    if not storage.is_local(run):
        _clear_scratch()
        _clear_untouched(run)
    elif storage.local_path(run).is_dir():
        for path in storage.local_path(run).iterdir():
            if path.is_dir() and (path.name.startswith(ASIDE_PREFIX) or _is_unfinished(str(path))):
                shutil.rmtree(path)


def _clear_untouched(run: str) -> None:
    for name in storage.list_names(run):
        uri = storage.join(run, name)
        if _is_unfinished(uri) and storage.untouched_seconds(uri) > LEFTOVER_SECONDS:
            storage.remove(uri)


def _is_unfinished(uri: str) -> bool:
    markers = (storage.join(uri, marker) for marker in (storage.MARKER, DAMAGED))
    return _is_of_a_run(uri) and not any(storage.exists(marker) for marker in markers)
