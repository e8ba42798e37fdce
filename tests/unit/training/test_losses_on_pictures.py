"""The picture losses are the published ones (golden vectors, see golden/README.md) and behave as losses should."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from piti import storage
from piti.config import WeightsRef
from piti.errors import CheckpointError
from piti.models import PatchDiscriminator
from piti.training.picture_losses import PerceptualLoss, critic_terms, generator_term

GOLDEN = Path(__file__).parent / "golden"
Maker = Callable[[str, tuple[int, ...]], Tensor]


def assert_close(ours: Tensor, name: str, tolerance: float = 1e-5) -> None:
    """Within `tolerance` of the largest published value."""
    published = torch.from_numpy(np.load(GOLDEN / f"{name}.npy"))
    assert ours.shape == published.shape
    assert float((ours - published).abs().max()) <= tolerance * float(published.abs().max()), name


@pytest.fixture
def vgg19(tmp_path: Path, filled: Callable[[nn.Module], nn.Module]) -> WeightsRef:
    """A file in the layout of torchvision's vgg19 (further layers cut to nothing), with the golden weights."""
    features = nn.Sequential(
        *(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(64, 128, 3), nn.ReLU(), nn.Conv2d(128, 128, 3)),
    )
    network = nn.ModuleDict({"features": features})
    path = tmp_path / "vgg19.pth"
    torch.save({**filled(network).state_dict(), "classifier.6.bias": torch.zeros(1000)}, path)
    return WeightsRef(path=str(path), sha256=storage.sha256_file(str(path)))


def pictures(uniform: Maker, normal: Maker, side: int) -> tuple[Tensor, Tensor]:
    predicted = normal("predicted", (2, 3, side, side)).float()
    return predicted.requires_grad_(True), uniform("target", (2, 3, side, side)).float()


def test_perceptual_loss_and_gradient(vgg19: WeightsRef, uniform: Maker, normal: Maker) -> None:
    predicted, target = pictures(uniform, normal, 32)
    perceptual = PerceptualLoss(vgg19)
    loss = perceptual(predicted, target)
    loss.sum().backward()
    assert_close(loss.detach(), "perceptual")
    assert predicted.grad is not None
    assert_close(predicted.grad[:, :, ::2, ::2], "perceptual-gradient")
    assert perceptual.name == "vgg19-conv2_2"


def test_adversarial_terms_and_the_critics_gradient(
    uniform: Maker, normal: Maker, filled: Callable[[nn.Module], nn.Module]
) -> None:
    predicted, target = pictures(uniform, normal, 64)
    discriminator = PatchDiscriminator()
    filled(discriminator)
    terms = critic_terms(discriminator, target, predicted, (uniform("mix", (2,)).float() + 1) / 2)
    (terms.wasserstein + 10.0 * terms.penalty).mean().backward()
    assert predicted.grad is None  # the critic's loss is none of the generator's business
    gradients = {name: parameter.grad for name, parameter in discriminator.named_parameters()}
    for name in ("model.0.weight", "model.5.weight", "model.11.weight"):
        gradient = gradients[name]
        assert gradient is not None
        part = gradient if name == "model.11.weight" else gradient[::16, ::4]
        assert_close(part, f"critic-gradient-{name}")
    term = generator_term(discriminator, predicted)
    assert_close(term.detach(), "adversarial")
    term.sum().backward()
    assert predicted.grad is not None
    # No gradient where the prediction was clamped.
    assert not predicted.grad[predicted.abs() > 1].any()
    assert predicted.grad[predicted.abs() < 1].any()


def test_the_penalty_pulls_the_gradients_norm_to_one() -> None:
    """For a linear critic D(x) = <w, x> the penalty is exactly (|w| - 1)^2, wherever it is taken."""

    class Linear(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (3.0 / 48**0.5 * x).sum((1, 2, 3)).view(-1, 1, 1, 1)

    real, fake = torch.rand(5, 3, 4, 4), torch.rand(5, 3, 4, 4)
    terms = critic_terms(Linear(), real, fake, torch.rand(5))
    assert terms.penalty.tolist() == pytest.approx([4.0] * 5, rel=1e-5)
    assert float(terms.wasserstein.mean()) == pytest.approx(
        float(Linear()(fake).mean() - Linear()(real).mean()), rel=1e-4
    )


def test_a_critic_learns_to_tell_pictures_apart() -> None:
    """A few steps of the WGAN-GP loss: real pictures come to score higher than predicted ones."""
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(channels=8, layers=2)
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-3)
    for _ in range(30):
        real = torch.rand(8, 3, 16, 16) * torch.linspace(-1, 1, 16)
        terms = critic_terms(discriminator, real, real.flip(3), torch.rand(8))
        optimizer.zero_grad()
        (terms.wasserstein + 10 * terms.penalty).mean().backward()
        optimizer.step()
    real = torch.rand(8, 3, 16, 16) * torch.linspace(-1, 1, 16)
    with torch.no_grad():
        assert float(generator_term(discriminator, real).mean()) < float(
            generator_term(discriminator, real.flip(3)).mean()
        )


def test_without_weights_the_network_is_seeded_and_says_so() -> None:
    target = torch.rand(2, 3, 16, 16) * 2 - 1
    first, again, other = PerceptualLoss(), PerceptualLoss(), PerceptualLoss(seed=1)
    near, far = target + 0.05 * torch.randn_like(target), torch.rand_like(target)
    assert torch.equal(first(near, target), again(near, target))
    assert not torch.equal(first(near, target), other(near, target))
    assert bool((first(near, target) < first(far, target)).all())
    assert torch.equal(first(target, target), torch.zeros(2))
    assert "untrained" in first.name
    assert not any(parameter.requires_grad for parameter in first.parameters())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"features.0.weight": torch.zeros(64, 3, 3, 3)}, "is not torchvision's VGG19"),
        ({"features.0.weight": torch.zeros(64, 1, 3, 3)}, "features.0.weight"),
        ([1, 2], "is not torchvision's VGG19"),
    ],
)
def test_other_files_are_refused(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "vgg19.pth")
    with pytest.raises(CheckpointError, match=message):
        PerceptualLoss(WeightsRef(path=str(tmp_path / "vgg19.pth")))


def test_missing_or_altered_weights_are_refused_with_the_place_to_put_them(vgg19: WeightsRef, tmp_path: Path) -> None:
    PerceptualLoss(vgg19)
    with pytest.raises(CheckpointError, match=r"training\.upsampler\.vgg19: there is no file"):
        PerceptualLoss(WeightsRef(path=str(tmp_path / "nothing.pth")))
    with pytest.raises(CheckpointError, match="the config pins 11"):
        PerceptualLoss(WeightsRef(path=vgg19.path, sha256="1" * 64))
