"""`piti translate` and `piti try`: conditions read as the pipeline reads them, samples by their seeds, one line for bad input."""

from __future__ import annotations

import base64
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import uvicorn

from piti import storage
from piti.config import Config
from piti.config.presets import load_config
from piti.data.conditions import unit_range
from piti.data.examples import ExampleReader
from piti.data.sharding import shard_dataset
from piti.evaluation.cascade import Order, draw_base, draw_upsampled, to_uint8
from piti.evaluation.translation import Translator, Wish, find_networks, read_condition
from piti.job import JobSpec
from piti.models.checkpoints import load_model
from piti.plan import Plan
from piti.stack.try_page import Drawing, page_facts, try_page
from tests.browser import CHROMIUM, opened
from tests.command_line import fails_in_one_line, piti
from tests.unit.jobs.conftest import OVERRIDES, write_small_checkpoint

CLASSES = 64
SIDE = 32


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Label maps of 80x50 beside photographs, squashed to 32x32; three networks' steps, two of them drawing."""
    folder = tmp_path_factory.mktemp("translation")
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c", "d"):
        for kind in ("images", "conditions"):
            (folder / kind).mkdir(exist_ok=True)
        cv2.imwrite(str(folder / "images" / f"{name}.png"), rng.integers(0, 256, (50, 80, 3), np.uint8))
        cv2.imwrite(str(folder / "conditions" / f"{name}.png"), rng.integers(0, CLASSES, (50, 80), np.uint8))
    changed = {name: value for name, value in OVERRIDES.items() if name != "data.source"}
    for network in ("models.base", "models.upsampler"):
        changed[network] = {**changed[network], "condition_channels": 3}
    source = {
        "kind": "paired",
        "images": f"{folder}/images",
        "conditions": f"{folder}/conditions",
        "validation_share": 0.5,
    }
    return load_config(
        "demo",
        {
            **changed,
            "data.source": source,
            "root": str(folder / "root"),
            "pretrained": {},
            "training.pretrain": {"phases": [{"steps": 1, "learning_rate": 0.1}]},
        },
    )


@pytest.fixture(scope="module")
def shards(config: Config) -> str:
    return shard_dataset(config.data, Plan(config).shard.output, config.seed).uri


@pytest.fixture(scope="module")
def base(config: Config) -> str:
    """The stage 2 checkpoint; its job's spec and the upsampler's checkpoint lie where a run leaves them."""
    plan = Plan(config)
    write_small_checkpoint(plan.upsampler.output, config.models.upsampler, 1, "upsampler", 20)
    job = storage.join(config.root, "jobs", "piti-stage2-0123456789ab-1")
    spec = JobSpec.for_step(plan.stage2, config, job)
    storage.write_json(storage.join(job, "spec.json"), spec.model_dump(mode="json"))
    return write_small_checkpoint(plan.stage2.output, config.models.base, 2, "stage2", 20)


def label_map(config: Config, name: str = "a") -> str:
    return str(Path(config.root).parent / "conditions" / f"{name}.png")


def test_a_condition_is_read_as_the_loader_reads_it(config: Config, shards: str) -> None:
    """The label map of a validation sample, read from its file and from its shard."""
    reader = ExampleReader(shards, "validation", config.data, None, config.scale)
    for number, key in enumerate(reader.keys):
        read = read_condition(label_map(config, key.partition("-")[0]), config.data)
        assert torch.equal(torch.from_numpy(read), reader.example(number, None).condition)


def test_a_checkpoint_knows_its_config_and_upsampler(config: Config, base: str) -> None:
    for given in (base, storage.absolute(base).rpartition("/")[0]):
        networks = find_networks(given)
        assert networks.config == config
        assert (networks.base, networks.upsampler) == (base, f"{Plan(config).upsampler.output}/step-00000020")
    assert find_networks(None, None, config) == networks


