"""From stored conditions and pictures to rows of agreement, through networks in files and the sketches' own detector."""

import math
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eval.pictures import WeightsError
from eval.programs import Program
from piti import storage
from piti.config import SketchConfig
from piti.config.presets import load_config
from piti.data.conditions import StoredCondition, encode_depth, encode_normals
from piti.data.sketch import detect_sketch
from piti.errors import CheckpointError, ConfigError
from piti.evaluation.alignment import GeometryAligner, MaskAligner, SketchAligner, read_label_table
from piti.evaluation.networks import network_problems, open_aligner


class Brightness(nn.Module):
    """Two classes: dark and bright; given as scores at half the picture's size."""

    def forward(self, x: Tensor) -> Tensor:
        bright = nn.functional.avg_pool2d(x.mean(dim=1, keepdim=True), 2)
        return torch.cat([0.5 - bright, bright - 0.5], dim=1)


class RedDepth(nn.Module):
    """Depth is how red a picture is; all surfaces face the camera."""

    def forward(self, x: Tensor) -> Tensor:
        red = x[:, :1]
        return torch.cat([red, torch.zeros_like(red), torch.zeros_like(red), torch.ones_like(red)], dim=1)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Callable[[nn.Module], tuple[Path, str]]:
    """Puts a network into a TorchScript file; gives its path and sha256."""

    def store(network: nn.Module) -> tuple[Path, str]:
        path = tmp_path_factory.mktemp("programs") / "network.pt"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            torch.jit.save(torch.jit.trace(network, torch.rand(2, 3, 64, 64)), str(path))
        return path, storage.sha256_file(str(path))

    return store


def split_picture() -> np.ndarray:
    """64x64: dark above, bright below."""
    picture = np.zeros((64, 64, 3), dtype=np.uint8)
    picture[32:] = 250
    return picture


def test_label_maps_are_compared_through_the_table(
    stored: Callable[[nn.Module], tuple[Path, str]], tmp_path: Path
) -> None:
    """Classes 0 and 1 of the network are labels 7 and 3 of the data; of a half wrong map half the pixels agree."""
    program = Program(*stored(Brightness()), levels="unit")
    table = tmp_path / "labels.csv"
    table.write_text("network,label\n1,3\n0,7\n")
    aligner = MaskAligner(program, read_label_table(str(table)), 8)
    right = np.where(np.arange(64)[:, None] < 32, 7, 3).repeat(64, axis=1).astype(np.uint8)
    half = right.copy()
    half[:, 32:] = 255
    half[16:48, :32] = 7
    rows = aligner.rows([split_picture()] * 2, [StoredCondition(right), StoredCondition(half)])
    assert rows[0, 0, :, [3, 7]].tolist() == [[2048, 2048], [2048, 2048]]
    assert rows[1, 0, :, 7].tolist() == [32 * 32, 48 * 32]
    assert rows[1, 0, :, 3].tolist() == [16 * 32, 32 * 32]
    for words in (
        "label,network\n",
        "network,label\n1,2\n1,3\n",
        "network,label\n-1,3\n",
        "network,label\na,b\n",
        "x,y\n1,2\n",
    ):
        table.write_text(words)
        with pytest.raises(ConfigError, match="no table of labels"):
            read_label_table(str(table))


def test_geometry_is_compared_in_depth_order_and_angles(stored: Callable[[nn.Module], tuple[Path, str]]) -> None:
    program = Program(*stored(RedDepth()), levels="unit")
    metres = np.linspace(1, 20, 64)[:, None].repeat(64, axis=1)
    picture = np.zeros((64, 64, 3), dtype=np.uint8)
    picture[..., 0] = np.linspace(5, 250, 64)[:, None].astype(np.uint8)
    facing, tilted = np.zeros((64, 64, 3)), np.zeros((64, 64, 3))
    facing[..., 2] = 1
    tilted[..., 0], tilted[..., 2] = math.sin(math.radians(30)), math.cos(math.radians(30))
    condition = StoredCondition(encode_depth(metres), encode_normals(tilted))
    right = GeometryAligner(program, farther_is_higher=True).rows([picture], [condition])
    assert right[0] == pytest.approx([0, 30], abs=0.02)
    wrong = GeometryAligner(program, farther_is_higher=False).rows([picture], [StoredCondition(encode_depth(metres))])
    assert wrong[0, 0] == 1
    assert math.isnan(wrong[0, 1])


