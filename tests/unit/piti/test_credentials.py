"""Passwords and tokens in addresses are found wherever they stand, and never repeated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from piti.config.presets import load_config
from piti.config.study import read_study
from piti.credentials import holds_credentials, refuse_credentials
from piti.errors import ConfigError, PitiError
from piti.evaluation.targets import Network

SECRETS = [
    "s3://AKIAIOSFODNN7EXAMPLE:hunter2@bucket/x",
    "s3://AKIAIOSFODNN7EXAMPLE:hunter2/K7MDENG/bPxRfiCYEXAMPLEKEY@bucket/x",  # as Amazon's documentation writes a key
    "s3://key:hunter2/a b@bucket/x",
    "s3://:hunter2@bucket",
    "S3://hunter2:@bucket",
    "https://hunter2_abc@host/project",
    "az://hunter2_abc@account.dfs.core.windows.net/x",
    "https://user:hunter2@host:5000/x",
    "see https://hunter2@host",
    "simplecache::s3://key:hunter2@bucket/x",
    "s3://bucket/x?X-Amz-Signature=hunter2",
    "s3://bucket/x?a=b&AWSAccessKeyId=hunter2",
    "https://host/x?sv=1&sig=hunter2",
    "https://host/x?key=hunter2",
    "https://host/x#access_token=hunter2",
    "https://host/x?password=hunter2",
]
HARMLESS = [
    "", "demo", "/data/x", "/data/me@home/x", "me@home.org", "file:///data/me@home/x", "s3://bucket/prefix/me@home:x", "s3://bucket",
    "http://127.0.0.1:5000", "http://mlflow:5000/path", "http://[::1]:5000/x", "gs://bucket/a:b@c", "piti://demo-base.safetensors",
    "abfs://container@account.dfs.core.windows.net/x", "az://my-data@account.blob.core.windows.net/x", "s3://bucket/x?versionId=3",
    "https://host/x?page=1", "Does guidance help? At 2:1, say: yes",
]  # fmt: skip


@pytest.mark.parametrize("secret", SECRETS)
def test_credentials_are_found(secret: str) -> None:
    assert holds_credentials(secret)


@pytest.mark.parametrize("address", HARMLESS)
def test_other_addresses_are_left_alone(address: str) -> None:
    assert not holds_credentials(address)


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("overrides", [
    lambda secret: {"root": secret},
    lambda secret: {"data.source": {"kind": "list", "path": secret}},
    lambda secret: {"data.source.images": ["a", secret]},
    lambda secret: {secret: 1},
    lambda secret: {f"name.{secret}": 1},
    lambda secret: {"data.source": {secret: 1}},
    lambda secret: {"root": f"${{{secret}}}"},
    lambda secret: {"tracking.mlflow": secret},
])  # fmt: skip
def test_overrides_hold_none(secret: str, overrides: Any) -> None:
    with pytest.raises(ConfigError, match="holds a user's password or token") as caught:
        load_config("demo-sketch", overrides(secret))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("secret", SECRETS)
def test_variables_of_configs_hold_none(secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for parts in ([secret], secret.partition("hunter2")[::2]):
        monkeypatch.setenv("PITI_ROOT", parts[0] if len(parts) == 1 else "hunter2")
        root = "$PITI_ROOT/x" if len(parts) == 1 else "${PITI_ROOT}".join(parts)
        with pytest.raises(ConfigError, match="root holds a user's password or token") as caught:
            load_config("demo-sketch", {"root": root})
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("secret", SECRETS)
def test_names_of_configs_studies_and_checkpoints_hold_none(secret: str) -> None:
    for read in (
        lambda: load_config(f"{secret}.yaml"),
        lambda: read_study(f"{secret}.yaml", None),
        lambda: Network.at(secret),
    ):
        with pytest.raises(PitiError, match="holds a user's password or token") as caught:
            read()
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("key", ["checkpoint", "upsampler", "config", "axis", "question"])
def test_studies_hold_none(secret: str, key: str, tmp_path: Path) -> None:
    study = {"name": "x", "question": "?", "config": "demo", "variants": [{"name": "a"}, {"name": "b"}], key: secret}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(study))
    with pytest.raises(ConfigError, match=f"{key} holds a user's password or token") as caught:
        read_study(str(tmp_path / "mine.yaml"), None)
    assert "hunter2" not in str(caught.value)


def test_circles_and_bombs_end() -> None:
    bomb: list[Any] = ["x"]
    for _ in range(100):
        bomb = [bomb] * 10
    circle: dict[str, Any] = {"bomb": bomb}
    circle["circle"] = circle
    refuse_credentials(circle, "it")
    deep: list[Any] = ["s3://key:hunter2@bucket"]
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ConfigError, match="holds a user's password") as caught:
        refuse_credentials(deep, "it")
    assert len(str(caught.value)) < 400
