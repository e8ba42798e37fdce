"""Targets of evaluations: a base network and an upsampler, from any source. Imports no torch."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from piti import storage
from piti.checkpoints import EMA_FILE, Checkpoint, checkpoints_of
from piti.config import Config, WeightsRef
from piti.config.section import require_known_scheme
from piti.credentials import REMEDY, holds_credentials
from piti.errors import CheckpointError, DataError, PitiError
from piti.job import SPEC_FILE, JobSpec
from piti.plan import Plan
from piti.weights import open_weights

logger = logging.getLogger("piti")

FILE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")


@dataclass(frozen=True)
class Network:
    """The weights of one network: a checkpoint folder of ours, or (`checkpoint` None) a file of GLIDE's or PITI's.

    `sha256` is of what its pictures depend on: of a checkpoint, the averaged weights and those that stay frozen.
    """

    uri: str
    sha256: dict[str, str]
    checkpoint: Checkpoint | None = None

    @classmethod
    def at(cls, uri: str, sha256: str | None = None) -> Network:
        """Raises CheckpointError for what is neither a finished checkpoint nor a file of weights, or cannot be reached.

        `sha256` pins a file: one with another hash is a CheckpointError, too.
        """
        if holds_credentials(uri):
            raise CheckpointError("a checkpoint's address holds a user's password or token", REMEDY)
        try:
            require_known_scheme(uri)
        except ValueError as error:
            raise CheckpointError(f"checkpoint {uri!r}: {error}", "copy it to one of these first") from error
        uri = storage.absolute(uri)
        if uri.endswith(FILE_SUFFIXES):
            with open_weights(WeightsRef(path=uri, sha256=sha256), uri) as file:
                return cls(uri, {"file": file.sha256})
        checkpoint = Checkpoint.at(uri)
        used = {EMA_FILE: checkpoint.sha256.get(EMA_FILE, "")}
        return cls(uri, used | ({"frozen": checkpoint.frozen["sha256"]} if checkpoint.frozen else {}), checkpoint)

    @property
    def run(self) -> str | None:
        """The folder of the training run that a checkpoint lies in; None for a file."""
        return None if self.checkpoint is None else self.uri.rpartition("/")[0]

    @property
    def stage(self) -> str | None:
        """The training stage that a checkpoint is of."""
        return None if self.checkpoint is None else self.checkpoint.stage

    @property
    def step(self) -> int:
        """Optimizer steps of its stage; 0 for a file, which does not tell."""
        return 0 if self.checkpoint is None else self.checkpoint.step

    @property
    def title(self) -> str:
        """For people: stage and step, or the file's name."""
        if self.checkpoint is None:
            return storage.name(self.uri)
        return f"{self.checkpoint.label}, step {self.step}"

    def describe(self) -> dict[str, Any]:
        """What is known of its origin; JSON-able."""
        about = {} if self.checkpoint is None else self.checkpoint.about
        told: dict[str, Any] = {
            name: about[name] for name in ("stage", "step", "samples", "seed", "fingerprint") if name in about
        }
        commit = about.get("code", {}).get("commit")
        return {
            "uri": self.uri, "title": self.title, "sha256": self.sha256, "run": self.run, **told,
            **({"code_commit": commit} if commit else {}),
        }  # fmt: skip

    def lineage(self) -> Iterator[Network]:
        """This checkpoint and those that its training began from, as far back as they are still there."""
        network: Network | None = self
        while network is not None:
            yield network
            network = network._parent()

    def _parent(self) -> Network | None:
        origin = {} if self.checkpoint is None else self.checkpoint.about.get("origin") or {}
        uri = origin.get("model") or origin.get("decoder") or ""
        try:
            return Network.at(uri) if "/" in uri else None  # else "seed 123"
        except CheckpointError:
            return None


