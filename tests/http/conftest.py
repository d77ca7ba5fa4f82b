"""The browser and the servers that modules of this folder share, besides that of `make serve`."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import diffusers
import pytest
import torch
from selenium.webdriver import Chrome

from cache_dit_serving.config.variables import CONFIG_VARIABLE
from cache_dit_serving.pipeline.load import EMBEDDED_FOLDER
from tests.support.browser import browser
from tests.support.conformance_keys import KEYS
from tests.support.families import save_family
from tests.support.images import apple, file_of
from tests.support.loras import save_lora
from tests.support.playground import Playground
from tests.support.server import Server, options, ready, serving, wait_for_what_is_left
from tests.support.video_server import serving_wan

pytest_runtest_call = wait_for_what_is_left
SEVERAL = """
models:
- {name: apples, configuration: embedded, aliases: [dall-e-3], settings: {speeds: {warm_up: false}}}
- {name: quick, configuration: embedded, settings: {speeds: {warm_up: false, default: fast}}}
- {name: classes, settings: {model: {path: PLACE/classes, dtype: float32, cpu_threads: 1}}}
- {name: torn, settings: {model: {path: PLACE/torn, dtype: float32, cpu_threads: 1}}}
server: {warm_up: false}
"""


@pytest.fixture(scope="session")
def chromium() -> Iterator[Chrome]:
    with browser() as started:
        yield started


@pytest.fixture
def driver(chromium: Chrome) -> Chrome:
    """The browser, with nothing in its console."""
    chromium.get_log("browser")  # type: ignore[no-untyped-call]
    return chromium


@pytest.fixture
def page(server: Server, driver: Chrome) -> Iterator[Playground]:
    """The playground of the embedded model, as opened for the first time; it ends without an error in the console."""
    driver.execute_cdp_cmd("Storage.clearDataForOrigin", {"origin": server.url, "storageTypes": "all"})
    opened = Playground(driver, server.url)
    yield opened.open()
    assert opened.complaints() == []


@pytest.fixture(scope="session")
def open_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose part `open` an operator opens to the rich server; beside that lies a secret."""
    folder = tmp_path_factory.mktemp("opened")
    (folder / "open").mkdir()
    for path in (folder / "open" / "apple.png", folder / "secret.png"):
        path.write_bytes(file_of(apple()))
    (folder / "open" / "link.png").symlink_to(folder / "secret.png")
    return folder


@pytest.fixture(scope="session")
def file_port(open_folder: Path) -> Iterator[int]:
    """The port of a server of files, which an operator opens to the rich server."""
    handler = functools.partial(SimpleHTTPRequestHandler, directory=open_folder / "open")
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def rich(tmp_path_factory: pytest.TempPathFactory, open_folder: Path, file_port: int) -> Iterator[Server]:
    """The embedded model with all that an operator may add.

    Names that OpenAI's clients send, LoRAs, a folder and a host for pictures, priorities, previews by the autoencoder
    every other step, a speed with steps of its own; two requests may wait, and two jobs that have ended are kept.
    """
    folder = tmp_path_factory.mktemp("rich")
    pipe = diffusers.DiffusionPipeline.from_pretrained(EMBEDDED_FOLDER, dtype=torch.float32)
    loras = [
        {"name": name, "path": str(save_lora(pipe, folder / f"{name}.safetensors", seed=seed)), "scale": scale}
        for seed, (name, scale) in enumerate({"red": 0.5, "blue": 0.0}.items())
    ]
    (folder / "more").mkdir()
    save_lora(pipe, folder / "more" / "soft.safetensors", seed=7)
    (folder / "more" / "broken.safetensors").write_bytes(b"no LoRA")
    environ = options(
        SERVER__MODEL_NAMES=["gpt-image-1", "dall-e-2", "dall-e-3", "flux"],
        MODEL__LORA_FOLDER=str(folder / "more"),
        MODEL__LORAS=loras,
        INPUTS__URL_HOSTS=[f"127.0.0.1:{file_port}"],
        INPUTS__URL_NETWORKS=["127.0.0.0/8"],
        INPUTS__FOLDERS=[str(open_folder / "open")],
        LIMITS__MAX_QUEUE=2,
        LIMITS__MAX_PRIORITY=3,
        LIMITS__MAX_KEPT_JOBS=2,
        PREVIEWS__EVERY=2,
        PREVIEWS__BY="vae",
        PREVIEWS__SIDE=64,
        DEFAULTS__NUM_INFERENCE_STEPS=12,
        SPEEDS__FAST__NUM_INFERENCE_STEPS=10,
    )
    with serving(folder / "server", environ=environ) as running:
        running.wait_for(ready)
        yield running


@pytest.fixture(scope="session")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The embedded model of an operator who allows little.

    At most the speed `high`, which is also the default; few steps, so that made-up requests which are accepted take
    little time; no previews; three seconds for a body; files that do not state their origin. With CONFORMANCE_KEYS, the
    server wants a key, and the session brings an administrator's.
    """
    keys = [{"name": scope, "key": key, "scopes": [scope]} for scope, key in KEYS.items()]
    environ = options(
        SPEEDS__CEILING="high",
        SPEEDS__DEFAULT="high",
        DEFAULTS__NUM_INFERENCE_STEPS=3,
        LIMITS__MAX_PIXEL_STEPS=96 * 96 * 8,
        LIMITS__MAX_BODY_S=3,
        PREVIEWS__ALLOW=False,
        OUTPUTS__PROVENANCE=False,
        **({"SERVER__API_KEYS": keys} if keys else {}),
    )
    with serving(tmp_path_factory.mktemp("limited"), environ=environ) as running:
        if KEYS:
            running.session.headers["Authorization"] = f"Bearer {KEYS['admin']}"
        running.wait_for(ready)
        yield running


@pytest.fixture(scope="session")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A tiny Wan with random weights, which draws videos from words and from videos."""
    with serving_wan(tmp_path_factory.mktemp("wan")) as running:
        yield running


@pytest.fixture(scope="session")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Several models, each loaded by its first request.

    `apples`, the default one with an alias, and `quick`, whose default speed is fast, are the embedded model; `classes`
    draws classes; `torn` lacks its weights.
    """
    folder = tmp_path_factory.mktemp("several")
    save_family("DiT", folder / "classes")
    torn = save_family("DiT", folder / "torn")
    for weights in torn.glob("*/*.safetensors"):
        weights.unlink()
    (folder / "models.yaml").write_text(SEVERAL.replace("PLACE", str(folder)))
    with serving(folder / "server", environ={CONFIG_VARIABLE: str(folder / "models.yaml")}) as running:
        running.wait_for(ready)
        yield running
