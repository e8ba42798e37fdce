"""Feature networks: weights files are checked and read exactly, and give what the libraries give."""

import hashlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from eval import ClipFeatures, EfficientNetFeatures, InceptionFeatures, LpipsNetwork, Vgg16Features, WeightsError
from eval.efficientnet import EfficientNetLite0
from eval.published_networks import CLIP, INCEPTION
from eval.resize import RESIZE_PROTOCOLS, resize
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


@pytest.fixture(scope="module")
def vgg16_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file in torchvision's layout with random values; its hidden layers are narrow (the real file has 528 MB)."""
    ensure_torchvision_importable()
    import torchvision

    whole = torchvision.models.vgg16

    def narrow(pretrained: bool = False) -> nn.Module:
        with torch.device("meta"):
            network = whole(weights=None, init_weights=False)
        network.classifier[0], network.classifier[3], network.classifier[6] = (
            nn.Linear(512 * 49, 8), nn.Linear(8, 6), nn.Linear(6, 2)
        )  # fmt: skip
        network.features.to_empty(device="cpu")
        return network

    with torch.random.fork_rng(devices=[]), pytest.MonkeyPatch.context() as patch:
        torch.manual_seed(0)
        patch.setattr(torchvision.models, "vgg16", narrow)
        network = narrow()
        for layer in network.features:
            if isinstance(layer, nn.Conv2d):
                layer.reset_parameters()
        path = tmp_path_factory.mktemp("weights") / "vgg16.pth"
        torch.save(network.state_dict(), path)
        yield path


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small image encoder as OpenAI distributes it: a TorchScript archive with `visual.*` and the text's shapes."""
    ensure_torchvision_importable()
    from torch_fidelity.feature_extractor_clip import CLIPVisual

    class Whole(CLIPVisual):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    path = tmp_path_factory.mktemp("weights") / "clip.pt"
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.manual_seed(0)
        network = Whole(16, 32, 2, 64, 8)
        network.text_projection = nn.Parameter(torch.zeros(4, 16))
        torch.jit.save(torch.jit.trace(network, torch.zeros(1)), str(path))
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
    torch.testing.assert_close(features, extractor.network(noise_pictures(2, 32))[0], rtol=0, atol=0)
    identity = extractor.identity
    assert (identity.weights_sha256, identity.comparable, identity.resize) == (digest, False, "torch-fidelity")
    assert identity.figure("fid", "fd") == f"fd_inception_v3_{digest[:8]}"
    assert "other than the published" in identity.name


def test_resized_as_clean_fid_the_features_are_clean_fids(inception_file: Path) -> None:
    """Pictures of 299 pixels need no resize: both protocols give torch-fidelity's features of clean-fid's picture."""
    extractor = InceptionFeatures(inception_file, resize="clean-fid")
    picture = noise_pictures(1, 64)
    quantized = resize(picture, 299, "clean-fid").round().to(torch.uint8)
    expected = extractor.network(quantized)[0]
    assert extractor.identity.resize == "clean-fid"
    assert float((extractor(picture) - expected).norm() / expected.norm()) < 0.02


@pytest.mark.parametrize("side", [64, 256, 400])
def test_resizing_is_that_of_the_libraries(side: int) -> None:
    """Within one level of torch-fidelity's and clean-fid's own functions, which differ by more between themselves."""
    ensure_torchvision_importable()
    from cleanfid.resize import make_resizer
    from skimage import data
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    photograph = np.ascontiguousarray(data.astronaut()[100 : 100 + side, 100 : 100 + side])
    picture = torch.from_numpy(photograph).permute(2, 0, 1)[None]
    clean = make_resizer("PIL", False, "bicubic", (299, 299))(photograph)
    own = {name: resize(picture, 299, name) for name in RESIZE_PROTOCOLS}
    assert float((own["clean-fid"][0].permute(1, 2, 0) - torch.from_numpy(clean)).abs().max()) <= 1
    theirs = interpolate_bilinear_2d_like_tensorflow1x(picture.float(), size=(299, 299), align_corners=False)
    assert float((own["torch-fidelity"] - theirs).abs().max()) <= 1
    assert float((own["torch-fidelity"] - own["clean-fid"]).abs().max()) > 5
    with pytest.raises(ValueError, match="no resize protocol 'nearest'"):
        resize(picture, 299, "nearest")  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "classes"), [("chelsea", {281, 282, 285}), ("coffee", {967}), ("rocket", {657, 744})])
