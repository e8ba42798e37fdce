"""Feature networks: weights files are checked and read exactly; untrained ones are seeded and say what they are."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
import torch

from eval import InceptionFeatures, LpipsNetwork, UntrainedFeatures, WeightsError
from eval.torchvision_operators import ensure_torchvision_importable


class Harmful:
    """Pickles to something that runs code when it is read."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (eval, ("1/0",))


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in torch-fidelity's layout with random values (the real one has to be downloaded)."""
    ensure_torchvision_importable()
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    folder = tmp_path_factory.mktemp("weights")
    empty = folder / "empty.pth"
    torch.save({}, empty)
    with torch.random.fork_rng(devices=[]), pytest.MonkeyPatch.context() as patch:
        torch.manual_seed(0)
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        network = FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path=str(empty))
    path = folder / "inception.pth"
    torch.save(network.state_dict(), path)
    return path


def noise_pictures(count: int, side: int) -> torch.Tensor:
    values = np.random.default_rng(0).integers(0, 256, (count, 3, side, side), dtype=np.uint8)
    return torch.from_numpy(values)


def test_inception_reads_its_file_and_says_it_is_not_the_published_one(inception_file: Path) -> None:
    digest = hashlib.sha256(inception_file.read_bytes()).hexdigest()
    extractor = InceptionFeatures(inception_file, digest)
    features = extractor(noise_pictures(2, 32))
    assert features.shape == (2, 2048)
    assert not torch.allclose(features[0], features[1])
    assert extractor.weights_sha256 == digest
    assert not extractor.comparable
    assert "other than the published" in extractor.name


def test_a_wrong_hash_names_both(inception_file: Path) -> None:
    with pytest.raises(WeightsError, match=f"expected {'0' * 64}"):
        InceptionFeatures(inception_file, "0" * 64)


def test_a_pickle_with_code_is_refused_without_running_it(tmp_path: Path) -> None:
    path = tmp_path / "harmful.pth"
    torch.save({"x": Harmful()}, path)
    with pytest.raises(WeightsError, match="not a readable file of weights"):
        InceptionFeatures(path)


@pytest.mark.parametrize("network", [InceptionFeatures, LpipsNetwork])
def test_missing_truncated_and_foreign_files_are_refused(network: type, inception_file: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cannot be read"):
        network(tmp_path / "nowhere.pth")
    truncated = tmp_path / "truncated.pth"
    truncated.write_bytes(inception_file.read_bytes()[:100_000])
    with pytest.raises(WeightsError, match="not a readable file"):
        network(truncated)
    foreign = tmp_path / "foreign.pth"
    torch.save({"features.0.weight": torch.zeros(3)}, foreign)
    with pytest.raises(WeightsError, match="layout"):
        network(foreign)


def test_untrained_networks_are_functions_of_their_seed_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, again, other = UntrainedFeatures(0), UntrainedFeatures(0), UntrainedFeatures(1)
    lpips_first, lpips_again, lpips_other = LpipsNetwork(seed=0), LpipsNetwork(seed=0), LpipsNetwork(seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    pictures = noise_pictures(2, 64)
    assert torch.equal(first(pictures), again(pictures))
    assert not torch.equal(first(pictures), other(pictures))
    a, b = pictures[:1], pictures[1:]
    assert torch.equal(lpips_first(a, b), lpips_again(a, b))
    assert lpips_first.weights_sha256 == lpips_again.weights_sha256 != lpips_other.weights_sha256
    for network in (first, lpips_first):
        assert not network.comparable
        assert "untrained" in network.name


def test_lpips_trunk_in_torchvision_layout_gives_the_lpips_package_figure(tmp_path: Path) -> None:
    """The same trunk put into lpips.LPIPS by hand measures the same distance: every layer lands in its place."""
    ensure_torchvision_importable()
    from torchvision.models import alexnet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        trunk = alexnet(weights=None)
    path = tmp_path / "alexnet.pth"
    torch.save(trunk.state_dict(), path)
    network = LpipsNetwork(path)
    reference = LpipsNetwork(seed=3).network
    for name, layers in (("slice1", (0,)), ("slice2", (3,)), ("slice3", (6,)), ("slice4", (8,)), ("slice5", (10,))):
        for layer in layers:
            reference.get_submodule(f"net.{name}.{layer}").load_state_dict(trunk.features[layer].state_dict())
    pictures = noise_pictures(2, 64)
    scaled = pictures.float() / 127.5 - 1
    expected = reference(scaled[:1], scaled[1:]).flatten()
    assert network(pictures[:1], pictures[1:]).item() == pytest.approx(expected.item(), rel=1e-6)
    assert network.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_lpips_heads_are_the_published_ones() -> None:
    """The wheel's linear heads are in place: their weights are what its file holds."""
    import lpips

    file = Path(lpips.__file__).parent / "weights" / "v0.1" / "alex.pth"
    heads = torch.load(io.BytesIO(file.read_bytes()), map_location="cpu", weights_only=True)
    own = LpipsNetwork().network.state_dict()
    assert len(heads) == 5
    for name, value in heads.items():
        assert torch.equal(own[name], value)


def test_the_operators_are_declared_once_and_torchvision_works() -> None:
    ensure_torchvision_importable()
    ensure_torchvision_importable()
    import torchvision

    assert hasattr(torch.ops.torchvision, "nms")
    assert torchvision.__version__
