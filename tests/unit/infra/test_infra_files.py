"""What runs away from a laptop, held against the code and the tools it names (no engine or cluster is at hand)."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from piti.settings import PROJECT, Settings

INFRA = PROJECT / "infra"
COMPOSE: dict[str, Any] = yaml.safe_load((INFRA / "compose.yaml").read_text())
MANIFESTS: list[dict[str, Any]] = [
    document
    for path in sorted((INFRA / "kuberay").glob("*.yaml"))
    for document in yaml.safe_load_all(path.read_text())
    if document["kind"] != "Kustomization"
]
# Settings of the images' own software, and of ours that are no Settings fields.
FOREIGN = {"POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD", "POSTGRES_PASSWORD_FILE", "PGDATA", "PITI_COMMIT"}
RAY_VARIABLES = {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_USAGE_STATS_ENABLED"}


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and spec of every pod template, those of the RayCluster included."""
    for manifest in MANIFESTS:
        spec = manifest.get("spec", {})
        groups = [spec, spec.get("headGroupSpec", {}), *spec.get("workerGroupSpecs", [])]
        for group in groups:
            if "template" in group:
                yield f"{manifest['kind']}/{manifest['metadata']['name']}", group["template"]["spec"]


def containers() -> list[tuple[str, dict[str, Any]]]:
    return [(name, container) for name, spec in pods() for container in spec["containers"]]


