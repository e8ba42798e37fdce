"""The config tree finds every mistake before anything runs, and names the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from piti import storage
from piti.config import STAGES, Config, ModelConfig
from piti.config.presets import PRESETS, known_keys, load_config, preset_names
from piti.config.study import read_study
from piti.errors import ConfigError
from piti.settings import Settings


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_is_valid_and_named_after_its_file(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("PITI_DATA", "PITI_WEIGHTS", "PITI_ROOT"):
        monkeypatch.setenv(variable, "/somewhere")
    assert load_config(preset).name == preset


def whole_config(**changes: object) -> str:
    return yaml.safe_dump({**yaml.safe_load((PRESETS / "demo.yaml").read_text()), **changes})


def test_a_run_reads_presets_and_files_below_the_allowed_folders_only(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "mine.yaml").write_text(whole_config())
    (inside / "link.yaml").symlink_to(outside / "mine.yaml")
    folders = [str(inside)]
    assert load_config("demo", None, folders).name == "demo"
    assert load_config(str(PRESETS / "demo.yaml"), None, folders).name == "demo"
    assert load_config(str(inside / "mine.yaml"), None, folders).name == "demo"
    assert load_config(str(outside / "mine.yaml")).name == "demo", "one's own command reads any file"
    for path in (outside / "mine.yaml", inside / "link.yaml", inside / ".." / "outside" / "mine.yaml", "/nowhere.yaml"):
        with pytest.raises(ConfigError, match="outside of the folders"):
            load_config(str(path), None, folders)


@pytest.mark.parametrize("root", ["results", "memory://bucket/results"])
def test_a_run_reads_the_config_of_a_report(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`<root>/reports/.../config.yaml`, which the report's own command names, wherever PITI_ROOT lies."""
    root = root if "://" in root else str(tmp_path / root)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    config = storage.join(root, "reports/0123/config.yaml")
    storage.write_bytes(config, whole_config().encode())
    with pytest.raises(ConfigError, match="outside of the folders"):
        load_config(config, None, Settings().allowed_folders())
    monkeypatch.setenv("PITI_ROOT", root)
    assert load_config(config, None, Settings().allowed_folders()).name == "demo"
    monkeypatch.setenv("PITI_CONFIG_FOLDERS", "/elsewhere")
    assert load_config(config, None, Settings().allowed_folders()).name == "demo"


def test_a_run_reads_remote_files_below_listed_prefixes_only() -> None:
    folders = ["/here", "memory://bucket/configs", "s3://bucket/configs/"]
    for uri in (
        "memory://bucket/configs/mine.yaml",
        "memory://bucket/configs/a/mine.yaml",
        "memory://elsewhere/mine.yaml",
    ):
        storage.write_bytes(uri, whole_config().encode())
    assert load_config("memory://bucket/configs/mine.yaml", None, folders).name == "demo"
    assert load_config("memory://bucket/configs/a/mine.yaml", None, folders).name == "demo"
    assert load_config("memory://elsewhere/mine.yaml").name == "demo", "one's own command reads any file"
    for uri in (
        "memory://elsewhere/mine.yaml", "memory://bucket/configs-of-others/mine.yaml", "memory://bucket/configs/../mine.yaml",
        "memory://bucket/configs/%2e%2e/mine.yaml", "memory://bucket/configs", "s3://bucket/mine.yaml", "s3://bucket/configs/./../x.yaml",
        "gs://bucket/configs/mine.yaml", "s3://bucket/here/mine.yaml", "file:///elsewhere/mine.yaml",
    ):  # fmt: skip
        for read in (load_config, lambda uri, _, folders: read_study(uri, folders)):
            with pytest.raises(ConfigError, match="outside of the folders"):
                read(uri, None, folders)


