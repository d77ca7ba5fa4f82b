"""The playground in a real browser at servers of other models, settings and keys, and at one that restarts."""

from __future__ import annotations

import contextlib
import functools
import re
import signal
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from selenium.webdriver import ActionChains, Chrome, Keys

from tests.support.browser import needs_browser
from tests.support.families import save_family
from tests.support.jobs import LONG, ended, submitted
from tests.support.playground import PROMPT, Playground
from tests.support.server import Server, free_port, options, ready, serving

pytestmark = [pytest.mark.slow, needs_browser]
KEY = f"sk-page-{'x' * 16}"
EMBEDDING = Path(__file__).parents[2] / "docs" / "playground.md"


def test_a_class_is_drawn_by_its_number(driver: Chrome, tmp_path: Path) -> None:
    model = save_family("DiT", tmp_path / "model")
    with serving(
        tmp_path, environ=options(MODEL__PATH=str(model), MODEL__DTYPE="float32", SERVER__WARM_UP=False)
    ) as server:
        server.wait_for(ready)
        page = Playground(driver, server.url).open()
        assert page.all('[data-field="prompt"]') == []
        page.type(class_label=3, seed=1, num_inference_steps=4)
        page.draw()
        page.drawn()
        page.type(class_label=100_000)
        page.draw()
        assert "100,000" in page.seen('[data-field="class_label"] .error').text


def test_a_model_with_loras_and_previews_offers_both(driver: Chrome, rich: Server) -> None:
    page = Playground(driver, rich.url).open()
    assert {"red", "blue"} <= {label.text.split("\n")[0] for label in page.all(".lora")}
    page.type(prompt=PROMPT, seed=5, num_inference_steps=60)
    page.choose_speed("lossless")
    page.script(
        "const slider = document.querySelector('.lora input'); slider.value = 1;"
        "slider.dispatchEvent(new Event('input', {bubbles: true}));"
        "window.previews = 0; new MutationObserver((all) => { for (const {target} of all)"
        " if (target.className === 'forming' && target.src.startsWith('data:image/webp')) previews += 1; })"
        ".observe(document.getElementById('stage'), {subtree: true, attributes: true, attributeFilter: ['src']})"
    )
    assert '"loras":[' in page.find("#snippet").text
    page.draw()
    page.drawn()
    assert page.script("return previews") > 0


def test_a_server_without_previews_still_tells_the_steps(driver: Chrome, limited: Server) -> None:
    """It refuses the events that ask for previews, and offers no speed above the operator's ceiling."""
    page = Playground(driver, limited.url).open()
    assert [bool(choice.get_attribute("disabled")) for choice in page.all(".speed input")] == [False, False, True, True]
    page.type(prompt=PROMPT, num_inference_steps=8)
    for _ in range(8):  # until they are drawn, the page waits for its own: it follows that from the beginning
        submitted(limited, num_inference_steps=8, speed="lossless")
    page.script(
        "window.told = []; new MutationObserver(() => told.push(document.querySelector('.status')?.textContent))"
        ".observe(document.getElementById('stage'), {subtree: true, childList: true, characterData: true})"
    )
    page.draw()
    page.drawn()
    assert any(text and text.startswith("Step ") for text in page.script("return told"))


def test_a_video_is_drawn_and_compared(driver: Chrome, wan: Server) -> None:
    page = Playground(driver, wan.url).open()
    page.type(prompt="a cat", seed=1, num_frames=5)
    page.draw()
    page.drawn()
    page.wait_until(lambda: page.script("return document.querySelector('.frame video').videoWidth") == 32)
    page.click("#tab-compare")
    page.click("#compare-draw")
    page.wait_until(lambda: len(page.all(".side video")) >= 2)
    page.script("[...document.querySelectorAll('.comparison > button')].at(-1).click()")
    page.wait_until(lambda: page.script("return [...document.querySelectorAll('.side video')].every(v => !v.paused)"))


def test_priority_is_chosen_and_shown(driver: Chrome, rich: Server) -> None:
    page = Playground(driver, rich.url).open()
    page.type(prompt=PROMPT, num_inference_steps=4, priority=4)
    page.draw()
    assert "3" in page.seen('[data-field="priority"] .error').text
    page.type(priority=3)
    page.draw()
    page.drawn()
    page.click("#tab-server")
    page.seen('[aria-label="Jobs"]')
    assert "priority 3" in page.text('[aria-label="Jobs"] li')