def test_the_command_writes_what_the_cascade_draws(config: Config, base: str, tmp_path: Path) -> None:
    """Against the two networks called by hand; and sample 1 of four is sample 1 of two."""
    out = ["--seed", "7", "--guidance", "2", "--out"]
    for samples, folder in (("2", tmp_path / "two"), ("4", tmp_path / "four")):
        answer = piti("translate", base, label_map(config), "--samples", samples, *out, str(folder))
        assert answer.exit_code == 0, answer.output
    wished = config.model_copy(
        update={"seed": 7, "sampling": config.sampling.model_copy(update={"guidance_scale": 2.0})}
    )
    condition = unit_range(torch.from_numpy(read_condition(label_map(config), config.data)))
    orders = [Order("translate", variant, condition) for variant in range(2)]
    networks = find_networks(base)
    small = draw_base(load_model(networks.base, config.models.base).eval(), orders, wished)
    upsampler = load_model(networks.upsampler, config.models.upsampler).eval().requires_grad_(False)
    wanted = to_uint8(draw_upsampled(upsampler, orders, small, wished))
    written = {path.name: cv2.imread(str(path))[..., ::-1] for path in sorted((tmp_path / "two").iterdir())}
    assert list(written) == ["a-7-0.png", "a-7-1.png"]
    for picture, drawn in zip(written.values(), wanted, strict=True):
        assert np.abs(picture.astype(int) - drawn.astype(int)).max() <= 1
    assert (wanted[0] != wanted[1]).any()
    four = cv2.imread(str(tmp_path / "four" / "a-7-1.png"))[..., ::-1]
    assert np.abs(four.astype(int) - wanted[1].astype(int)).max() <= 1


def test_bad_input_gets_one_line(config: Config, base: str, tmp_path: Path) -> None:
    label = label_map(config)
    wrong = tmp_path / "wrong.png"
    cv2.imwrite(str(wrong), np.full((SIDE, SIDE), CLASSES, np.uint8))
    colours = tmp_path / "colours.png"
    cv2.imwrite(str(colours), np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8))
    upsampler = Plan(config).upsampler.output
    nowhere = str(tmp_path / "nowhere")
    for arguments, words in (
        ([nowhere, label], "nowhere"),
        ([base, nowhere], "there is no file"),
        ([base, str(wrong)], f"label {CLASSES} is outside 0..{CLASSES - 1}"),
        ([base, str(colours)], "colours.png is no mask condition"),
        ([upsampler, label], "is an upsampler's checkpoint"),
        ([base, label, "--upsampler", base], "the model's sizes"),
        ([base, label, "--sampler", "ddim"], "steps"),
        ([base, label, "--set", "seed=1"], "--config"),
        ([base, label, "--config", "demo", "--upsampler", upsampler], "shape"),
        ([base, label, "--out", label], "is a file"),
        ([base, label, "--out", f"{label}/pictures"], "Not a directory"),
        ([base, f"{label}/x.png"], "Not a directory"),
    ):
        line = fails_in_one_line(piti("translate", "--out", str(tmp_path / "out"), *arguments))
        assert words in line
    assert not list((tmp_path / "out").glob("*.png"))
    moved = write_small_checkpoint(str(tmp_path / "runs" / "alone"), config.models.base, 2, "stage2", 20)
    assert "give --config" in fails_in_one_line(piti("translate", moved, label))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"port {port} is taken" in fails_in_one_line(piti("try", base, "--port", port, "--no-browser"))
    nothing_trained = piti("try", "--config", "demo", "--set", f"root={tmp_path}", "--no-browser")
    assert "piti run full-train --config demo" in fails_in_one_line(nothing_trained)


