"""The cascade: a picture depends on its key, variant and seed, never on what is drawn beside it."""

import shutil
import tarfile
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from piti import storage
from piti.config import Config
from piti.data.conditions import condition_picture, unit_range
from piti.data.examples import ExampleReader
from piti.data.resizing import base_pictures
from piti.errors import CheckpointError, DataError
from piti.evaluation import cascade
from piti.evaluation.cascade import Cascade, Order, picture_seed
from piti.evaluation.evaluation_plan import EvaluationPlan
from piti.evaluation.picture_sets import SET_NAMES, Part, PictureSet, plan_parts, write_pictures
from piti.evaluation.targets import Network, make_target
from piti.models import PITIModel
from piti.models.checkpoints import load_model
from piti.models.pretrained import export_piti
from piti.plan import Plan
from tests.unit.jobs.conftest import with_pictures


def with_sampling(config: Config, **sampling: object) -> Config:
    return config.model_copy(update={"sampling": config.sampling.model_copy(update=sampling)})


def drawn(config: Config, inputs: dict[str, str], folder: Path, part: Part) -> dict[str, PictureSet]:
    """The sets that drawing a part adds to, by name."""
    Cascade(config, with_pictures(inputs, str(folder))).draw_part(part)
    return {name: PictureSet(str(folder / name)) for name in SET_NAMES if (folder / name).exists()}


def differ(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b).max())


@pytest.mark.parametrize("sampler", ["ddpm", "dpm++"])
def test_batch_size_changes_no_picture(
    small_config: Config, small_inputs: dict[str, str], tmp_path: Path, sampler: str
) -> None:
    """One at a time, four together, or two among other workers' pictures: the same, within a level for float rounding."""
    settings = {"base_sampler": sampler, "upsampler_sampler": sampler}
    part = Part("final", 0, 5)
    one = drawn(with_sampling(small_config, batch_size=1, **settings), small_inputs, tmp_path / "one", part)
    four = drawn(with_sampling(small_config, batch_size=4, **settings), small_inputs, tmp_path / "four", part)
    assert one["final"].keys == four["final"].keys
    assert len(one["final"]) == 5
    for product in ("base", "final"):
        for key in one[product].keys:
            assert differ(one[product].picture(key), four[product].picture(key)) <= 1
    first, second = (one["final"].picture(key) for key in one["final"].keys[:2])
    assert differ(first, second) > 20
    cut = drawn(with_sampling(small_config, **settings), small_inputs, tmp_path / "cut", Part("final", 2, 4))
    assert cut["base"].keys == four["base"].keys[2:4]
    for key in cut["base"].keys:
        assert differ(cut["final"].picture(key), four["final"].picture(key)) <= 1


def test_stages_begin_from_the_same_noise_and_variants_do_not(
    small_config: Config, small_inputs: dict[str, str], tmp_path: Path
) -> None:
    """Given the same network as stage 1 and as checkpoint, both sets are equal; variants and seeds of the config differ."""
    inputs = small_inputs | {"stage1": small_inputs["checkpoint"]}
    base = drawn(small_config, inputs, tmp_path, Part("final", 0, 2))
    stage1 = drawn(small_config, inputs, tmp_path, Part("stage1", 0, 2))["stage1"]
    untrained = drawn(small_config, inputs, tmp_path, Part("untrained", 0, 2))["untrained"]
    diversity = drawn(small_config, inputs, tmp_path, Part("diversity", 0, 2, (1, 2)))["diversity"]
    for key in base["base"].keys:
        assert np.array_equal(base["base"].picture(key), stage1.picture(key))
        assert not np.array_equal(base["base"].picture(key), untrained.picture(key))
        first, second = diversity.variants(key)
        assert differ(first, second) > 20
        assert differ(first, base["final"].picture(key)) > 20
    reseeded = small_config.model_copy(update={"seed": 1})
    other = drawn(reseeded, small_inputs, tmp_path / "1", Part("final", 0, 2))["final"]
    for key in other.keys:
        assert differ(other.picture(key), base["final"].picture(key)) > 20


def test_seeds_are_distinct_and_fixed_for_ever() -> None:
    """A report's seeds must mean the same next year: the first one is written down here."""
    seeds = {
        picture_seed(seed, key, variant, network)
        for seed in (0, 1)
        for key in ("a", "b")
        for variant in (0, 1)
        for network in ("base", "upsampler")
    }
    assert len(seeds) == 16
    assert picture_seed(0, "astronaut") == 12540975395194514670


