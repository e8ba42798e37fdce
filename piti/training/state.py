"""The training state that checkpoints hold, registered in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from piti import storage
from piti.checkpoints import aside_of, checkpoint_uri, remove_checkpoint
from piti.diffusion import LossSecondMomentSampler, TimestepSampler, UniformSampler
from piti.errors import CheckpointError
from piti.models import PITIModel
from piti.models.checkpoints import model_of, publish_frozen, read_newest, write_checkpoint
from piti.training.ema import EMA, ema_rate_at
from piti.training.optimizers import adamw
from piti.training.picture_losses import PictureLosses
from piti.training.sharding import shard, whole
from piti.training.stages import TrainingStage
from piti.training.workers import Workers


class Survivor(Protocol):
    """An object whose state is stored: numbers, strings, tensors and containers of these."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


@dataclass
class Progress:
    """Progress of a run. `step` counts optimizer steps, skipped ones included; `seconds` of all attempts.

    `last_validation` is of the weights after `last_validation_step` steps. The counts of skipped steps () int64 lie on the
    device.
    """

    step: int = 0
    seconds: float = 0.0
    skipped_steps: Tensor = field(default_factory=lambda: torch.tensor(0))
    skipped_in_a_row: Tensor = field(default_factory=lambda: torch.tensor(0))
    initial_validation: dict[str, float] = field(default_factory=dict)
    last_validation: dict[str, float] = field(default_factory=dict)
    last_validation_step: int = 0

    def count(self, is_finite: Tensor) -> None:
        """Take in a step, whose numbers were finite or not: () bool."""
        self.step += 1
        self.skipped_steps = self.skipped_steps + ~is_finite
        self.skipped_in_a_row = torch.where(is_finite, 0, self.skipped_in_a_row + 1)

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, torch.as_tensor(value) if name.startswith("skipped") else value)


class StepSums:
    """Sums over the steps since the last report, on the device. The first worker's alone.

    By the names of a step's n values, which change where picture losses begin: (n + 1,) float64, with the number of steps
    behind the sums.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sums: dict[str, Tensor] = {}

    def add(self, values: Mapping[str, Tensor], counts: Tensor) -> None:
        """Add a step's values, () float64 each, if `counts`, () bool."""
        names = " ".join(values)
        step = torch.where(counts, torch.stack([*values.values(), torch.ones_like(counts, dtype=torch.float64)]), 0.0)
        self._sums[names] = self._sums[names] + step if names in self._sums else step

    def take(self) -> dict[str, Tensor]:
        """Every name's sum and number of steps, (2,); they begin anew."""
        taken: dict[str, Tensor] = {}
        for names, sums in self._sums.items():
            for name, total in zip(names.split(), sums[:-1], strict=True):
                pair = torch.stack([total, sums[-1]])
                taken[name] = taken[name] + pair if name in taken else pair
        self._sums = {}
        return taken

    def state_dict(self) -> dict[str, Any]:
        return dict(self._sums)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sums = {name: value.to(self._device) for name, value in state.items()}


@dataclass(frozen=True)
class Snapshot:
    """A copy in memory of a checkpoint's content after `step` steps."""

    step: int
    model: dict[str, Tensor]
    ema: dict[str, Tensor]
    trainer: dict[str, Any]

    @property
    def num_bytes(self) -> int:
        """Size of its tensors."""
        values = tree_leaves([self.model, self.ema, self.trainer])
        return sum(value.nbytes for value in values if isinstance(value, Tensor))


def _frozen_weights(model: PITIModel) -> dict[str, Tensor]:
    """What does not learn."""
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {key: value for key, value in model.state_dict().items() if key not in learning}


def _store_frozen(stage: TrainingStage, inputs: dict[str, str], run: str) -> None:
    """Store what the stage does not train as it was when the run began, where that is damaged or missing."""
    model, _ = stage.initial_model(inputs)
    model.requires_grad_(False)
    stage.learnable(model).requires_grad_(True)
    publish_frozen(_frozen_weights(model), run)