def test_the_operator_moves_a_job_that_waits(driver: Chrome, rich: Server) -> None:
    running = submitted(rich, **LONG)
    rich.wait_for(lambda rich: rich.get(running).json()["step"] > 0)
    first, second = (submitted(rich, seed=seed, num_inference_steps=4) for seed in (1, 2))
    page = Playground(driver, rich.url).open()
    page.click("#tab-server")
    name = second.removeprefix("/jobs/")[:8]
    page.seen(f'[aria-label^="Priority of job {name}"]')
    page.script("document.querySelector(arguments[0]).select()", f'[aria-label^="Priority of job {name}"]')
    ActionChains(driver).send_keys("2", Keys.ENTER).perform()
    page.wait_until(lambda: [rich.get(job).json()["position"] for job in (second, first)] == [1, 2])
    page.wait_until(lambda: "place 1" in page.text('[aria-label="Jobs"] li'))
    assert page.driver.switch_to.active_element == page.find(f'[aria-label^="Priority of job {name}"]')
    with page.narrow(360):
        assert page.script("return document.documentElement.scrollWidth") == 360
    page.click(f'[aria-label="Cancel job {running.removeprefix("/jobs/")[:8]}"]')
    assert [ended(rich, job)["state"] for job in (second, first)] == ["succeeded", "succeeded"]
    assert rich.get(running).json().get("state", "cancelled") == "cancelled"  # two that have ended are kept
    # It tells by itself what has become of them.
    page.wait_until(lambda: page.all('[aria-label^="Cancel job"]') == [])


def test_steps_that_are_left_out_are_shown_as_the_speed_has_them(driver: Chrome, rich: Server) -> None:
    page = Playground(driver, rich.url).open()

    def shown() -> str | None:
        return page.field("num_inference_steps").get_attribute("placeholder")

    usual = {}
    for speed in ("balanced", "fast"):
        page.choose_speed(speed)
        usual[speed] = shown()
    assert usual == {"balanced": "12", "fast": "10"}
    page.type(prompt=PROMPT, seed=5)
    page.choose_speed("balanced")
    page.draw()
    assert page.drawn()[1].endswith("/ 12")
    assert "of 12 steps" in page.script(
        "const input = document.querySelector('.rethreshold input'); input.value = -500;"
        "input.dispatchEvent(new Event('input', {bubbles: true}));"
        "return document.querySelector('.rethreshold output').textContent"
    )
    page.choose_speed("fast")
    page.draw()
    # Its mask says which steps are reused: nothing is measured, and each step is shown all the same.
    reused, steps = (int(part) for part in page.drawn()[1].split(" / "))
    assert len(page.all(".timeline-place .cell")) == steps == 10
    assert len(page.all(".timeline-place .cell.reused")) == reused > 0
    page.type(sigmas="1, 0.6, 0.3")
    assert shown() == "3"


def test_the_operator_loads_and_unloads_a_lora(driver: Chrome, rich: Server) -> None:
    rich.session.delete(f"{rich.url}/loras/soft", timeout=120)  # another test may have loaded it
    page = Playground(driver, rich.url).open()
    page.click("#tab-server")
    for verb, opposite in (("Load", "Unload"), ("Unload", "Load")):
        page.click(f'[aria-label="{verb} soft"]')
        page.seen(f'[aria-label="{opposite} soft"]')
        loaded = [lora["name"] for lora in rich.get("/loras").json()["loras"] if lora["loaded"]]
        assert ("soft" in loaded) == (verb == "Load")