def manifest(kind: str, name: str) -> dict[str, Any]:
    (found,) = [each for each in MANIFESTS if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def commands() -> list[list[str]]:
    """Every command line of ours in compose and manifests."""
    composed = [service["command"] for service in COMPOSE["services"].values() if "command" in service]
    words = [line if line[:2] != ["sh", "-c"] else line[2].split("exec ", 1)[1].split() for line in composed]
    return [*words, *(container["args"] for _, container in containers() if "args" in container)]


def variables() -> Iterator[tuple[str, str]]:
    """Environment variables that compose, manifests and the image set: (where, name)."""
    for name, service in COMPOSE["services"].items():
        yield from ((f"compose {name}", variable) for variable in service.get("environment", {}))
    for name, container in containers():
        yield from ((name, entry["name"]) for entry in container.get("env", []))
    for line in dockerfile():
        if line.startswith("ENV "):
            yield from (("Dockerfile", word.split("=")[0]) for word in line.split()[1:] if "=" in word)


def dockerfile() -> list[str]:
    text = (INFRA / "Dockerfile").read_text()
    joined = re.sub(r"\\\n\s*", "", text)
    return [line.strip() for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def test_every_variable_is_one_that_its_program_knows() -> None:
    from prefect.settings import Settings as PrefectSettings
    from prefect.settings.legacy import _get_valid_setting_names

    prefect_names = _get_valid_setting_names(PrefectSettings)
    ours = {f"PITI_{field.upper()}" for field in Settings.model_fields}
    allowed = ours | FOREIGN | RAY_VARIABLES | {"PATH", "PIP_NO_CACHE_DIR", "PIP_DISABLE_PIP_VERSION_CHECK"}
    allowed |= {"PYTHONUNBUFFERED", "DO_NOT_TRACK"}
    unknown = [(where, name) for where, name in variables() if name not in allowed and name not in prefect_names]
    assert unknown == []


def test_every_option_is_one_that_its_command_has() -> None:
    from ray.scripts.scripts import start

    ray_options = {option for parameter in start.params for option in parameter.opts}
    prefect_help = subprocess.run(
        [sys.executable, "-m", "prefect", "server", "start", "--help"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    seen = 0
    for command in commands():
        given = [word.split("=")[0] for word in command if word.startswith("--")]
        for option in given:
            seen += 1
            if command[:2] == ["ray", "start"]:
                assert option in ray_options
            else:
                assert command[:3] == ["prefect", "server", "start"], command
                assert option in prefect_help
    for group in [
        manifest("RayCluster", "piti")["spec"]["headGroupSpec"],
        *manifest("RayCluster", "piti")["spec"]["workerGroupSpecs"],
    ]:
        assert {f"--{option}" for option in group["rayStartParams"]} <= ray_options
    assert seen > 5


def test_modules_that_commands_run_exist() -> None:
    modules = [line[line.index("-m") + 1] for line in commands() if "-m" in line]
    assert modules
    assert all((PROJECT / f"{module.replace('.', '/')}.py").is_file() for module in modules)


def test_the_image_is_pinned_unprivileged_and_copies_what_exists() -> None:
    lines = dockerfile()
    assert all(
        re.fullmatch(r"FROM python:\$\{PYTHON_VERSION\}-slim( AS build)?", line)
        for line in lines
        if line.startswith("FROM")
    )
    assert [line for line in lines if line.startswith("USER")] == ["USER 10001"]
    assert lines[-1].startswith("CMD ")
    copied = [word for line in lines if line.startswith("COPY") and "--from" not in line for word in line.split()[1:-1]]
    assert {"flows", "piti", "degradations", "eval", "configs", "requirements.lock"} <= set(copied)
    assert [path for path in copied if not (PROJECT / path).exists()] == []
    allowed = {
        line[1:] for line in (INFRA / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")
    }
    assert set(copied) <= allowed
    assert "ARG PITI_COMMIT=unknown" in lines
    build_packages = re.search(r"include = \[(.*?)\]", (PROJECT / "pyproject.toml").read_text())
    assert build_packages is not None
    assert {name.strip(' "*') for name in build_packages[1].split(",")} <= set(copied)


def test_compose_refers_only_to_what_it_declares() -> None:
    services = COMPOSE["services"]
    for name, service in services.items():
        assert set(service.get("depends_on", {})) <= set(services), name
        assert set(service.get("secrets", [])) <= set(COMPOSE["secrets"]), name
        assert {volume.split(":")[0] for volume in service.get("volumes", [])} <= set(COMPOSE["volumes"]), name
        for needed, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}
            assert "healthcheck" in services[needed], f"{name} waits for {needed}, which has no healthcheck"
    assert services["prefect"]["build"]["dockerfile"] == "infra/Dockerfile"


def test_compose_publishes_on_loopback_and_ray_asks_for_a_token() -> None:
    published = [port for service in COMPOSE["services"].values() for port in service.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)
    for name in ("ray-head", "ray-worker", "serve"):
        assert COMPOSE["services"][name]["environment"]["RAY_AUTH_MODE"] == "token"
        assert "ray-token" in COMPOSE["services"][name]["secrets"]


def test_no_secret_is_in_the_repository(tmp_path: Path) -> None:
    for secret in COMPOSE["secrets"].values():
        ignored = subprocess.run(["git", "check-ignore", "-q", f"infra/{secret['file']}"], cwd=PROJECT, check=False)
        assert ignored.returncode == 0, f"{secret['file']} could be committed"
    assert not any(each["kind"] == "Secret" for each in MANIFESTS)
    shutil.copy(INFRA / "make-secrets", tmp_path)
    subprocess.run([tmp_path / "make-secrets"], check=True, capture_output=True)
    made = {f"secrets/{path.name}": path.read_text() for path in (tmp_path / "secrets").iterdir()}
    assert set(made) == {secret["file"] for secret in COMPOSE["secrets"].values()}
    assert all(re.fullmatch("[0-9a-f]{64}", content) for content in made.values())
    subprocess.run([tmp_path / "make-secrets"], check=True, capture_output=True)
    assert {f"secrets/{path.name}": path.read_text() for path in (tmp_path / "secrets").iterdir()} == made


def test_the_ray_cluster_is_of_the_locked_version_and_asks_for_a_token() -> None:
    spec = manifest("RayCluster", "piti")["spec"]
    assert spec["rayVersion"] == version("ray")
    assert f"ray=={spec['rayVersion']} " in (PROJECT / "requirements.lock").read_text()
    assert spec["authOptions"] == {"mode": "token"}
    serve = manifest("Deployment", "serve")["spec"]["template"]["spec"]["containers"][0]
    (token,) = [entry for entry in serve["env"] if entry["name"] == "RAY_AUTH_TOKEN"]
    assert token["valueFrom"]["secretKeyRef"] == {
        "name": manifest("RayCluster", "piti")["metadata"]["name"],
        "key": "auth_token",
    }


def test_selectors_ports_and_volumes_of_the_manifests_meet() -> None:
    for each in MANIFESTS:
        if each["kind"] in {"Deployment", "StatefulSet"}:
            assert each["spec"]["selector"]["matchLabels"] == each["spec"]["template"]["metadata"]["labels"]
        if each["kind"] == "Service":
            labels = each["spec"]["selector"]
            (target,) = [
                other for other in MANIFESTS
                if other["kind"] in {"Deployment", "StatefulSet"} and other["spec"]["template"]["metadata"]["labels"] == labels
            ]  # fmt: skip
            ports = {
                port["name"]
                for container in target["spec"]["template"]["spec"]["containers"]
                for port in container["ports"]
            }
            assert {port["targetPort"] for port in each["spec"]["ports"]} <= ports
    claims = {each["metadata"]["name"] for each in MANIFESTS if each["kind"] == "PersistentVolumeClaim"}
    templates = {
        claim["metadata"]["name"]
        for each in MANIFESTS
        for claim in each.get("spec", {}).get("volumeClaimTemplates", [])
    }
    for name, spec in pods():
        declared = {volume["name"]: volume for volume in spec.get("volumes", [])}
        for volume in declared.values():
            assert volume.get("persistentVolumeClaim", {}).get("claimName", *claims) in claims
        mounted = {mount["name"] for container in spec["containers"] for mount in container.get("volumeMounts", [])}
        assert mounted <= set(declared) | templates, name


def test_pods_are_unprivileged_and_say_what_they_need() -> None:
    for name, spec in pods():
        assert spec["securityContext"]["runAsNonRoot"] is True, name
    for name, container in containers():
        assert container["securityContext"] == {"allowPrivilegeEscalation": False}, name
        assert {"cpu", "memory"} <= set(container["resources"]["requests"]), name
        assert "memory" in container["resources"]["limits"], name
        assert not container["image"].endswith(":latest"), name


def test_kustomize_builds_the_manifests() -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    built = subprocess.run(
        [kubectl, "kustomize", str(INFRA / "kuberay")], capture_output=True, text=True, check=False, timeout=60
    )
    assert built.returncode == 0, built.stderr
    documents = [document for document in yaml.safe_load_all(built.stdout) if document]
    assert len(documents) == len(MANIFESTS)
    images = set(re.findall(r"image: (\S+)", built.stdout))
    assert images == {"postgres:16-alpine", "registry.example.com/piti:0.1.0"}
