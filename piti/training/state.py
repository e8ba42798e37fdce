"""Everything that must survive a crash, registered in one place."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from piti import storage
from piti.checkpoints import ASIDE_PREFIX, checkpoint_uri, remove_checkpoint
from piti.diffusion import LossSecondMomentSampler, TimestepSampler, UniformSampler
from piti.errors import CheckpointError
from piti.models import PITIModel
from piti.models.checkpoints import load_model, load_trainer_state, write_checkpoint
from piti.training.ema import EMA
from piti.training.picture_losses import PictureLosses
from piti.training.stages import TrainingStage
from piti.training.workers import Workers


class Survivor(Protocol):
    """Something with a state of its own: numbers, strings, tensors and containers of these."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


@dataclass
class Progress:
    """How far a run is. `step` counts optimizer steps taken, skipped ones included; `seconds` of all attempts."""

    step: int = 0
    seconds: float = 0.0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    initial_validation: dict[str, float] = field(default_factory=dict)
    last_validation: dict[str, float] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)


class TrainingState:
    """A stage in the middle of its training. `origin` says where the first weights came from."""

    def __init__(self, stage: TrainingStage, model: PITIModel, workers: Workers, origin: dict[str, Any]) -> None:
        settings = stage.settings
        self.stage = stage
        self.origin = origin
        self.model = model.to(workers.device).train().requires_grad_(False)
        stage.learnable(self.model).requires_grad_(True)
        self.ema = EMA(self.model)
        self.optimizer = torch.optim.AdamW(
            self.parameters(), lr=settings.phases[0].learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        steps = stage.diffusion.num_timesteps
        uniform = settings.timestep_sampler == "uniform"
        self.timesteps: TimestepSampler = UniformSampler(steps) if uniform else LossSecondMomentSampler(steps)
        self.picture_losses = PictureLosses(stage.config, workers) if stage.is_upsampler else None
        self.progress = Progress()

    def parameters(self) -> list[torch.nn.Parameter]:
        """The parameters that learn."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def survivors(self) -> dict[str, Survivor]:
        """All that a checkpoint's trainer.pt holds; the weights themselves lie beside it."""
        entries: dict[str, Survivor] = {
            "optimizer": self.optimizer,
            "timesteps": self.timesteps,
            "progress": self.progress,
        }
        if self.picture_losses is not None:
            entries["picture_losses"] = self.picture_losses
        return entries

    @classmethod
    def fresh(cls, stage: TrainingStage, inputs: dict[str, str], workers: Workers) -> TrainingState:
        """The state before the first step. Raises CheckpointError if the weights to begin with are missing or wrong."""
        model, origin = stage.initial_model(inputs)
        return cls(stage, model, workers, origin)

    @classmethod
    def resumed(cls, stage: TrainingStage, uri: str, workers: Workers) -> TrainingState:
        """The state that `save` wrote to `uri`, exactly. Raises CheckpointError if it is damaged or of another stage."""
        trainer = load_trainer_state(uri)
        if trainer["stage"] != stage.name:
            raise CheckpointError(f"{uri} is a checkpoint of {trainer['stage']}, not of {stage.name}", "remove it")
        state = cls(stage, load_model(uri, stage.model_config, "model"), workers, trainer["origin"])
        state.ema.model.load_state_dict(load_model(uri, stage.model_config, "ema").state_dict(), strict=True)
        for name, survivor in state.survivors().items():
            survivor.load_state_dict(trainer[name])
        return state

    def save(self, run: str, about: dict[str, Any]) -> str:
        """Publish a checkpoint of this state below `run`; its URI. For the first worker only."""
        uri = checkpoint_uri(run, self.progress.step)
        trainer: dict[str, Any] = {name: survivor.state_dict() for name, survivor in self.survivors().items()}
        trainer |= {"stage": self.stage.name, "origin": self.origin}
        beside = storage.local_path(run) if storage.is_local(run) else None  # so that publishing is a rename
        if beside is not None:
            beside.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=ASIDE_PREFIX, dir=beside))
        try:
            write_checkpoint(
                aside, model=self.model.state_dict(), ema=self.ema.model.state_dict(), trainer=trainer, about=about
            )
            remove_checkpoint(uri)  # what a crash may have left there
            storage.publish_folder(aside, uri)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return uri