def test_parts_cover_every_picture_once_and_ignore_batch_size(small_config: Config) -> None:
    config = with_sampling(small_config, num_samples=70, diversity_conditions=70, diversity_samples=3)
    for name, variants in (("final", 1), ("stage1", 1), ("diversity", 3)):
        parts = plan_parts(config, name, 90)
        assert parts == plan_parts(with_sampling(config, batch_size=1), name, 90)
        assert [number for part in parts for number in range(part.first, part.last)] == list(range(70))
        assert sum(part.num_pictures for part in parts) == 70 * variants
        assert max(part.num_pictures for part in parts) <= 32


def test_more_pictures_are_what_is_not_there_yet(small_config: Config) -> None:
    """100 were drawn in parts of 64, one of their tars was lost; now 150 are wanted, in parts of 50."""
    config = with_sampling(small_config, num_samples=150, pictures_per_part=50)
    parts = plan_parts(config, "final", 1000, drawn=[range(64, 100)])
    assert [(part.first, part.last) for part in parts] == [(0, 50), (50, 64), (100, 150)]
    assert plan_parts(config, "final", 1000, drawn=[range(64), range(50, 150)]) == []


def test_the_upsampler_takes_the_base_pictures_that_are_there(
    small_config: Config, small_inputs: dict[str, str], tmp_path: Path
) -> None:
    """The same final pictures, byte for byte, without the base network: it could not even be opened."""
    part = Part("final", 0, 4)
    first = drawn(small_config, small_inputs, tmp_path / "first", part)
    shutil.copytree(tmp_path / "first" / "base", tmp_path / "again" / "base")
    again = drawn(small_config, small_inputs | {"checkpoint": "/nowhere"}, tmp_path / "again", part)
    assert again["final"].digest(again["final"].keys) == first["final"].digest(first["final"].keys)
    assert again["final"].about(again["final"].keys[0])["base"]["uri"] == small_inputs["checkpoint"]


