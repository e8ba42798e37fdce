"""What runs away from a laptop, held against the code and the tools it names (no engine or cluster is at hand)."""

from __future__ import annotations

import os
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
from ray.scripts.scripts import drain_node

from piti.config.presets import PRESETS, load_config, preset_names
from piti.settings import CONFIG_VARIABLES, PROJECT, Settings
from tests.wheel import SOURCES

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
RAY_VARIABLES = {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_USAGE_STATS_ENABLED", "RAY_START_HOOK"}
FOREIGN |= {"AWS_SHARED_CREDENTIALS_FILE"}
# Variables of ours that are no Settings fields: see piti/settings.py, piti/data/cache.py.
OURS = {*CONFIG_VARIABLES, "PITI_CACHE_BYTES", "PITI_COMMIT"}
GPU_OVERLAY: dict[str, Any] = yaml.safe_load((INFRA / "kuberay-gpu" / "kustomization.yaml").read_text())


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
    words = [*composed, *(container["args"] for _, container in containers() if "args" in container)]
    script = (INFRA / "start-prefect-server").read_text().split("exec ", 1)[1].split()
    return [script if line == ["start-prefect-server"] else line for line in words]


def variables() -> Iterator[tuple[str, str]]:
    """Environment variables that compose, manifests and the image set: (where, name)."""
    for name, service in COMPOSE["services"].items():
        yield from ((f"compose {name}", variable) for variable in service.get("environment", {}))
    for name, container in containers():
        yield from ((name, variable) for variable in environment_of(container))
    for line in dockerfile():
        if line.startswith("ENV "):
            yield from (("Dockerfile", word.split("=")[0]) for word in line.split()[1:] if "=" in word)


def environment_of(container: dict[str, Any]) -> dict[str, Any]:
    """A container's variables, those of config maps included."""
    found: dict[str, Any] = {}
    for source in container.get("envFrom", []):
        found |= manifest("ConfigMap", source["configMapRef"]["name"])["data"]
    return found | {entry["name"]: entry.get("value") for entry in container.get("env", [])}


def serving_environments() -> dict[str, dict[str, Any]]:
    """What the serving process is told, by compose and by Kubernetes."""
    (container,) = manifest("Deployment", "serve")["spec"]["template"]["spec"]["containers"]
    return {"compose": COMPOSE["services"]["serve"]["environment"], "kubernetes": environment_of(container)}


def dockerfile() -> list[str]:
    text = (INFRA / "Dockerfile").read_text()
    joined = re.sub(r"\\\n\s*", "", text)
    return [line.strip() for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def test_every_variable_is_one_that_its_program_knows() -> None:
    from prefect.settings import Settings as PrefectSettings
    from prefect.settings.legacy import _get_valid_setting_names

    prefect_names = _get_valid_setting_names(PrefectSettings)
    ours = {f"PITI_{field.upper()}" for field in Settings.model_fields}
    allowed = ours | OURS | FOREIGN | RAY_VARIABLES | {"PATH", "PIP_NO_CACHE_DIR", "PIP_DISABLE_PIP_VERSION_CHECK"}
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
    assert {"infra/start-prefect-server", "infra/leave-node"} <= set(copied)
    server = (INFRA / "start-prefect-server").read_text()
    assert 'PREFECT_SERVER_UI_STATIC_DIRECTORY="$HOME/ui"' in server, "the UI's files would go into a package of root's"
    assert [path for path in copied if not (PROJECT / path).exists()] == []
    allowed = {
        line[1:] for line in (INFRA / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")
    }
    assert set(copied) <= allowed
    assert "USER 10001" in lines
    assert "ARG PITI_COMMIT=unknown" in lines
    build_packages = re.search(r"include = \[(.*?)\]", (PROJECT / "pyproject.toml").read_text())
    assert build_packages is not None
    packages = {name.strip(' "*') for name in build_packages[1].split(",")}
    assert packages | set(SOURCES) <= set(copied), "the image holds what the wheel holds"
    linked = {
        path.resolve().relative_to(PROJECT.resolve()).parts[0]
        for package in packages for path in (PROJECT / package).rglob("*") if path.is_symlink()
    }  # fmt: skip
    assert {"configs", "studies"} <= linked <= set(copied), "links of the packages lead to what the image holds"


def test_compose_refers_only_to_what_it_declares() -> None:
    services = COMPOSE["services"]
    for name, service in services.items():
        assert set(service.get("depends_on", {})) <= set(services), name
        secrets = {each if isinstance(each, str) else each["source"] for each in service.get("secrets", [])}
        assert secrets <= set(COMPOSE["secrets"]), name
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
        assert "ray-token" in [each["source"] for each in COMPOSE["services"][name]["secrets"]]


def test_no_secret_is_in_the_repository(tmp_path: Path) -> None:
    for secret in COMPOSE["secrets"].values():
        ignored = subprocess.run(["git", "check-ignore", "-q", f"infra/{secret['file']}"], cwd=PROJECT, check=False)
        assert ignored.returncode == 0, f"{secret['file']} could be committed"
    assert not any(each["kind"] == "Secret" for each in MANIFESTS)
    shutil.copy(INFRA / "make-secrets", tmp_path)
    subprocess.run([tmp_path / "make-secrets"], check=True, capture_output=True)
    made = {f"secrets/{path.name}": path.read_text() for path in (tmp_path / "secrets").iterdir()}
    assert set(made) == {secret["file"] for secret in COMPOSE["secrets"].values()}
    empty = made.pop("secrets/storage-credentials")
    assert empty == ""
    assert all(re.fullmatch("(piti:)?[0-9a-f]{64}", content) for content in made.values())
    assert made["secrets/prefect-auth"].startswith("piti:")
    subprocess.run([tmp_path / "make-secrets"], check=True, capture_output=True)
    again = {f"secrets/{path.name}": path.read_text() for path in (tmp_path / "secrets").iterdir()}
    assert again == {**made, "secrets/storage-credentials": ""}


def test_the_ray_cluster_is_of_the_locked_version_and_asks_for_a_token() -> None:
    spec = manifest("RayCluster", "piti")["spec"]
    assert spec["rayVersion"] == version("ray")
    assert f"ray=={spec['rayVersion']} " in (PROJECT / "requirements.lock").read_text()
    assert spec["authOptions"] == {"mode": "token"}
    serve = manifest("Deployment", "serve")["spec"]["template"]["spec"]
    (secrets,) = [volume for volume in serve["volumes"] if volume["name"] == "secrets"]
    token = secrets["projected"]["sources"][0]["secret"]
    assert (token["name"], token["items"][0]["key"]) == (
        manifest("RayCluster", "piti")["metadata"]["name"],
        "auth_token",
    )
    assert serving_environments()["kubernetes"]["RAY_AUTH_TOKEN_PATH"].endswith(token["items"][0]["path"])
    assert "KubeRay 1.6 or newer" in (INFRA / "kuberay" / "raycluster.yaml").read_text().replace("\n# ", " ")


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


def test_pods_may_do_nothing_that_they_need_not_do() -> None:
    """What Kubernetes' Pod Security Standard "restricted" asks for, and a file system that nobody writes to."""
    assert manifest("Namespace", "piti")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for name, spec in pods():
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert spec["automountServiceAccountToken"] is False, name
    for name, container in containers():
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        }, name  # fmt: skip
        assert "/tmp" in [mount["mountPath"] for mount in container["volumeMounts"]], name
        assert {"cpu", "memory"} <= set(container["resources"]["requests"]), name
        assert "memory" in container["resources"]["limits"], name
        assert not container["image"].endswith(":latest"), name
    for name, service in COMPOSE["services"].items():
        assert "no-new-privileges:true" in service["security_opt"], name
        if service["image"].startswith("piti:"):
            assert (service["cap_drop"], service["read_only"]) == (["ALL"], True), name


def test_the_cache_is_on_a_disk_that_every_pod_has() -> None:
    """The root file system is read-only, and the volume at /data is left out where an object store holds everything."""
    seen = 0
    for name, spec in pods():
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        for container in spec["containers"]:
            if (folder := environment_of(container).get("PITI_CACHE")) is None:
                continue
            above = [mount for mount in container["volumeMounts"] if f"{folder}/".startswith(f"{mount['mountPath']}/")]
            assert [volumes[mount["name"]].get("emptyDir") for mount in above] == [{}], name
            seen += 1
    assert seen == 4, "the serving process, Ray's head and both kinds of workers"
    for service in ("ray-head", "ray-worker", "serve"):
        assert COMPOSE["services"][service]["environment"]["PITI_CACHE"].startswith("/data/"), "/tmp is memory there"
        assert "data:/data" in COMPOSE["services"][service]["volumes"]


def test_secrets_come_as_files() -> None:
    for where, name in variables():
        assert not re.search(r"(PASSWORD|TOKEN|SECRET|AUTH_STRING|KEY)$", name), f"{where}: {name}"


def test_only_who_needs_it_reaches_a_server() -> None:
    policies = [each for each in MANIFESTS if each["kind"] == "NetworkPolicy"]
    assert {"podSelector": {}, "policyTypes": ["Ingress"]} in [policy["spec"] for policy in policies]
    allowed = {
        (tuple(source["podSelector"]["matchLabels"].values()), tuple(policy["spec"]["podSelector"]["matchLabels"].values()))
        for policy in policies for rule in policy["spec"].get("ingress", []) for source in rule["from"]
    }  # fmt: skip
    assert allowed == {
        (("prefect",), ("postgres",)), (("serve",), ("prefect",)), (("serve",), ("piti",)), (("piti",), ("piti",))
    }  # fmt: skip


def gibibytes(quantity: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", quantity).groups()  # type: ignore[union-attr]
    return float(number) / (1024 if unit == "Mi" else 1)


def test_shared_memory_holds_what_ray_keeps_there() -> None:
    """Ray takes 30 % of a node's memory for objects, and falls back to the disk where /dev/shm is smaller."""
    seen = 0
    for name, spec in pods():
        for volume in spec["volumes"]:
            if volume["name"] == "shared-memory":
                memory = gibibytes(spec["containers"][0]["resources"]["limits"]["memory"])
                assert gibibytes(volume["emptyDir"]["sizeLimit"]) >= 0.3 * memory, name
                seen += 1
    assert seen == 3
    for name in ("ray-head", "ray-worker"):
        service = COMPOSE["services"][name]
        (option,) = [word for word in service["command"] if word.startswith("--object-store-memory=")]
        assert int(option.split("=")[1]) <= 1e9 * float(service["shm_size"].removesuffix("gb"))


def offers() -> list[list[dict[str, str]]]:
    """What the workers of each overlay have, one entry a pod: that of the base, that of the GPU overlay."""
    groups = manifest("RayCluster", "piti")["spec"]["workerGroupSpecs"]
    replicas = [[group["replicas"] for group in groups] for _ in range(2)]
    for operation in yaml.safe_load(GPU_OVERLAY["patches"][0]["patch"]):
        match = re.fullmatch(r"/spec/workerGroupSpecs/(\d)/replicas", operation["path"])
        assert match is not None
        replicas[1][int(match[1])] = operation["value"]
    limits = [group["template"]["spec"]["containers"][0]["resources"]["limits"] for group in groups]
    return [[limits[index] for index, number in enumerate(numbers) for _ in range(number)] for numbers in replicas]


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_finds_its_workers_in_some_overlay(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in CONFIG_VARIABLES:
        monkeypatch.setenv(variable, "/data")
    config = load_config(preset)
    gpus, cpus = int(config.cluster.use_gpu), config.cluster.cpus_per_worker
    # Weights, their average, gradients and two moments in float32; 2 GiB for each process that loads pictures.
    parameters = 351e6 * max(model.model_channels / 192 for model in (config.models.base, config.models.upsampler)) ** 2
    memory = 20 * parameters / 2**30 + 2 * (1 + config.cluster.loader_workers)
    fitting = []
    for pods_of_overlay in offers():
        places = 0
        for limits in pods_of_overlay:
            has_gpus = int(limits.get("nvidia.com/gpu", 0))
            by_gpu = [has_gpus // gpus] if gpus else []
            places += min(int(limits["cpu"]) // cpus, int(gibibytes(limits["memory"]) // memory), *by_gpu)
        fitting.append(places >= config.cluster.workers.max)
    assert any(fitting)
    assert fitting[0] == (not gpus), "the base, which needs no GPU, has room for the demo"


def test_the_serving_process_has_every_variable_that_presets_use() -> None:
    used = {
        name for path in PRESETS.glob("*.yaml") for name in re.findall(r"^[^#]*?\$\{?(\w+)", path.read_text(), re.M)
    }
    assert {"PITI_ROOT", "PITI_DATA", "PITI_WEIGHTS"} <= used <= set(CONFIG_VARIABLES)
    for where, environment in serving_environments().items():
        assert used <= set(environment), where
        assert {"AWS_SHARED_CREDENTIALS_FILE", "PITI_PREFECT_AUTH_FILE", "PITI_RAY_JOBS_URL"} <= set(environment), where


def test_every_variable_that_the_code_reads_is_known() -> None:
    code = "".join(path.read_text() for folder in ("piti", "flows") for path in (PROJECT / folder).rglob("*.py"))
    read = set(re.findall(r"\"(PITI_[A-Z_]+)\"", code))
    settings = {f"PITI_{field.upper()}" for field in Settings.model_fields}
    assert read - settings - OURS == {"PITI_STACK_ID"}, "a mark of the stack's own processes"


def test_the_guide_names_only_what_exists() -> None:
    guide = (INFRA / "README.md").read_text()
    for path in re.findall(r"(?:-f|-k) (infra/\S+)", guide):
        assert (PROJECT / path).exists(), path
    for preset in re.findall(r"--config (\S+)", guide):
        assert preset in preset_names()
    for text in (guide, *(path.read_text() for path in INFRA.glob("*/*.yaml"))):
        for overlay in re.findall(r"overlay `?([\w-]+)/", text):
            assert (INFRA / overlay / "kustomization.yaml").is_file(), overlay
    used = {
        secret["secretName"] if "secretName" in secret else secret["name"]
        for _, spec in pods() for volume in spec.get("volumes", [])
        for secret in [volume.get("secret", {}), *(each["secret"] for each in volume.get("projected", {}).get("sources", []))]
        if secret and not secret.get("optional")
    }  # fmt: skip
    made = set(re.findall(r"create secret generic (\S+)", guide))
    assert used - made == {"piti"}, "which KubeRay makes"


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
    overlay = subprocess.run(
        [kubectl, "kustomize", str(INFRA / "kuberay-gpu")], capture_output=True, text=True, check=False, timeout=60
    )
    assert overlay.returncode == 0, overlay.stderr
    (cluster,) = [each for each in yaml.safe_load_all(overlay.stdout) if each["kind"] == "RayCluster"]
    assert [group["replicas"] for group in cluster["spec"]["workerGroupSpecs"]] == [0, 8]
    images = set(re.findall(r"image: (\S+)", built.stdout))
    assert images == {"postgres:16-alpine", "registry.example.com/piti:0.1.0"}


def test_a_pod_that_is_stopped_announces_it_and_gives_training_its_minute(tmp_path: Path) -> None:
    """The script runs with a `ray` that writes its arguments down, which the real one's parser takes; its end waits for the worker's."""
    groups = manifest("RayCluster", "piti")["spec"]["workerGroupSpecs"]
    for pod in (group["template"]["spec"] for group in groups):
        assert pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"] == ["leave-node"]
        assert pod["terminationGracePeriodSeconds"] > 60
    for number, words in enumerate([["sh"], ["raylet", "--node_id=abc", "--port=1"], ["ray::RayTrainWorker"]]):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "cmdline").write_bytes(b"".join(word.encode() + b"\0" for word in words))
    ray = tmp_path / "ray"
    ray.write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" > {tmp_path}/told\n")
    ray.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "RAY_ADDRESS": "10.0.0.1:6379"}
    with subprocess.Popen([INFRA / "leave-node", tmp_path], env=environment) as leaving:
        with pytest.raises(subprocess.TimeoutExpired):
            leaving.wait(0.8)
        (tmp_path / "2" / "cmdline").write_bytes(b"")
        assert leaving.wait(30) == 0
    (pattern,) = re.findall(r'grep -q "(\S+)"', (INFRA / "leave-node").read_text())
    for line, is_found in ((f"grep\n-q\n{pattern}\n", False), ("ray::RayTrainWorker\n", True)):
        found = subprocess.run(["grep", "-q", pattern], input=line, text=True, check=False)
        assert (found.returncode == 0) == is_found, line
    command, *options = (tmp_path / "told").read_text().splitlines()
    told = drain_node.make_context(command, options).params
    assert (told["node_id"], told["address"]) == ("abc", "10.0.0.1:6379")
    assert told["deadline_remaining_seconds"] == 60
