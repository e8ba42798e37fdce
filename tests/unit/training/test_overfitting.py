"""Each stage learns one batch by heart: the surest sign that losses, gradients and conditions belong together."""

from __future__ import annotations

from typing import Any

from piti.config import Stage
from piti.models import PITIModel, build_model
from piti.training.batches import Batches
from piti.training.gradients import accumulate_gradients
from piti.training.loop import learn
from piti.training.stages import TrainingStage
from piti.training.state import TrainingState
from piti.training.workers import Workers

STEPS = 50


def overfitted(pipeline: Any, name: Stage, model: PITIModel | None = None) -> tuple[PITIModel, list[float]]:
    """The network after `STEPS` steps on the same eight pictures, timesteps and noise; its squared error in each step."""
    options = {
        "models__base__dropout": 0.0, "models__base__num_res_blocks": 1, "models__upsampler__num_res_blocks": 1,
        f"training__{name}__phases": [{"steps": STEPS, "learning_rate": 3e-3, "condition_dropout": 0.0}],
        f"training__{name}__batch_size": 8,
    }  # fmt: skip
    context = pipeline.context(name, **options)
    stage = TrainingStage(name, context.config)
    state = TrainingState.fresh(stage, {}, Workers()) if model is None else TrainingState(stage, model, Workers(), {})
    examples = next(iter(Batches(context, state))).examples
    errors = []
    for _ in range(STEPS):
        found = accumulate_gradients(state, examples)
        learn(state, found)
        state.progress.step = 0  # whose random numbers come again
        errors.append(float(found.terms["mse"].mean()))
    return state.model, errors


def test_every_stage_learns_eight_pictures_by_heart(pipeline: Any) -> None:
    """Stage 1 begins with pretraining's decoder, which it must leave as it is, and an encoder that knows nothing; stage 2
    with what stage 1 has. Squared errors of the noise, which has variance 1.
    """
    model, errors = overfitted(pipeline, "pretrain")
    assert errors[0] > 0.9
    assert errors[-1] < 0.02
    model.encoder.load_state_dict(build_model(pipeline.config().models.base, seed=1).encoder.state_dict())
    model, errors = overfitted(pipeline, "stage1", model)
    assert errors[0] > 0.25  # other noise than pretraining has learned by heart
    assert errors[-1] < 0.9 * errors[0], "the encoder alone cannot say more to such a decoder, but it must say that"
    _, errors = overfitted(pipeline, "stage2", model)
    assert errors[-1] < 0.02
    _, errors = overfitted(pipeline, "upsampler")
    assert errors[0] > 0.9
    assert errors[-1] < 0.03