def test_the_stand_in_recognises_photographs(name: str, classes: set[int]) -> None:
    """ImageNet's tabby, tiger cat and Egyptian cat; espresso; missile and projectile: among the best three guesses."""
    from skimage import data

    photograph = getattr(data, name)()
    side = min(photograph.shape[:2])
    top, left = (photograph.shape[0] - side) // 2, (photograph.shape[1] - side) // 2
    picture = torch.from_numpy(np.ascontiguousarray(photograph[top : top + side, left : left + side]))
    with torch.inference_mode():
        guesses = EfficientNetLite0()(picture.permute(2, 0, 1)[None])[0].topk(3).indices
    assert classes & set(guesses.tolist())


def test_the_stand_in_says_that_it_compares_only_with_itself() -> None:
    extractor = EfficientNetFeatures(resize="torch-fidelity")
    assert extractor(noise_pictures(2, 32)).shape == (2, 1280)
    assert not extractor.identity.comparable
    assert extractor.identity.resize == "torch-fidelity"
    assert extractor.identity.figure("fid", "fd") == "fd_efficientnet_lite0"


def test_a_wrong_hash_and_a_pickle_with_code_are_refused_unopened(inception_file: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=f"expected {'0' * 64}"):
        InceptionFeatures(inception_file, "0" * 64)
    path = tmp_path / "harmful.pth"
    torch.save({"x": Harmful()}, path)
    with pytest.raises(WeightsError, match="not a readable file of weights"):
        InceptionFeatures(path)


def test_clip_and_vgg16_give_torch_fidelitys_features(clip_file: Path, vgg16_file: Path) -> None:
    """Resized as torch-fidelity does, both give that package's features, and say that these weights are not published."""
    from torch_fidelity.feature_extractor_clip import FeatureExtractorCLIP
    from torch_fidelity.feature_extractor_vgg16 import FeatureExtractorVGG16

    pictures = noise_pictures(2, 40)
    clip, vgg16 = ClipFeatures(clip_file), Vgg16Features(vgg16_file)
    reference = FeatureExtractorCLIP("clip-vit-b-32", ["clip"], feature_extractor_weights_path=str(clip_file))
    torch.testing.assert_close(clip(pictures), reference(pictures)[0], rtol=1e-6, atol=1e-6)
    assert clip(pictures).shape == (2, 16)
    reference = FeatureExtractorVGG16("vgg16", ["fc2_relu"], feature_extractor_weights_path=str(vgg16_file))
    torch.testing.assert_close(vgg16(pictures), reference(pictures)[0], rtol=1e-6, atol=1e-6)
    assert vgg16(pictures).any()
    for network, slug in ((clip, "clip_vit_b_32"), (vgg16, "vgg16")):
        assert network.identity.figure("x", "fd") == f"fd_{slug}_{network.identity.weights_sha256[:8]}"


def test_published_weights_are_known_by_their_hash() -> None:
    for published, digest in (
        (INCEPTION, "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"),
        (CLIP, "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"),
    ):
        assert published.identity(digest, "none").figure("fid", "fd") == "fid"
        assert published.identity("0" * 64, "none").figure("fid", "fd") == f"fd_{published.slug}_00000000"