def test_the_base_draws_the_next_batch_while_the_upsampler_has_this_one(
    small_config: Config, small_inputs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, in threads: every upsampled batch waits here until the base has begun the next one.

    The pictures are those drawn one after the other, byte for byte, and nothing is drawn two batches ahead.
    """
    config = with_sampling(small_config, batch_size=2)
    part = Part("final", 0, 6)
    plain = drawn(config, small_inputs, tmp_path / "plain", part)
    begun, used = 0, 0
    changed = threading.Condition()
    draw_base, draw_upsampled = cascade.draw_base, cascade.draw_upsampled

    def base(model: PITIModel, orders: Sequence[Order], config: Config) -> torch.Tensor:
        nonlocal begun
        with changed:
            begun += 1
            assert begun <= used + 2
            changed.notify_all()
        return draw_base(model, orders, config)

    def upsampled(model: PITIModel, orders: Sequence[Order], low_res: torch.Tensor, config: Config) -> torch.Tensor:
        nonlocal used
        with changed:
            assert changed.wait_for(lambda: begun == min(used + 2, 3), timeout=60), "the next batch was not begun"
        pictures = draw_upsampled(model, orders, low_res, config)
        used += 1
        return pictures

    monkeypatch.setattr(cascade, "draw_base", base)
    monkeypatch.setattr(cascade, "draw_upsampled", upsampled)
    Cascade(config, with_pictures(small_inputs, str(tmp_path / "ahead")), pipelined=True).draw_part(part)
    assert (begun, used) == (3, 3)
    for name in ("base", "final"):
        ahead = PictureSet(str(tmp_path / "ahead" / name))
        assert ahead.digest(ahead.keys) == plain[name].digest(plain[name].keys)


def test_remote_weights_are_targets_that_draw_as_the_local_ones(
    small_config: Config, small_inputs: dict[str, str], tmp_path: Path, bucket: str
) -> None:
    """A file of weights in PITI's layout and a checkpoint folder in a bucket, with picture sets there too: the same hashes
    and pictures.
    """
    local, config = small_inputs["upsampler"], small_config.model_copy(update={"root": f"{bucket}/project"})
    folder = f"{bucket}/runs/upsampler/{storage.name(local)}"
    for name in storage.list_names(local):
        storage.write_bytes(f"{folder}/{name}", storage.read_bytes(f"{local}/{name}"))
    file = str(tmp_path / "base.pt")
    export_piti(load_model(small_inputs["checkpoint"], small_config.models.base), file)
    storage.write_bytes(f"{bucket}/base.pt", storage.read_bytes(file))
    target = make_target(Plan(config), f"{bucket}/base.pt", folder)
    assert target.base.sha256 == {"file": storage.sha256_file(file)}
    assert target.upsampler.sha256 == Network.at(local).sha256
    assert EvaluationPlan(Plan(config), target).sets["final"].folder.startswith(f"{bucket}/project/pictures/")
    part = Part("final", 0, 2)
    ours = drawn(small_config, small_inputs, tmp_path / "ours", part)["final"]
    inputs = small_inputs | {"checkpoint": target.base.uri, "upsampler": target.upsampler.uri}
    Cascade(config, with_pictures(inputs, f"{bucket}/pictures")).draw_part(part)
    remote = PictureSet(f"{bucket}/pictures/final")
    assert remote.digest(remote.keys) == ours.digest(ours.keys)
    assert remote.about(remote.keys[0])["base"]["loaded"] == "model"


def test_a_tar_holds_picture_condition_and_settings(
    small_config: Config, small_inputs: dict[str, str], tmp_path: Path
) -> None:
    """In groups of one key, as WebDataset reads them."""
    pictures = drawn(small_config, small_inputs, tmp_path, Part("diversity", 0, 2, (1, 2)))["diversity"]
    with tarfile.open(tmp_path / "diversity" / "000000-000002.tar") as archive:
        names = archive.getnames()
        conditions = [archive.extractfile(name) for name in names if name.endswith(".condition.png")]
        shown = [np.asarray(Image.open(stream)) for stream in conditions if stream is not None]
    assert names == [f"{key}.{rest}" for key in pictures.keys for rest in ("condition.png", "json", "1.png", "2.png")]
    truths = ExampleReader(small_inputs["shards"], "validation", small_config.data, None, small_config.scale)
    wanted = [condition_picture(truths.example(number, None).condition.numpy(), "sketch") for number in range(2)]
    assert np.array_equal(shown, wanted)
    about = pictures.about(pictures.keys[0])
    assert about["guidance"] == {"scale": 1.5, "normalized": True}
    assert about["upsampler"]["uri"] == small_inputs["upsampler"]


def test_pictures_come_back_as_they_were_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = {name: rng.integers(0, 256, (5, 4, 3), dtype=np.uint8) for name in ("b", "a.1", "a.2", "c.10", "c.2")}
    write_pictures(str(tmp_path / "000000-000003.tar"), pictures)
    found = PictureSet(str(tmp_path))
    assert found.keys == ["b", "a", "c"]
    assert np.array_equal(found.picture("b"), pictures["b"])
    assert np.array_equal(found.variants("c"), np.stack([pictures["c.2"], pictures["c.10"]]))
    assert len(PictureSet(str(tmp_path), range(3, 9))) == len(PictureSet(None)) == 0


def test_a_damaged_tar_is_named(tmp_path: Path) -> None:
    (tmp_path / "000000-000003.tar").write_bytes(b"not a tar" * 200)
    with pytest.raises(DataError, match=r"000000-000003\.tar is damaged"):
        PictureSet(str(tmp_path))


@pytest.mark.parametrize("network", ["checkpoint", "upsampler"])
def test_numbers_that_are_not_finite_are_no_picture(
    small_config: Config, small_inputs: dict[str, str], tmp_path: Path, network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that are finite, and overflow when they are used: they would have drawn black."""

    def load(uri: str, *arguments: object) -> PITIModel:
        model = load_model(uri, *arguments)  # type: ignore[arg-type]
        if uri == small_inputs[network]:
            for weights in model.parameters():
                weights.data.mul_(1e30)
        return model

    monkeypatch.setattr(cascade, "load_model", load)
    role = "base" if network == "checkpoint" else "upsampler"
    with pytest.raises(CheckpointError, match=f"the {role} network draws numbers that are not finite, for .+ first - "):
        drawn(small_config, small_inputs, tmp_path, Part("final", 0, 2))
    assert not list(tmp_path.glob("*/*.tar"))


def test_a_missing_checkpoint_is_named_and_leaves_nothing(
    small_config: Config, small_inputs: dict[str, str], tmp_path: Path
) -> None:
    inputs = small_inputs | {"checkpoint": str(tmp_path / "nowhere")}
    with pytest.raises(CheckpointError, match="nowhere"):
        drawn(small_config, inputs, tmp_path / "out", Part("final", 0, 2))
    assert not (tmp_path / "out").exists()


def test_the_upsampler_alone_begins_from_the_truth(
    small_config: Config, small_inputs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were the base network perfect, the cascade's pictures would be the set `upsampled`, within a level."""
    upsampled = drawn(small_config, small_inputs, tmp_path, Part("upsampled", 0, 3))["upsampled"]
    reader = ExampleReader(small_inputs["shards"], "validation", small_config.data, None, small_config.scale)
    truths = torch.stack([unit_range(reader.example(number, None).image) for number in range(3)])
    perfect = base_pictures(truths, small_config.models.base.image_size)
    monkeypatch.setattr(cascade, "draw_base", lambda *_: perfect)
    final = drawn(small_config, small_inputs, tmp_path, Part("final", 0, 3))["final"]
    assert upsampled.keys == final.keys
    for key in final.keys:
        assert differ(final.picture(key), upsampled.picture(key)) <= 1
