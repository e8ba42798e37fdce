"""Each stage learns one batch: the surest sign that losses, gradients and conditions belong together."""

from __future__ import annotations

from typing import Any

import torch

from piti.config import Stage
from piti.models import PITIModel, build_model
from piti.training.batches import Batches
from piti.training.gradients import accumulate_gradients
from piti.training.loop import learn
from piti.training.stages import TrainingStage
from piti.training.state import TrainingState
from piti.training.workers import Workers

STEPS = 50
NOISY = {"diffusion__base__steps": 2, "diffusion__base__prediction": "v"}


def learned(
    pipeline: Any, name: Stage, model: PITIModel | None = None, steps: int = STEPS, by_heart: bool = True, **more: Any
) -> tuple[PITIModel, list[float]]:
    """The network after `steps` steps on the same eight pictures, and its squared error in each; `by_heart`: timesteps and
    noise are the same each time, too."""
    options = {
        "models__base__dropout": 0.0, "models__base__num_res_blocks": 1, "models__upsampler__num_res_blocks": 1,
        f"training__{name}__phases": [{"steps": steps, "learning_rate": 3e-3, "condition_dropout": 0.0}],
        f"training__{name}__batch_size": 8,
    }  # fmt: skip
    context = pipeline.context(name, **options, **more)
    stage = TrainingStage(name, context.config)
    state = TrainingState.fresh(stage, {}, Workers()) if model is None else TrainingState(stage, model, Workers(), {})
    examples = next(iter(Batches(context, state))).examples
    errors = []
    for _ in range(steps):
        found = accumulate_gradients(state, examples)
        learn(state, found)
        if by_heart:
            state.progress.step = 0  # whose random numbers come again
        errors.append(float(found.terms["mse"].mean()))
    return state.model, errors


def test_every_stage_that_learns_all_learns_eight_pictures_by_heart(pipeline: Any) -> None:
    """Stage 2 begins with pretraining's decoder and an encoder that knows nothing. Squared errors of the noise, which has
    variance 1."""
    model, errors = learned(pipeline, "pretrain")
    assert errors[0] > 0.9
    assert errors[-1] < 0.02
    forget_conditions(pipeline, model)
    _, errors = learned(pipeline, "stage2", model)
    assert errors[0] > 0.08  # other noise than pretraining has learned by heart
    assert errors[-1] < 0.02
    _, errors = learned(pipeline, "upsampler")
    assert errors[0] > 0.9
    assert errors[-1] < 0.03


def test_stage_1_teaches_the_encoder_to_say_which_picture_it_is(pipeline: Any) -> None:
    """Noise hides almost all of half of the pictures, and is new in each step: a decoder can draw them only by what the
    encoder says of conditions. Pretraining teaches such a decoder, stage 1 another encoder to talk to it."""
    model, errors = learned(pipeline, "pretrain", steps=200, by_heart=False, **NOISY)
    assert errors[-1] < 0.2 * errors[0]
    forget_conditions(pipeline, model)
    decoder = {name: value.clone() for name, value in model.decoder.state_dict().items()}
    model, errors = learned(pipeline, "stage1", model, steps=80, by_heart=False, **NOISY)
    assert sum(errors[-10:]) < 0.5 * sum(errors[:10])
    assert all(torch.equal(value, decoder[name]) for name, value in model.decoder.state_dict().items())


def forget_conditions(pipeline: Any, model: PITIModel) -> None:
    """Give `model` an encoder that knows nothing."""
    model.encoder.load_state_dict(build_model(pipeline.config().models.base, seed=1).encoder.state_dict())