def test_sketches_are_compared_by_their_own_detector() -> None:
    """A photograph agrees with its own sketch wholly, another hardly."""
    from skimage import data

    photographs = [np.ascontiguousarray(getattr(data, name)()[:256, :256]) for name in ("astronaut", "coffee")]
    sketch = SketchConfig()
    conditions = [StoredCondition(detect_sketch(photograph, sketch)) for photograph in photographs]
    aligner = SketchAligner(sketch)
    assert aligner.rows(photographs, conditions).tolist() == [[1], [1]]
    assert (aligner.rows(photographs, conditions[::-1]) < 0.6).all()
    assert (aligner.slug, aligner.network, aligner.about["detector"]["name"]) == ("canny", None, "canny")


def test_a_program_is_opened_by_its_hash_only_and_must_fit(
    stored: Callable[[nn.Module], tuple[Path, str]], tmp_path: Path
) -> None:
    path, digest = stored(Brightness())
    with pytest.raises(WeightsError, match=f"has sha256 {digest}, expected 0000"):
        Program(path, "0" * 64)
    with pytest.raises(WeightsError, match=r"gives \(1, 2, 32, 32\), not depth"):
        GeometryAligner(Program(path, digest), farther_is_higher=True)
    exported = tmp_path / "nothing.pt2"
    exported.write_bytes(b"nothing")
    with pytest.raises(WeightsError, match=r"not a readable file of torch\.export"):
        Program(exported, storage.sha256_file(str(exported)))


class Overflowing(RedDepth):
    """Depth of bright pictures is not finite."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / (x.amax() < 0.5).float()


def test_numbers_that_are_not_finite_are_an_error(stored: Callable[[nn.Module], tuple[Path, str]]) -> None:
    """They would have counted as a wrong order of depths, and as an unknown normal."""
    aligner = GeometryAligner(Program(*stored(Overflowing()), levels="unit"), farther_is_higher=True)
    condition = StoredCondition(encode_depth(np.ones((64, 64))))
    with pytest.raises(CheckpointError, match=r"evaluation\.alignment\.network: .* not finite"):
        aligner.rows([split_picture()], [condition])


def test_programs_of_torch_export_run_too(tmp_path: Path) -> None:
    path = tmp_path / "network.pt2"
    shapes = {"x": {0: torch.export.Dim("pictures", min=1, max=64)}}
    torch.export.save(torch.export.export(Brightness(), (torch.rand(2, 3, 32, 32),), dynamic_shapes=shapes), path)
    program = Program(path, storage.sha256_file(str(path)), levels="unit", side=32)
    picture = torch.from_numpy(split_picture()).permute(2, 0, 1)[None]
    assert program(picture).argmax(dim=1)[0, :, 0].tolist() == [0] * 8 + [1] * 8
    assert program.identity.resize == "bilinear with antialiasing to 32x32"
    assert not program.identity.comparable


def test_preflight_names_what_does_not_fit(stored: Callable[[nn.Module], tuple[Path, str]], tmp_path: Path) -> None:
    path, digest = stored(RedDepth())  # four planes are scores of four classes, too
    fits = {"evaluation.alignment": {"network": {"path": str(path), "sha256": digest}}}
    assert network_problems(load_config("demo", fits)) == []
    assert open_aligner(load_config("demo", fits)) is not None
    assert open_aligner(load_config("demo")) is None
    small = {"evaluation.lpips_trunk": {"path": str(path)}}  # the demo's base draws 16x16
    assert any("LPIPS sees nothing below 32 pixels" in str(one) for one in network_problems(load_config("demo", small)))
    with pytest.raises(ConfigError, match="has no effect with sketches"):
        load_config("demo-sketch", fits)
    with pytest.raises(ConfigError, match=r"sha256"):
        load_config("demo", {"evaluation.alignment": {"network": {"path": str(path)}}})
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(path.read_bytes()[:500])
    refs = {"path": str(damaged), "sha256": storage.sha256_file(str(damaged))}
    (problem,) = network_problems(load_config("demo", {"evaluation.alignment": {"network": refs}}))
    assert isinstance(problem, CheckpointError)
    assert str(problem).startswith("evaluation.alignment.network: ")
