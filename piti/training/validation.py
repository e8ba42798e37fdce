"""The validation loss: the same pictures, noise and timesteps every time, in every stage, on any number of workers."""

from __future__ import annotations

import torch
from torch import Tensor

from piti import storage
from piti.data.examples import Degraded, ExampleReader
from piti.data.loader import validation_batches
from piti.errors import DataError, repair_advice
from piti.models import PITIModel
from piti.seeds import seed_of
from piti.training.randomness import normal_pictures
from piti.training.stages import TrainingStage
from piti.training.workers import Workers, autocast

_GOLDEN_RATIO = 0.6180339887498949  # its multiples fill [0, 1) evenly, however many are taken


class Validation:
    """Mean losses over the first `validation_samples` pictures of the validation split.

    A picture's noise is a function of (seed, key). Timesteps are stratified: picture number i of the split gets the
    fractional part of (i * golden ratio + offset(seed)) of all timesteps. Neither depends on stage, step or worker,
    so that a stage's first value equals the last one of the stage whose weights it took over.
    """

    def __init__(self, stage: TrainingStage, shards: str, degraded: Degraded, workers: Workers) -> None:
        self._stage = stage
        self._shards = shards
        config = stage.config
        degraded = degraded if stage.is_upsampler else None
        self._examples = ExampleReader(shards, "validation", config.data, degraded, config.scale)
        self._workers = workers
        keys = self._examples.keys[: stage.settings.validation_samples]
        offset = (seed_of(stage.config.seed, "validation") % 1_000_000) / 1_000_000
        steps = stage.diffusion.num_timesteps
        self._timesteps = {key: int((index * _GOLDEN_RATIO + offset) % 1.0 * steps) for index, key in enumerate(keys)}

    @torch.no_grad()
    def __call__(self, model: PITIModel) -> dict[str, float] | None:
        """`mse`, `vb` and `loss` (their sum) of `model`, which is set to evaluation mode during the call.

        None, on all workers, where storage fails on one of them.
        """
        stage, workers = self._stage, self._workers
        batches = validation_batches(
            self._examples,
            batch_size=stage.settings.microbatch_size or max(1, stage.settings.batch_size // workers.world_size),
            limit=stage.settings.validation_samples,
            rank=workers.rank,
            world_size=workers.world_size,
        )
        sums = torch.tensor([0, 0, 0, 1], dtype=torch.float64)  # mse, vb, pictures, workers that cannot read theirs
        was_training = model.training
        model.eval()
        with storage.tolerated(f"worker {workers.rank} cannot read validation pictures"):
            for batch in batches:
                keys = batch["keys"]
                mse, vb = self._losses(model, batch, keys)
                sums[:3] += torch.stack([mse.double().sum(), vb.double().sum(), torch.tensor(len(keys))])
            sums[3] = 0
        model.train(was_training)
        mse_sum, vb_sum, count, num_failed = workers.total(sums.to(workers.device)).tolist()
        if num_failed:
            return None
        if count == 0:
            raise DataError(f"no validation sample of {self._shards} could be read", repair_advice(self._shards))
        return {"mse": mse_sum / count, "vb": vb_sum / count, "loss": (mse_sum + vb_sum) / count}

    def _losses(self, model: PITIModel, batch: dict[str, Tensor], keys: list[str]) -> tuple[Tensor, Tensor]:
        stage, device = self._stage, self._workers.device
        examples = stage.examples(batch, device)
        noise = normal_pictures(keys, examples.pictures.shape[1:], stage.config.seed, "validation").to(device)
        t = torch.tensor([self._timesteps[key] for key in keys], device=device)

        def predict(x_t: Tensor, time: Tensor) -> Tensor:
            with autocast(device, stage.settings.precision):
                output: Tensor = model(x_t, time, condition=examples.condition, low_res=examples.low_res)
            return output

        losses = stage.diffusion.training_losses(predict, examples.pictures, t, noise)
        return losses["mse"].cpu(), losses["vb"].cpu()