def test_folders_with_credentials_are_not_repeated() -> None:
    with pytest.raises(ConfigError, match="PITI_CONFIG_FOLDERS or PITI_ROOT: 0 holds a user's password") as caught:
        load_config("/elsewhere/mine.yaml", None, ["s3://key:hunter2@bucket"])
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "content", ["hunter2: x\n", "hunter2\n", "- hunter2\n", "a: 'hunter2\nb: [", "name: hunter2\nroot: hunter2\n", "hunter2: 2026-99-99"]
)  # fmt: skip
def test_nothing_of_a_file_that_is_no_config_is_repeated(tmp_path: Path, content: str) -> None:
    (tmp_path / "secrets.yaml").write_text(content)
    whole = {"name": "x", "root": "/x", "data": {}, "training": {}}
    for overrides in (None, whole, {"name.x": 1}):
        with pytest.raises(ConfigError) as caught:
            load_config(str(tmp_path / "secrets.yaml"), overrides)
        assert "hunter2" not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        read_study(str(tmp_path / "secrets.yaml"), None)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("value", ["hunter2", "a\\hunter2", "a'hunter2", "a'\"hunter2", "a\nhunter2"])
@pytest.mark.parametrize(
    "overrides",
    [
        {"seed": "$PITI_DATA"},
        {"name": "$PITI_DATA!"},
        {"data.source.kind": "$PITI_DATA"},
        {"data.source": {"kind": "webdataset", "train": "x", "images": [".$PITI_DATA"]}},
        {"sampling.base_sampler": "unipc", "sampling.base_respacing": "${PITI_DATA}"},
        {"sampling.base_respacing": "$PITI_DATA"},
        {"sampling.upsampler_respacing": "10,$PITI_DATA"},
        {"training.stage1.phases": ["$PITI_DATA", 3]},
        {"root": "$PITI_DATA://bucket"},
    ],
)
def test_the_value_of_a_variable_never_reaches_an_error(
    overrides: dict[str, object], value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PITI_DATA", value)
    with pytest.raises(ConfigError) as caught:
        load_config("demo-sketch", overrides)
    assert "hunter2" not in str(caught.value)
    assert not isinstance(caught.value.__cause__, RecursionError)


def test_other_variables_of_the_environment_stay_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    for key in ("seed", "root"):
        with pytest.raises(ConfigError, match=r"\$AWS_SECRET_ACCESS_KEY, which configs may not use") as caught:
            load_config("demo-sketch", {key: "$AWS_SECRET_ACCESS_KEY"})
        assert "hunter2" not in str(caught.value)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("demo-sketch", {"seeed": 1, "data.image_sise": 3})
    assert "'seeed'" in str(caught.value)
    assert "'data.image_sise'" in str(caught.value)


def test_overrides_reach_lists_and_new_branches() -> None:
    config = load_config("demo-sketch", {"training.stage1.phases.1.steps": 7, "pretrained.base.path": "/w/base.pt"})
    assert config.training.stage1.phases[1].steps == 7
    assert config.pretrained.base is not None


def test_environment_variables_are_expanded_or_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PITI_ROOT", "/scratch")
    assert load_config("demo-sketch", {"root": "$PITI_ROOT/x"}).root == "/scratch/x"
    assert load_config("demo-sketch", {"root": "${PITI_ROOT}y"}).root == "/scratchy"
    monkeypatch.setenv("PITI_CONFIG_VARIABLES", "SCRATCH_FOLDER, NOT_SET_ANYWHERE")
    monkeypatch.setenv("SCRATCH_FOLDER", "/other")
    assert load_config("demo-sketch", {"root": "$SCRATCH_FOLDER/x"}).root == "/other/x"
    with pytest.raises(ConfigError, match="NOT_SET_ANYWHERE"):
        load_config("demo-sketch", {"root": "$NOT_SET_ANYWHERE/x"})


def test_relative_root_is_taken_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config("demo-sketch", {"root": "out"}).root == str(tmp_path / "out")


def test_phases_follow_each_other() -> None:
    stage = load_config(
        "demo-sketch", {"training.stage1.phases.0.steps": 3, "training.stage1.phases.1.steps": 2}
    ).training.stage1
    rates = [stage.phase_at(step).learning_rate for step in range(stage.total_steps)]
    assert rates == [stage.phases[0].learning_rate] * 3 + [stage.phases[1].learning_rate] * 2


def test_published_sizes() -> None:
    base, upsampler = ModelConfig.base(), ModelConfig.upsampler(condition_channels=1)
    assert (base.image_size, base.channel_mult, base.num_res_blocks) == (64, (1, 2, 3, 4), 3)
    assert (upsampler.image_size, upsampler.channel_mult, upsampler.num_res_blocks) == (256, (1, 1, 2, 2, 4, 4), 2)


@pytest.mark.parametrize("preset", ["ade20k-mask", "coco-mask", "coco-sketch", "diode-geometry", "flickr-sketch"])
def test_presets_of_datasets_have_the_published_settings(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("PITI_DATA", "PITI_WEIGHTS", "PITI_ROOT"):
        monkeypatch.setenv(variable, "/somewhere")
    config = load_config(preset)
    channels = config.models.base.condition_channels
    assert config.models.base == ModelConfig.base(channels)
    assert config.models.upsampler == ModelConfig.upsampler(channels)
    phases = [(phase.steps, phase.learning_rate, phase.condition_dropout) for phase in config.training.stage1.phases]
    assert phases == [(200_000, 3.5e-5, 0.0), (60_000, 2e-5, 0.2)]
    stage2, upsampler = config.training.stage2, config.training.upsampler
    assert (stage2.phases[0].learning_rate, stage2.batch_size, stage2.ema_rate) == (3.5e-5, 128, 0.9999)
    assert (upsampler.phases[0].learning_rate, upsampler.batch_size, upsampler.timestep_sampler) == (1e-5, 4, "uniform")
    assert (config.sampling.base_respacing, config.sampling.upsampler_respacing) == ("250", "fast27")
    assert [config.workers(stage).max for stage in ("stage1", "upsampler")] == [8, 4], "one worker a picture at most"


def test_presets_of_published_size_write_a_checkpoint_every_1000_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """In every stage of each: minutes of eight GPUs are lost by a crash, as docs/scaling.md reckons with."""
    for variable in ("PITI_DATA", "PITI_WEIGHTS", "PITI_ROOT"):
        monkeypatch.setenv(variable, "/somewhere")
    seen: dict[str, set[int]] = {}
    for preset in preset_names():
        config = load_config(preset)
        if config.models.base == ModelConfig.base(config.models.base.condition_channels):
            stages = [getattr(config.training, stage) for stage in STAGES]
            seen[preset] = {stage.checkpoint_every_steps for stage in stages if stage is not None}
    assert len(seen) >= 5, "presets of the datasets were not recognised: nothing is proved"
    assert set().union(*seen.values()) == {1000}, seen


def test_a_config_survives_json() -> None:
    config = load_config("demo-sketch")
    assert Config.model_validate(config.model_dump(mode="json")) == config


def test_known_keys_cover_what_the_demo_sets() -> None:
    known = set(known_keys())

    def leaves(tree: dict[str, object], prefix: str = "") -> set[str]:
        found: set[str] = set()
        for key, value in tree.items():
            found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key}
        return found

    assert leaves(yaml.safe_load((PRESETS / "demo.yaml").read_text())) <= known


def test_unipc_wants_its_spacing() -> None:
    with pytest.raises(ConfigError, match=r"unipc with base_respacing '250' overshoots.*logsnr50"):
        load_config("demo-sketch", {"sampling.base_sampler": "unipc", "sampling.base_respacing": "250"})
    load_config("demo-sketch", {"sampling.base_sampler": "unipc", "sampling.base_respacing": "logsnr50"})
