"""Bad inputs in one table: each gets its one line, with what is wrong in it, and none a traceback."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from piti.cli import app
from piti.config.presets import PRESETS
from piti.settings import Settings

DEMO: dict[str, Any] = yaml.safe_load((PRESETS / "demo.yaml").read_text())
LONG = "x" * 5000

# `piti config show FILE`: what the file holds, and what the line says.
FILES: list[tuple[bytes, str]] = [
    (b"", "must hold a mapping of config keys, not NoneType"),
    (b"demo", "not str"),
    (b"- demo", "not list"),
    (b"42", "not int"),
    (b"a: [", "not valid YAML (line 1, column 5)"),
    (b"a: b: c", "not valid YAML (line 1, column 5)"),
    (b"\tname: x", "not valid YAML (line 1, column 1)"),
    (b"a: *nowhere", "not valid YAML"),
    (b"a: !!python/object/apply:os.system [id]", "not valid YAML"),
    (b"a: !secret x", "not valid YAML"),
    (b"a: 2026-13-45", "not valid YAML"),
    (b"a: 1\n--- \nb: 2", "not valid YAML"),
    (b"\xff\xfe", "not valid YAML"),
    (b"\x00\x01", "not valid YAML"),
    (b"[" * 20000, "not valid YAML"),
    (b"#" * (2 << 20), "too large for a config"),
    (b"name: x", "lacks root, data, training"),
    (b"root:x:0:0:root:/root:/bin/bash", "not str"),
    (b"services: {web: {image: x}}", "lacks name, root, data, training"),
    (yaml.safe_dump({**DEMO, "data": None}).encode(), "data: Input should be a valid dictionary"),
    (yaml.safe_dump({**DEMO, "data": []}).encode(), "data: Input should be a valid dictionary"),
    (yaml.safe_dump({**DEMO, 7: 1}).encode(), "7"),
    (yaml.safe_dump({**DEMO, "seeed": 1}).encode(), "did you mean 'seed'"),
    (b"a: &a [x, x, x, x, x, x, x, x, x]\n" + b"".join(
        b"%c: &%c [%s]\n" % (97 + n, 97 + n, b", ".join([b"*%c" % (96 + n)] * 9)) for n in range(1, 8)
    ) + b"name: x\nroot: x\ndata: {}\ntraining: {}\n", "too many values"),
    (b"name: x\nroot: x\ndata: &d {d: *d}\ntraining: {}\n", "nested too deeply"),
]  # fmt: skip

# `piti config show demo --set ...`
OVERRIDES: list[tuple[str, str]] = [
    ("seed", "key=value"),
    ("=1", "key=value"),
    ("", "key=value"),
    ("seed=", "seed: Input should be a valid integer"),
    ("seed=often", "seed: Input should be a valid integer"),
    ("seed=-1", "greater than or equal to 0"),
    ("seed=1.5", "seed: Input should be a valid integer"),
    ("seed=[1]", "(got [1])"),
    ("seed=[1", "not valid YAML"),
    ("seed=2026-13-45", "not valid YAML"),
    ("seed=2026-01-01", "quote it"),
    ("seed=.nan", "not finite"),
    ("seed=!!binary aGk=", "quote it"),
    (f"seed={LONG}", "..."),
    ("seed=$HOME", "$HOME, which configs may not use"),
    ("seed=${HOME}", "$HOME, which configs may not use"),
    ("root=$PITI_ROOT/x", "$PITI_ROOT, which is not set"),
    ("root=${}", "which configs may not use"),
    ("root=", "root: Input should be a valid string"),
    ("root=''", "root: String should have at least 1 character"),
    ("root=7", "root: Input should be a valid string"),
    ("root=http://example.com/x", "only local paths and s3://"),
    ("root=https://example.com/x", "only local paths and s3://"),
    ("root=ftp://example.com/x", "only local paths and s3://"),
    ("root=simplecache::s3://bucket/x", "only local paths and s3://"),
    ("root=s3://bucket::http://example.com", "only local paths and s3://"),
    ("root=ssh://host/x", "only local paths and s3://"),
    ("root=s3://key:word@bucket/x", "holds a user's password or token"),
    ("root=s3://bucket/x?X-Amz-Signature=abc", "holds a user's password or token"),
    ('root="a\\nb"', "root: String should match pattern"),
    ('root="a\\0b"', "root: String should match pattern"),
    ("name=", "name: Input should be a valid string"),
    ("name=My Run", "name: String should match pattern"),
    ("name=../escape", "name: String should match pattern"),
    ("name.x=1", "'name' is a value"),
    ("nmae=x", "did you mean 'name'"),
    ("=x=1", "key=value"),
    (".=1", "unknown key"),
    ("a..b=1", "unknown key"),
    ("training.stage2=fast", "training.stage2: Input should be a valid dictionary"),
    ("training.stage2.phases=[]", "at least 1 item"),
    ("training.stage2.phases.9.steps=1", "'9' is not one of the positions"),
    ("training.stage2.phases.-1.steps=1", "'-1' is not one of the positions"),
    ("training.stage2.phases.first.steps=1", "'first' is not one of the positions"),
    ("training.stage2.phases.².steps=1", "'²' is not one of the positions"),
    ("training.stage2.phases.0.steps=0", "greater than 0"),
    ("training.stage2.phases.0.learning_rate=0", "greater than 0"),
    ("training.stage2.phases.0.learning_rate=fast", "valid number"),
    ("training.stage2.phases.0.condition_dropout=1.5", "less than or equal to 1"),
    ("training.stage2.batch_size=0", "greater than 0"),
    ("cluster.num_workers={min: 4, max: 2}", "min 4 is larger than max 2"),
    ("training.stage1.batch_sise=3", "did you mean 'training.stage1.batch_size'"),
    ("training.stage1.precision=fp16", "'fp32', 'tf32' or 'bf16'"),
    ("pretrained.base=null", "give pretrained.base"),
    ("models.base.model_channels=33", "must be divisible by 32"),
    ("models.base.image_size=33", "must be"),
    ("models.base.condition_size=100", "condition_size"),
    ("models.base.channel_mult=[]", "models.base"),
    ("models.base.dropout=2", "less than or equal to 1"),
    ("models.upsampler.super_resolution=false", "super_resolution"),
    ("data.modality=video", "data.modality"),
    ("data.num_classes=null", "num_classes is required"),
    ("data.image_size=0", "greater than 0"),
    ("data.source.kind=imagenet", "kind"),
    ("data.source=7", "data.source"),
    ("data.source.train_crop=1", "did you mean 'data.source.train_crops'"),
    ("data.samples_per_shard=-1", "greater than 0"),
    ("data.max_rejected_share=-0.1", "greater than or equal to 0"),
    ("sampling.guidance_scale=much", "valid number"),
    ("sampling.guidance_scale=-1", "greater than or equal to 0"),
    ("sampling.base_sampler=euler", "'ddpm', 'ddim'"),
    ("sampling.base_respacing=250", "valid string"),
    ("sampling.base_respacing=fast", "cannot read the respacing: give a number of steps"),
    ("sampling.base_respacing=ddim", "cannot read the respacing"),
    ("sampling.upsampler_respacing='10,,3'", "cannot read the respacing"),
    ("sampling.upsampler_respacing='-5'", "cannot read the respacing"),
    ("sampling.upsampler_respacing=logsnr٣", "cannot read the respacing"),
    (f"sampling.upsampler_respacing='{'9' * 5000}'", "cannot read the respacing"),
    ("sampling.batch_size=1000", "larger than pictures_per_part"),
    ("cluster.num_workers=0", "greater than 0"),
    ("cluster.use_gpu=perhaps", "valid boolean"),
    ("evaluation.inception=weights.pth", "evaluation.inception"),
    ("evaluation.inception={path: x, sha256: abc}", "evaluation.inception.sha256"),
    ("pretrained.base.path=http://169.254.169.254/latest", "only local paths and s3://"),
    ("evaluation.inception.path=zip::http://x/y", "only local paths and s3://"),
    ("pretrained.base.path=7", "pretrained.base.path: Input should be a valid string"),
]  # fmt: skip

# Whole command lines; `{tmp}` is an empty folder.
COMMANDS: list[tuple[str, str]] = [
    ("config show dmeo", "did you mean 'demo'"),
    ("config show Demo", "did you mean 'demo'"),
    ("config show nowhere/mine.yaml", "there is no config file"),
    ("config show {tmp}/mine.yaml", "there is no config file"),
    ("config show {tmp}/", "is not a file"),
    ("config show /dev/zero", "is not a file"),
    ("config show /etc/passwd/x.yaml", "cannot be read"),
    ("config show ~nobody-of-that-name/mine.yaml", "there is no config file"),
    (f"config show {LONG}.yaml", "cannot be read"),
    ("config show http://127.0.0.1:9/mine.yaml", "only local paths and s3://"),
    ("config show file::http://127.0.0.1:9/mine.yaml", "only local paths and s3://"),
    ("config show github://someone/project/mine.yaml", "only local paths and s3://"),
    ("config show github://someone:project@/mine.yaml", "an argument holds a user's password or token"),
    ("run evaluate -p checkpoints=[s3://key:wo/rd@bucket/x]", "an argument holds a user's password or token"),
    ("translate s3://key:wo/rd@bucket/x sketch.png", "an argument holds a user's password or token"),
    ("runs ls https://ghp_abc@host", "an argument holds a user's password or token"),
    ("shards verify s3://bucket/x?X-Amz-Signature=abc", "an argument holds a user's password or token"),
    ("config show nothing://x/mine.yaml", "only local paths and s3://"),
    ("doctor --config dmeo", "did you mean 'demo'"),
    ("checkpoints inspect {tmp}", "{tmp}"),
    ("checkpoints inspect /nowhere/base.pt", "/nowhere/base.pt"),
    ("checkpoints import /nowhere/base.pt {tmp}/out --config dmeo", "did you mean 'demo'"),
    ("checkpoints import /nowhere/base.pt {tmp}/out --config demo", "/nowhere/base.pt"),
    ("checkpoints export /nowhere/step-1 {tmp}/out.pt --config demo", "/nowhere/step-1"),
    ("shards verify /nowhere/shards", "/nowhere/shards"),
    ("run full-train", "piti up"),
    ("run nothing", "piti up"),
    ("run full-train -p start_from", "piti up"),
    ("open", "`piti up` starts the stack"),
]  # fmt: skip

# The environment of `piti up`: it must not come to anything being started.
ENVIRONMENTS: list[tuple[dict[str, str], str]] = [
    ({"PITI_START_TIMEOUT_SECONDS": "soon"}, "PITI_START_TIMEOUT_SECONDS is 'soon'"),
    ({"PITI_START_TIMEOUT_SECONDS": "-1"}, "greater than 0"),
    ({"PITI_START_TIMEOUT_SECONDS": "inf"}, "finite"),
    ({"PITI_JOB_STOP_SECONDS": "0"}, "PITI_JOB_STOP_SECONDS is '0'"),
    ({"PITI_RAY_PATIENCE_SECONDS": "x"}, "PITI_RAY_PATIENCE_SECONDS is 'x'"),
    ({"PITI_OBJECT_STORE_MEGABYTES": "1"}, "greater than or equal to 100"),
    ({"PITI_OBJECT_STORE_MEGABYTES": "1.5"}, "PITI_OBJECT_STORE_MEGABYTES is '1.5'"),
    ({"PITI_RAY_JOBS_URL": "127.0.0.1:8265"}, "PITI_RAY_JOBS_URL is '127.0.0.1:8265'"),
    (
        {"PITI_RAY_JOBS_URL": "https://me:hush@ray.example.com"},
        "PITI_RAY_JOBS_URL: a user's password or token stands in it",
    ),
    ({"PITI_RAY_JOBS_URL": "me:hush@ray.example.com"}, "PITI_RAY_JOBS_URL: String should match"),
    (
        {"PITI_REPORTS_URL": "https://example.com/?token=hush"},
        "PITI_REPORTS_URL: a user's password or token stands in it",
    ),
    ({"PITI_HOME": "{tmp}/file"}, "set PITI_HOME to another folder"),
    ({"PITI_HOME": "{tmp}/file/below"}, "set PITI_HOME to another folder"),
    ({"PITI_HOME": "/proc/piti"}, "set PITI_HOME to another folder"),
    ({"PITI_HOME": "{tmp}/" + LONG}, "set PITI_HOME to another folder"),
    ({"PITI_HOME": "{tmp}/lock-is-a-folder"}, "stack.lock"),
    ({"PITI_HOME": "{tmp}/record-is-damaged"}, "stack.json"),
    ({"PITI_HOME": "{tmp}/record-is-of-another-version"}, "stack.json"),
    ({"PITI_HOME": "{tmp}/token-is-a-folder"}, "ray-token"),
    ({"PITI_HOME": "{tmp}/password-is-a-folder"}, "prefect-auth"),
    ({"PITI_HOME": "{tmp}/prefect-is-a-file"}, "prefect"),
    ({"PITI_HOME": "{tmp}/log-is-a-folder"}, "prefect.log"),
    ({"PITI_HOME": "{tmp}/logs-is-a-file"}, "logs"),
]


@pytest.fixture(autouse=True)
def empty_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's stack is in sight, no server answers, and no variable of ours is set."""
    for name in list(os.environ):
        if name.startswith("PITI_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PITI_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))


def line_of(*arguments: str) -> str:
    """What the command `piti` says on stderr, which must be one line and its exit code 1."""
    answer = CliRunner().invoke(app, list(arguments))
    assert answer.exit_code == 1, answer.output
    assert isinstance(answer.exception, SystemExit), repr(answer.exception)
    (line,) = answer.stderr.splitlines()
    assert line.startswith("piti: ")
    assert len(line) < 12_000, "also where the input is long"
    return line


def test_the_table_is_long() -> None:
    assert len(FILES) + len(OVERRIDES) + len(COMMANDS) + len(ENVIRONMENTS) > 120


@pytest.mark.parametrize(("content", "says"), FILES, ids=itertools.count())
def test_config_files(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "mine.yaml").write_bytes(content)
    assert says in line_of("config", "show", str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize(("assignment", "says"), OVERRIDES, ids=itertools.count())
def test_overrides(assignment: str, says: str) -> None:
    assert says in line_of("config", "show", "demo", f"--set={assignment}")


@pytest.mark.parametrize(("command", "says"), COMMANDS, ids=itertools.count())
def test_commands(tmp_path: Path, command: str, says: str) -> None:
    line = line_of(*(word.replace("{tmp}", str(tmp_path)) for word in command.split()))
    assert says.replace("{tmp}", str(tmp_path)) in line


@pytest.mark.parametrize(("environment", "says"), ENVIRONMENTS, ids=itertools.count())
def test_environments_of_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], says: str
) -> None:
    (tmp_path / "file").touch()
    for folder in ("lock-is-a-folder/stack.lock", "token-is-a-folder/ray-token", "password-is-a-folder/prefect-auth"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "log-is-a-folder" / "logs" / "prefect.log").mkdir(parents=True)
    files = {
        "record-is-damaged/stack.json": "{half",
        "record-is-of-another-version/stack.json": '{"id": "x"}',
        "prefect-is-a-file/prefect": "",
        "logs-is-a-file/logs": "",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(content)
    for name, value in environment.items():
        monkeypatch.setenv(name, value.replace("{tmp}", str(tmp_path)))
    line = line_of("up", "--free-ports")
    assert says in line
    assert "hush" not in line, "a password"
    if "PITI_HOME" not in environment:
        assert not (tmp_path / "home").exists(), "found before anything is made"


def test_a_wrong_password_is_said_to_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that answers its health check to everybody, and nothing else to those without the password."""
    from tests.unit.cli.test_cli_run import server

    with server([(200, True), (401, {"exception_message": "Unauthorized"})]) as (api, _):
        monkeypatch.setenv("PREFECT_API_URL", api)
        assert "asks for a password" in line_of("run", "prepare")


def test_a_user_without_a_home_folder_gets_a_temporary_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from piti import settings as module

    monkeypatch.delenv("PITI_HOME")
    monkeypatch.setattr(module, "PROJECT", Path("/nowhere"))  # as after `pip install` of the wheel
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert Settings().home == Path("/state/piti")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setattr(module.platformdirs, "user_state_path", lambda name: Path("~/.local/state") / name)
    assert Settings().home == Path(module.tempfile.gettempdir()) / f"piti-{os.getuid()}"