@contextmanager
def served(application: Any) -> Iterator[str]:
    """The address of an application on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(application, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_a_person_paints_and_sees_what_translate_draws(config: Config, shards: str, base: str, tmp_path: Path) -> None:
    """In a real browser: class 5 over everything, class 63 as a stroke across; the picture is the one of that label map."""
    translator = Translator(find_networks(base))
    with served(try_page(translator, "key")) as address, opened(f"{address}/key/") as page:
        page.wait_for("document.querySelectorAll('#palette button').length === 64")
        page.stroke("#palette button[aria-label='class 5']", (0.5, 0.5))
        page.stroke("#fill", (0.5, 0.5))
        page.stroke("#canvas", (0.5, 0.5))
        page.stroke("#fill", (0.5, 0.5))
        page.stroke("#palette button[aria-label='class 63']", (0.5, 0.5))
        page.evaluate("void (document.querySelector('#brush').value = 2)")
        page.stroke("#canvas", (0.0, 0.5), (0.999, 0.5))
        page.evaluate("void (document.querySelector('#samples').value = 1)")
        page.stroke("#draw", (0.5, 0.5))
        page.wait_for("document.querySelectorAll('#pictures img').length === 1")
        url = page.evaluate("document.querySelector('#pictures img').src")
        labels = page.evaluate("Array.from(values)")
        assert page.evaluate("document.querySelector('#example').hidden") is False
        page.stroke("#example", (0.5, 0.5))
        page.wait_for("!document.querySelector('#truth').hidden")
        assert len(set(page.evaluate("Array.from(values)"))) > 10
        page.evaluate("void (document.querySelector('#samples').value = 99)")
        page.stroke("#draw", (0.5, 0.5))
        page.wait_for("document.querySelector('#status').className === 'wrong'")
        assert "samples" in page.evaluate("document.querySelector('#status').textContent")
        assert all(request.startswith((address, "data:")) for request in page.requests)

    painted = np.array(labels, np.uint8).reshape(SIDE, SIDE)
    assert set(painted[:14].flat) == {5}
    assert set(painted[15:17].flat) == {63}
    cv2.imwrite(str(tmp_path / "painted.png"), painted)
    sampling = config.sampling
    wish = Wish(1, 0, sampling.guidance_scale, sampling.base_sampler, 3)
    (wanted,) = translator.draw(read_condition(str(tmp_path / "painted.png"), config.data), wish)
    png = np.frombuffer(base64.b64decode(url.partition(",")[2]), np.uint8)
    assert np.array_equal(cv2.imdecode(png, cv2.IMREAD_COLOR_RGB), wanted)


@pytest.mark.parametrize(
    ("respacing", "steps"), [("500", 250), ("250", 250), ("fast27", 27), ("5,2,1,1,1", 10), ("ddim8", 8)]
)
def test_the_page_offers_what_it_takes(config: Config, respacing: str, steps: int) -> None:
    sampling = config.sampling.model_copy(update={"base_respacing": respacing, "guidance_scale": 30.0})
    facts = page_facts(config.model_copy(update={"sampling": sampling}))
    assert facts["steps"] == steps
    Drawing(values="", guidance=facts["guidance"], steps=facts["steps"])


def test_the_page_answers_itself_only(base: str) -> None:
    """Not without its key, nor another page's requests, nor under another name; wrong values get one line."""
    import httpx

    with served(try_page(Translator(find_networks(base)), "key")) as address:
        values = base64.b64encode(bytes(SIDE * SIDE)).decode()
        wrong = base64.b64encode(bytes([200]) * SIDE * SIDE).decode()
        assert httpx.get(f"{address}/key/").status_code == 200
        assert httpx.get(f"{address}/key/", headers={"Host": "evil.example"}).status_code == 403
        assert [httpx.get(f"{address}/{path}").status_code for path in ("", "about", "other/about")] == [404] * 3
        foreign = httpx.post(f"{address}/key/draw", json={"values": values}, headers={"Origin": "http://evil.example"})
        assert foreign.status_code == 403
        for body, words in (
            ({"values": values[:8]}, f"not {SIDE}x{SIDE}"),
            ({"values": wrong}, "label 200 is outside"),
            ({"values": "?"}, "base64"),
            ({"values": values, "sampler": "magic"}, "sampler"),
        ):
            answer = httpx.post(f"{address}/key/draw", json=body)
            assert answer.status_code == 400
            assert words in answer.json()["error"]