class TrainingState:
    """A stage in the middle of its training. `origin` says where the first weights came from."""

    def __init__(self, stage: TrainingStage, model: PITIModel, workers: Workers, origin: dict[str, Any]) -> None:
        self.stage = stage
        self.workers = workers
        self.origin = origin
        self.model = model.train().requires_grad_(False)
        stage.learnable(self.model).requires_grad_(True)
        self._is_sharded = stage.config.cluster.strategy == "fsdp" and workers.world_size > 1
        if self._is_sharded:
            shard(self.model, workers)
        self.model.to(workers.device)
        self._frozen_weights = _frozen_weights(self.model)
        self.ema = EMA(self.model)
        self.optimizer, self.timesteps = self._fresh_optimizer(), self._fresh_timesteps()
        self.picture_losses = PictureLosses(stage.config, workers) if stage.is_upsampler else None
        self.progress = Progress()
        self.step_sums = StepSums(workers.device)
        self._frozen: dict[str, str] | None = None  # how checkpoints find the weights that do not learn
        if stage.settings.compile:
            self.model.compile()

    @cached_property
    def network(self) -> nn.Module:
        """`model` such that its backward pass averages gradients over the workers."""
        return self.model if self._is_sharded else self.workers.wrap(self.model)

    def averaged(self) -> PITIModel:
        """A network with the averaged weights, in evaluation mode. Every worker must call this."""
        return self.ema.network(self.model)

    def begin_phase(self) -> None:
        """Begin a phase: continue from the averaged weights with a fresh optimizer and timestep sampler.

        The published runs do the same. The upsampler's critic is kept.
        """
        if self.progress.step in self.stage.settings.phase_ends:
            self.ema.copy_to(self.model)
            self.optimizer, self.timesteps = self._fresh_optimizer(), self._fresh_timesteps()

    def learning_rate(self) -> float:
        """Of the next step."""
        settings, step = self.stage.settings, self.progress.step
        return settings.phase_at(step).learning_rate_at(settings.step_in_phase(step))

    def ema_rate(self) -> float:
        """Of the next step."""
        settings = self.stage.settings
        return ema_rate_at(settings.step_in_phase(self.progress.step), settings.ema_rate, settings.ema_warmup)

    def _fresh_optimizer(self) -> torch.optim.Optimizer:
        return adamw(self.parameters(), weight_decay=self.stage.settings.weight_decay)

    def _fresh_timesteps(self) -> TimestepSampler:
        steps = self.stage.diffusion.num_timesteps
        if self.stage.settings.timestep_sampler == "uniform":
            return UniformSampler(steps, device=self.workers.device)
        return LossSecondMomentSampler(steps, device=self.workers.device)

    def parameters(self) -> list[nn.Parameter]:
        """The trained parameters."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def survivors(self) -> dict[str, Survivor]:
        """The content of a checkpoint's trainer.pt; the weights are in files of their own."""
        entries: dict[str, Survivor] = {
            "optimizer": self.optimizer,
            "timesteps": self.timesteps,
            "progress": self.progress,
            "step_sums": self.step_sums,
        }
        if self.picture_losses is not None:
            entries["picture_losses"] = self.picture_losses
        return entries

    @classmethod
    def begin(cls, stage: TrainingStage, inputs: dict[str, str], workers: Workers, run: str) -> TrainingState:
        """Restore the newest whole checkpoint of `run` exactly; without one, `fresh`. Raises CheckpointError.

        The first worker reads, and sends the others what it found.
        """
        stored = workers.send_all(
            read_newest(run, partial(_store_frozen, stage, inputs, run)) if workers.is_first else None
        )
        if stored is None:
            return cls.fresh(stage, inputs, workers)
        uri, trainer = stored["uri"], stored["trainer"]
        if trainer["stage"] != stage.name:
            raise CheckpointError(f"{uri} is a checkpoint of {trainer['stage']}, not of {stage.name}", "remove it")
        state = cls(stage, model_of(stage.model_config, stored["model"], uri), workers, trainer["origin"])
        state.ema.load(stored["ema"])
        state._frozen = stored["frozen"]
        for name, survivor in state.survivors().items():
            if name == "step_sums" and name not in trainer:
                continue  # a checkpoint of an earlier version
            survivor.load_state_dict(trainer[name])
        return state

    @classmethod
    def fresh(cls, stage: TrainingStage, inputs: dict[str, str], workers: Workers) -> TrainingState:
        """The state before the first step. Raises CheckpointError if the weights to begin with are missing or wrong."""
        found = None
        if workers.is_first:
            model, origin = stage.initial_model(inputs)
            found = dict(model.state_dict()), origin
        weights, origin = workers.send_all(found)
        return cls(stage, model_of(stage.model_config, weights, "what it begins with"), workers, origin)

    def snapshot(self) -> Snapshot:
        """A copy of the present state on the CPU of the first worker. Every worker must call this; others get nothing."""
        trainer: dict[str, Any] = {name: survivor.state_dict() for name, survivor in self.survivors().items()}
        trainer |= {"stage": self.stage.name, "origin": self.origin}
        model = {key: value for key, value in self.model.state_dict().items() if key not in self._frozen_weights}
        content = {"model": model, "ema": self.ema.averages, "trainer": trainer}
        copied = tree_map_only(Tensor, self._copied, content)
        if torch.cuda.is_available() and self.workers.is_first:
            torch.cuda.synchronize()
        return Snapshot(self.progress.step, **copied)

    def save(self, snapshot: Snapshot, run: str, about: dict[str, Any]) -> str:
        """Publish a checkpoint below `run` and return its URI. Training may go on meanwhile. For the first worker only.

        Weights that are not trained are stored once for the run.
        """
        uri = checkpoint_uri(run, snapshot.step)
        if self._frozen_weights and self._frozen is None:
            self._frozen = publish_frozen(self._frozen_weights, run)
        with aside_of(run) as aside:
            about = {**about, "frozen": self._frozen}
            write_checkpoint(aside, model=snapshot.model, ema=snapshot.ema, trainer=snapshot.trainer, about=about)
            remove_checkpoint(uri)  # what a crash may have left there
            storage.publish_folder(aside, uri)
        return uri

    def _copied(self, tensor: Tensor) -> Tensor:
        """For the first worker, a copy on the CPU: from a GPU into pinned memory, without waiting."""
        tensor = whole(tensor)
        if not self.workers.is_first:
            return torch.empty(0)
        if not tensor.is_cuda:
            return tensor.detach().clone()
        copy = torch.empty_like(tensor, device="cpu", pin_memory=True, requires_grad=False)
        return copy.copy_(tensor.detach(), non_blocking=True)