@pytest.mark.parametrize("network", [InceptionFeatures, ClipFeatures, LpipsNetwork])
def test_missing_truncated_and_foreign_files_are_refused(network: type, inception_file: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cannot be read"):
        network(tmp_path / "nowhere.pth")
    for content in (b"broken", b"hello", b"junk", b"test", b""):  # each makes the unpickler raise another error
        (tmp_path / "no-weights.pth").write_bytes(content)
        with pytest.raises(WeightsError, match="not a readable file"):
            network(tmp_path / "no-weights.pth")
    truncated = tmp_path / "truncated.pth"
    truncated.write_bytes(inception_file.read_bytes()[:100_000])
    with pytest.raises(WeightsError, match="not a readable file"):
        network(truncated)
    foreign = tmp_path / "foreign.pth"
    torch.save({"features.0.weight": torch.zeros(3)}, foreign)
    with pytest.raises(WeightsError, match=r"layout|TorchScript"):
        network(foreign)


def test_lpips_trunk_in_torchvision_layout_gives_the_lpips_package_figure(tmp_path: Path) -> None:
    """The same trunk put into lpips.LPIPS by hand measures the same distance: every layer lands in its place."""
    ensure_torchvision_importable()
    from torchvision.models import alexnet

    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        torch.manual_seed(1)
        trunk = alexnet(weights=None).features.to_empty(device="cpu")  # without its hidden layers, which nobody reads
        for layer in trunk:
            if isinstance(layer, nn.Conv2d):
                layer.reset_parameters()
    path = tmp_path / "alexnet.pth"
    torch.save({f"features.{name}": value for name, value in trunk.state_dict().items()}, path)
    network = LpipsNetwork(path)
    import lpips

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # lpips calls torchvision as older releases wanted it
        reference = lpips.LPIPS(net="alex", version="0.1", pnet_rand=True, verbose=False)
    for name, layers in (("slice1", (0,)), ("slice2", (3,)), ("slice3", (6,)), ("slice4", (8,)), ("slice5", (10,))):
        for layer in layers:
            reference.get_submodule(f"net.{name}.{layer}").load_state_dict(trunk[layer].state_dict())
    pictures = noise_pictures(2, 64)
    scaled = pictures.float() / 127.5 - 1
    expected = reference(scaled[:1], scaled[1:]).flatten()
    assert network(pictures[:1], pictures[1:]).item() == pytest.approx(expected.item(), rel=1e-6)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert network.identity.weights_sha256 == digest
    assert network.identity.figure("lpips", "pd") == f"pd_alexnet_{digest[:8]}"
    with pytest.raises(ValueError, match="at least 32 pixels a side, not 16x16"):
        network(noise_pictures(1, 16), noise_pictures(1, 16))
    heads = torch.load(Path(lpips.__file__).parent / "weights/v0.1/alex.pth", map_location="cpu", weights_only=True)
    own = network.network.state_dict()
    assert len(heads) == 5
    assert all(torch.equal(own[name], value) for name, value in heads.items())


def test_lpips_with_vgg16_gives_the_lpips_package_figure(vgg16_file: Path) -> None:
    import lpips

    network = LpipsNetwork(vgg16_file, net="vgg")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        reference = lpips.LPIPS(net="vgg", version="0.1", pnet_rand=True, verbose=False)
    trunk = torch.load(vgg16_file, weights_only=True)
    for name, parameter in reference.net.named_parameters():  # slice3.12.weight
        _, number, kind = name.split(".")
        parameter.data.copy_(trunk[f"features.{number}.{kind}"])
    a, b = noise_pictures(2, 48).split(1)
    expected = reference(a / 127.5 - 1, b / 127.5 - 1).item()
    assert expected > 0
    assert network(a, b).item() == pytest.approx(expected, rel=1e-6)
    assert network.identity.slug == f"vgg16_{network.identity.weights_sha256[:8]}"


def test_the_operators_are_declared_once_and_torchvision_works() -> None:
    ensure_torchvision_importable()
    ensure_torchvision_importable()
    import torchvision

    assert hasattr(torch.ops.torchvision, "nms")
    assert torchvision.__version__