def test_the_operator_reads_warnings_without_their_values(driver: Chrome, rich: Server) -> None:
    assert rich.post("/loras/broken").status_code == 400
    page = Playground(driver, rich.url).open()
    page.click("#tab-server")
    page.seen('[aria-label="Warnings of the last hour"] ul')
    rows = page.text('[aria-label="Warnings of the last hour"] ul')
    # Other tests of this server may have failed in the same way before.
    assert re.search(r"error( \S \d+)?[^a-z]*jobs\.pipeline_queuean action on the pipeline failed", rows), rows
    assert "safetensors" not in rows


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Address of another origin, and the folder that it shows."""
    folder = tmp_path_factory.mktemp("elsewhere")
    shown = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(SimpleHTTPRequestHandler, directory=folder))
    threading.Thread(target=shown.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{shown.server_port}", folder
    shown.shutdown()
    shown.server_close()


class Keyed:
    """A server with a key, which can be ended, and started again at the same address."""

    def __init__(self, folder: Path, origin: str) -> None:
        """
        Args:
            origin: another one, whose pages may call the server.
        """
        self._folder = folder
        keys = [{"name": "page", "key": KEY}]
        self._environ = options(SERVER__API_KEYS=keys, SERVER__CORS_ORIGINS=[origin], SERVER__WARM_UP=False)
        self._running = contextlib.ExitStack()
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        self._server = self._running.enter_context(serving(self._folder, environ=self._environ, port=self._port))
        self._server.wait_for(ready)

    def drain(self) -> None:
        """Have it end once what runs has ended."""
        self._server.process.send_signal(signal.SIGTERM)

    def end(self) -> None:
        self._running.close()


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory, elsewhere: tuple[str, Path]) -> Iterator[Keyed]:
    server = Keyed(tmp_path_factory.mktemp("keyed"), elsewhere[0])
    server.start()
    yield server
    server.end()


def test_a_key_is_asked_for_until_it_is_taken_and_is_told_what_it_may_not_do(driver: Chrome, keyed: Keyed) -> None:
    page = Playground(driver, keyed.url)
    driver.get(f"{keyed.url}/livez")
    driver.execute_script("sessionStorage.clear()")
    driver.get(f"{keyed.url}/ui")
    for key, words in (("sk-wrong", "key"), (KEY, "")):
        page.seen("#key[open]")
        page.find("#key-input").send_keys(key)
        page.click('#key button[value="use"]')
        if words:
            page.wait_until(lambda: page.find("#key-error").text)
            page.find("#key-input").clear()
    page.wait_until(lambda: page.script("return document.documentElement.dataset.ready"))
    page.type(prompt=PROMPT, num_inference_steps=4)
    page.draw()
    page.drawn()
    assert KEY not in page.find("#snippet").text
    page.click("#tab-server")
    page.click('[aria-label="Memory"] button')
    assert "scope" in page.seen("#server > .error").text
    assert "scope admin" in page.text('[aria-label="Warnings"]')


def test_a_page_of_another_origin_draws_with_a_key(driver: Chrome, keyed: Keyed, elsewhere: tuple[str, Path]) -> None:
    origin, folder = elsewhere
    [example] = re.findall(r"```html\n(.*?)```", EMBEDDING.read_text(encoding="utf-8"), re.DOTALL)
    example = example.replace("https://pictures.example", keyed.url).replace("sk-...", KEY)
    (folder / "index.html").write_text(example, encoding="utf-8")
    page = Playground(driver, origin)
    driver.get(f"{origin}/index.html")
    page.wait_until(lambda: page.script("return document.getElementById('apple').naturalWidth") == 96)


def test_a_restarted_server_is_found_again(driver: Chrome, keyed: Keyed) -> None:
    driver.get(f"{keyed.url}/livez")
    driver.execute_script("sessionStorage.setItem('cache-dit-serving-key', arguments[0])", KEY)
    page = Playground(driver, keyed.url).open()
    page.type(prompt=PROMPT, num_inference_steps=4)
    keyed.end()
    page.draw()
    assert "does not answer" in page.seen("#fields .error").text
    assert "not answer" in page.seen("#banner").text
    keyed.start()
    page.wait_until(lambda: page.text("#state") == "ready")
    page.draw()
    assert page.drawn()[1].endswith("/ 4")


def test_a_draining_server_says_so_and_the_next_one_has_what_it_drew(driver: Chrome, keyed: Keyed) -> None:
    driver.get(f"{keyed.url}/livez")
    driver.execute_script("sessionStorage.setItem('cache-dit-serving-key', arguments[0])", KEY)
    page = Playground(driver, keyed.url).open()
    page.type(prompt=PROMPT, num_inference_steps=100, num_images=2)
    page.choose_speed("lossless")
    page.draw()
    page.wait_until(lambda: page.all(".step-bar .cell.computed"))
    keyed.drain()
    page.wait_until(lambda: "shutting down" in page.text("#banner"))
    keyed.end()
    keyed.start()
    assert page.drawn()[1] == "0 / 200"