@dataclass(frozen=True)
class Target:
    """A pair of networks and the config that they are evaluated under."""

    config: Config
    base: Network
    upsampler: Network

    @property
    def name(self) -> str:
        """For names of tasks."""
        return storage.name(self.base.uri)

    @property
    def uris(self) -> list[str]:
        """Of all its networks."""
        return [network.uri for network in (self.base, self.upsampler, self.stage1) if network is not None]

    @property
    def stage1(self) -> Network | None:
        """The network after stage 1 that the base network's training went on from; None where nobody knows it."""
        return next((network for network in self.base.lineage() if network.stage == "stage1"), None)


def make_target(plan: Plan, base: str, upsampler: str | None = None) -> Target:
    """The base network at `base` with the upsampler that belongs to it, under `plan`'s config. Raises CheckpointError.

    The upsampler is, of these, the first that there is: the one given; the newest of the training that a checkpoint
    came from; the config's `pretrained.upsampler`; the newest that was trained under this config.
    """
    network = Network.at(base)
    return Target(plan.config, network, _upsampler(plan, network, upsampler))


def _upsampler(plan: Plan, base: Network, given: str | None) -> Network:
    if given is not None:
        return Network.at(given)
    looked_in: list[str] = []
    if base.run is not None and (trained := _newest_upsampler(_plan_behind(plan, base), looked_in)):
        return Network.at(trained)
    pretrained = plan.config.pretrained.upsampler
    if pretrained is not None:
        return Network.at(pretrained.path, pretrained.sha256)
    if trained := _newest_upsampler(plan, looked_in):
        return Network.at(trained)
    places = " or ".join(dict.fromkeys(looked_in)) or f"{plan.config.root}/runs"
    raise CheckpointError(
        f"there is no upsampler for {base.uri}: none is given, the config {plan.config.name} has no "
        f"pretrained.upsampler, and there is no upsampler checkpoint yet (looked in {places})",
        "give the parameter upsampler (a checkpoint or file), set pretrained.upsampler, or run piti/train first",
    )


def _newest_upsampler(plan: Plan | None, looked_in: list[str]) -> str | None:
    if plan is None:
        return None
    try:
        run = plan.upsampler.output
    except PitiError:
        logger.warning(
            "the training data of %s is not here: nobody knows which upsampler was trained on it", plan.config.name
        )
        return None
    looked_in.append(run)
    found = checkpoints_of(run)
    return found[-1] if found else None


def _plan_behind(plan: Plan, base: Network) -> Plan | None:
    """The plan of the training that a checkpoint came from; None where nobody knows it."""
    try:
        if base.run == plan.stage2.output:
            return plan
    except DataError:  # the training data is not here
        pass
    config = trained_config(base)
    return None if config is None else Plan(config)


def trained_config(network: Network) -> Config | None:
    """The config that a checkpoint was trained under, as its job was told, with the root that it lies below now.

    None where no job beside its run says it.
    """
    run = network.run or ""
    root = run.rpartition("/runs/")[0]
    for job in reversed(storage.list_names(storage.join(root, "jobs")) if root else []):
        if job.startswith(f"piti-{network.stage}-"):
            try:
                spec = storage.read_json(storage.join(root, "jobs", job, SPEC_FILE))
                if str(spec["fingerprint"]).startswith(storage.name(run)):
                    return JobSpec.model_validate(spec).config.model_copy(update={"root": root})
            except (DataError, OSError, KeyError, TypeError, ValueError):
                continue  # a stray file or folder, or one of another version
    return None


def finished_bases(root: str) -> Iterator[str]:
    """URIs of the finished checkpoints of stage 2 of every run under a root, oldest first in each run."""
    runs = storage.join(root, "runs")
    for name in storage.list_names(runs):
        for uri in checkpoints_of(storage.join(runs, name)):
            try:
                if Checkpoint.at(uri).stage != "stage2":
                    break  # nor is any other of its run
                yield uri
            except PitiError as error:
                logger.warning("left out: %s", error)
