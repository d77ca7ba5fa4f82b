"""The playground in a real browser: what a person does there, and what must not happen."""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import axe_core_python
import numpy as np
import pytest
from PIL import Image, ImageChops
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select

from cache_dit_serving.measure.distances.flip import flip
from cache_dit_serving.measure.distances.pixels import Pixels
from tests.support.browser import browser, needs_browser
from tests.support.families import save_family
from tests.support.images import apple, file_of
from tests.support.playground import PROMPT, Playground
from tests.support.reference_pictures import PAIRS
from tests.support.server import Server, options, ready, serving

pytestmark = needs_browser
KEY = f"sk-page-{'x' * 16}"
MARKUP = "<img src=x onerror=\"document.title='broken'\"><b>bold</b>"
EMBEDDING = Path(__file__).parents[2] / "docs" / "playground.md"
AXE = Path(axe_core_python.__file__).with_name("axe.min.js").read_text()


@pytest.fixture(scope="module")
def driver() -> Iterator[Chrome]:
    with browser() as started:
        yield started


@pytest.fixture
def page(server: Server, driver: Chrome) -> Iterator[Playground]:
    """The page of the embedded model, as opened for the first time; it ends without an error in the console."""
    opened = Playground(driver, server.url)
    driver.get(f"{server.url}/livez")
    driver.execute_script("localStorage.clear(); sessionStorage.clear(); indexedDB.deleteDatabase('cache-dit-serving')")
    opened.complaints()
    yield opened.open()
    assert opened.complaints() == []


def test_a_picture_is_drawn_watched_and_accounted_for(page: Playground) -> None:
    page.type(prompt=PROMPT, seed=5, num_inference_steps=60)
    page.script(
        "window.told = []; new MutationObserver(() => told.push(document.querySelector('.status')?.textContent))"
        ".observe(document.getElementById('stage'), {subtree: true, childList: true, characterData: true})"
    )
    page.draw()
    time, reused, _, speed = page.drawn()
    told = [text for text in page.script("return told") if text]
    assert any(text.startswith("Step ") and "left" in text for text in told)
    assert speed == "balanced"
    assert time.endswith(" s")
    picture = page.find(".frame img")
    assert picture.get_attribute("alt") == PROMPT
    assert page.script("return arguments[0].naturalWidth", picture) == 96
    count, steps = (int(part) for part in reused.split(" / "))
    assert steps == len(page.all(".timeline .step")) == 60
    assert count == len(page.all(".timeline .step.reused")) > 0
    assert f"{count} of 60 steps reused" in page.script("return document.getElementById('live').textContent")


def test_another_threshold_is_foreseen_and_drawn(page: Playground) -> None:
    page.type(prompt=PROMPT, seed=5)
    page.draw()
    before = int(page.drawn()[1].split(" / ")[0])
    page.script(
        "const input = document.querySelector('.rethreshold input'); input.value = -1300;"
        "input.dispatchEvent(new Event('input', {bubbles: true}))"
    )
    foreseen = len(page.all(".timeline .foreseen rect"))
    assert foreseen < before
    assert f"reuse about {foreseen} of 28" in page.find(".rethreshold output").text
    page.click(".rethreshold button")
    page.wait_until(lambda: page.all(".figure dd") and page.all(".figure dd")[-1].text == "custom")
    drawn = int(page.drawn()[1].split(" / ")[0])
    assert abs(drawn - foreseen) <= 5, "an estimate, but a near one"
    assert page.field("seed").get_attribute("value") == "5"


def test_a_running_generation_is_cancelled(page: Playground) -> None:
    page.type(prompt=PROMPT, num_inference_steps=100, num_images=7)
    page.choose_speed("lossless")
    page.draw()
    page.wait_until(lambda: page.all(".step-bar .cell.computed"))
    page.click("#cancel")
    page.wait_until(lambda: [found.text for found in page.all(".empty .big")] == ["Cancelled"])
    assert page.find("#draw").is_enabled()


def test_a_refusal_stands_beside_its_field_in_the_servers_words(page: Playground) -> None:
    page.type(prompt=PROMPT, num_inference_steps=4000)
    page.draw()
    error = page.seen('[data-field="num_inference_steps"] .error')
    assert "4,000" in error.text
    assert page.driver.switch_to.active_element == page.field("num_inference_steps")
    assert page.field("num_inference_steps").get_attribute("aria-invalid") == "true"
    page.type(num_inference_steps="")
    assert not error.is_displayed()
    assert [entry for entry in page.complaints() if "400" not in entry] == []


def test_a_picture_is_edited_where_it_was_painted(page: Playground, tmp_path: Path) -> None:
    file = tmp_path / "an apple <b>.png"
    file.write_bytes(file_of(apple()))
    page.type(prompt="a panda on a pink background", seed=3, strength=1)
    page.script("document.querySelector('details.files').open = true")
    page.field("image_urls").send_keys(str(file))
    canvas = page.seen("canvas.mask")
    page.wait_until(lambda: page.script("return arguments[0].width", canvas) == 96)
    page.script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    mouse = ActionChains(page.driver).move_to_element_with_offset(canvas, -60, 40)
    mouse.click_and_hold().move_by_offset(120, 0).release().perform()
    page.wait_until(lambda: "mask.png" in page.find("#snippet").text)
    assert "an apple <b>.png" in page.find("#snippet").text
    page.draw()
    page.drawn()
    drawn = pixels(page, ".frame img")
    apart = ImageChops.difference(drawn.convert("L"), apple().convert("L"))
    upper, lower = (float(np.asarray(apart.crop(box)).mean()) for box in ((0, 0, 96, 30), (20, 60, 76, 76)))
    assert 3 * upper < lower, "what was not painted stays"
    page.click(".actions button:last-child")
    page.wait_until(lambda: page.script("return document.querySelector('.picked img')?.alt").endswith("3.png"))


def pixels(page: Playground, selector: str) -> Image.Image:
    """The picture that an element shows."""
    wide, high, data = page.script(
        "const image = document.querySelector(arguments[0]), canvas = document.createElement('canvas');"
        "canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;"
        "const context = canvas.getContext('2d'); context.drawImage(image, 0, 0);"
        "return [canvas.width, canvas.height, [...context.getImageData(0, 0, canvas.width, canvas.height).data]]",
        selector,
    )
    return Image.frombytes("RGBA", (wide, high), bytes(data)).convert("RGB")


def drawn_pixels(page: Playground, picture: WebElement) -> Pixels:
    """Return the bytes of a picture on the page, (height, width, 3)."""
    width, height, values = page.script(
        """const picture = arguments[0], canvas = document.createElement("canvas");
        [canvas.width, canvas.height] = [picture.naturalWidth, picture.naturalHeight];
        const context = canvas.getContext("2d");
        context.drawImage(picture, 0, 0);
        const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
        return [canvas.width, canvas.height, [...data]];""",
        picture,
    )
    return np.array(values, np.uint8).reshape(height, width, 4)[..., :3]


def test_settings_are_compared_side_by_side(page: Playground) -> None:
    page.type(prompt=PROMPT, seed=5)
    page.click("#tab-compare")
    page.click("#compare-draw")
    page.seen(".closer")
    assert [caption.text.split()[0] for caption in page.all(".side figcaption")] == ["lossless", "balanced", "fast"]
    words = [side.text for side in page.all(".side")]
    assert "0 / 28" in words[0]
    assert all("PSNR" in text and "SSIM" in text and "dB" in text for text in words[1:])
    page.wait_until(lambda: all(found.text != "…" for found in page.all(".side .flip")))
    pictures = [drawn_pixels(page, picture) for picture in page.all(".side img")]
    shown = [float(found.text) for found in page.all(".side .flip")]
    assert shown == pytest.approx([flip(picture, pictures[0]) for picture in pictures[1:]], abs=1e-3)
    cut = page.find("#cut")
    page.script("arguments[0].value = 20; arguments[0].dispatchEvent(new Event('input'))", cut)
    assert "80%" in page.script("return document.querySelector('.above').style.clipPath")
    page.script("const mode = document.getElementById('mode'); mode.value = 'difference';")
    page.script("document.getElementById('mode').dispatchEvent(new Event('change'))")
    assert "of 255" in page.seen(".heat figcaption").text


def test_a_class_is_drawn_by_its_number(driver: Chrome, tmp_path: Path) -> None:
    model = save_family("DiT", tmp_path / "model")
    with serving(tmp_path, environ=options(MODEL__PATH=str(model), MODEL__DTYPE="float32")) as server:
        server.wait_for(ready)
        page = Playground(driver, server.url).open()
        assert page.all('[data-field="prompt"]') == []
        page.type(class_label=3, seed=1, num_inference_steps=4)
        page.draw()
        page.drawn()
        page.type(class_label=100_000)
        page.draw()
        assert "100,000" in page.seen('[data-field="class_label"] .error').text


def test_a_comparison_is_saved_as_one_file(page: Playground) -> None:
    page.type(prompt=MARKUP, seed=5, num_inference_steps=4)
    page.click("#tab-compare")
    page.click("#compare-draw")
    page.seen(".closer")
    page.script(
        "window.saved = null; const made = URL.createObjectURL;"
        "URL.createObjectURL = (blob) => { if (blob.type === 'text/html')"
        " blob.text().then((text) => { window.saved = text; }); return made(blob); }"
    )
    page.script("[...document.querySelectorAll('.closer button')].at(-1).click()")
    saved = page.wait_until(lambda: page.script("return window.saved"))
    assert saved.startswith("<!doctype html>")
    assert saved.count('src="data:image/png;base64,') == 3
    assert "<img src=x" not in saved
    assert page.url not in saved


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


def test_what_is_typed_is_text_everywhere(page: Playground) -> None:
    page.type(prompt=MARKUP, negative_prompt=MARKUP)
    page.draw()
    page.wait_until(lambda: page.all(".evidence") or page.all(".error:not([hidden])"))
    page.type(negative_prompt="")
    page.draw()
    page.drawn()
    page.click("#tab-compare")
    page.click("#compare-draw")
    page.seen(".closer")
    assert page.find(".picture .prompt").get_attribute("textContent") == MARKUP
    assert page.driver.title.endswith("Cache-DiT Serving")
    assert page.script("return document.querySelectorAll('main b, main img[src=x]').length") == 0
    assert [entry for entry in page.complaints() if "400" not in entry] == []


@pytest.mark.parametrize("language", ["curl", "python", "openai"])
def test_what_is_copied_runs(page: Playground, language: str, tmp_path: Path) -> None:
    page.type(prompt='an apple\'s "twin" \\ $HOME', seed=5, num_inference_steps=4, image_format="png")
    page.script("document.querySelector('details.cache').open = true")
    page.type(**{"cache.max_warmup_steps": 1})
    page.click(f'#snippet-kind input[value="{language}"]')
    text = page.find("#snippet").text
    words = ["bash", "-c", text] if language == "curl" else [sys.executable, "-c", text]
    subprocess.run(words, cwd=tmp_path, check=True, timeout=120, capture_output=True)
    [file] = tmp_path.glob("output*.png")
    with Image.open(file) as drawn:
        written = json.loads(drawn.info["parameters"])
    assert written["prompt"] == 'an apple\'s "twin" \\ $HOME'
    assert (written["seed"], written["num_inference_steps"]) == (5, 4)
    assert written["cache"]["max_warmup_steps"] == 1


def test_a_picture_dropped_on_the_page_gives_its_settings_back(page: Playground) -> None:
    page.type(prompt=PROMPT, seed=17, num_inference_steps=9)
    page.choose_speed("fast")
    page.draw()
    page.drawn()
    page.type(prompt="another", seed=1)
    page.drop_latest()
    page.wait_until(lambda: page.field("prompt").get_attribute("value") == PROMPT)
    assert [page.field(name).get_attribute("value") for name in ("seed", "num_inference_steps")] == ["17", "9"]
    assert page.find(".speed :checked").get_attribute("value") == "fast"


def test_how_the_noise_falls_is_set_and_brought_back(page: Playground) -> None:
    page.type(prompt=PROMPT, seed=5, shift=2, sigmas="[1 0.8,\n0.55; 0.3]")
    assert '"sigmas":[1,0.8,0.55,0.3]' in page.find("#snippet").text
    page.draw()
    assert page.drawn()[1].endswith("/ 4")
    page.type(shift="", sigmas="0.9")
    page.drop_latest()
    page.wait_until(lambda: page.value("sigmas") == "1, 0.8, 0.55, 0.3")
    assert page.value("shift") == "2"


def test_scheduler_and_further_arguments_are_set_and_brought_back(page: Playground) -> None:
    page.type(prompt=PROMPT, seed=5, num_inference_steps=4, scheduler="unipc")
    add_argument(page, "negative_prompt_2", '"grey"')
    add_argument(page, "prompt_2", "red & round")
    page.draw()
    page.drawn()
    page.type(scheduler="euler_karras")
    for remove in page.all(".pair .quiet"):
        page.script("arguments[0].click()", remove)
    page.drop_latest()
    page.wait_until(lambda: json.loads(page.value("scheduler")) == "unipc")
    names = [str(chosen.get_attribute("value")) for chosen in page.all(".pair select")]
    values = [json.loads(str(given.get_attribute("value"))) for given in page.all(".pair input")]
    assert dict(zip(names, values, strict=True)) == {"negative_prompt_2": "grey", "prompt_2": "red & round"}


def add_argument(page: Playground, name: str, value: str) -> None:
    """Add a pair of a name and a value to the further arguments."""
    page.script("document.querySelector('details.more').open = true")
    page.click('[data-field="extra_args"] .label button')
    pair = page.all(".pair")[-1]
    Select(pair.find_element("css selector", "select")).select_by_value(name)
    pair.find_element("css selector", "input").send_keys(value)


def test_noise_levels_are_checked_as_they_are_typed(page: Playground) -> None:
    page.type(prompt=PROMPT, sigmas="1, x")
    error = page.find('[data-field="sigmas"] .error')
    assert error.text == "x is no number"
    for typed, words in {"1, 2": "2 is more than 1", "0.5, 0.7": "0.7 is not below 0.5 before it"}.items():
        page.type(sigmas=typed)
        assert error.text == words
        assert page.field("sigmas").get_attribute("aria-invalid") == "true"
    page.type(sigmas="1, 0.5")
    assert not error.is_displayed()
    assert page.field("sigmas").get_attribute("aria-invalid") is None


def test_sampling_and_arguments_are_refused_beside_their_fields(page: Playground) -> None:
    page.type(prompt=PROMPT, sigmas="1, x")
    page.draw()
    page.wait_until(lambda: page.find('[data-field="sigmas"] .error').text not in ("", "x is no number"))
    page.type(sigmas="1, 0.5", scheduler="unipc")
    page.draw()
    page.wait_until(lambda: "unipc" in page.find('[data-field="sigmas"] .error').text)
    page.type(sigmas="")
    add_argument(page, "prompt_2", "5")
    page.draw()
    assert "prompt_2" in page.seen('[data-field="extra_args"] .error').text
    assert page.driver.switch_to.active_element == page.find(".pair input")
    assert [entry for entry in page.complaints() if "400" not in entry] == []


def test_the_history_outlives_the_page(page: Playground) -> None:
    page.type(prompt=PROMPT, num_inference_steps=4)
    page.draw()
    page.drawn()
    page.open()
    page.click("#history-list button")
    assert page.drawn()[1].endswith("/ 4")


def test_keyboard_and_assistive_technology(page: Playground) -> None:
    page.type(prompt=PROMPT, num_inference_steps=4)
    page.field("prompt").send_keys(Keys.CONTROL, Keys.ENTER)
    page.drawn()
    unfold(page)
    page.script(AXE)
    found = []
    for scheme in ("light", "dark"):
        page.script("document.documentElement.style.colorScheme = arguments[0]", scheme)
        for tab in ("draw", "compare", "server"):
            page.click(f"#tab-{tab}")
            found += page.driver.execute_async_script(
                "axe.run().then(({violations}) => arguments[0](violations.map(({id, nodes}) => "
                "`${id}: ${nodes.map(({target}) => target.join(' ')).join(', ')}`)))"
            )
    assert found == []
    page.find("#tab-server").send_keys(Keys.ARROW_RIGHT)
    assert page.find("#tab-draw").get_attribute("aria-selected") == "true"


def unfold(page: Playground) -> None:
    """Show all fields of the form, with an error and an argument."""
    page.script("for (const part of document.querySelectorAll('details')) part.open = true")
    add_argument(page, "prompt_2", '"round"')
    page.type(sigmas="none")


def test_a_narrow_screen_needs_no_scrolling_sideways(page: Playground) -> None:
    metrics = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        page.type(prompt=PROMPT, num_inference_steps=4)
        page.draw()
        page.drawn()
        unfold(page)
        for tab in ("draw", "compare", "server"):
            page.click(f"#tab-{tab}")
            assert page.script("return document.documentElement.scrollWidth") == 360, tab
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_page_is_small_and_its_own(page: Playground) -> None:
    loaded = page.script(
        "return performance.getEntriesByType('resource').concat(performance.getEntriesByType('navigation'))"
        ".map(({name, decodedBodySize}) => [name, decodedBodySize])"
    )
    assert all(name.startswith(page.url) for name, _ in loaded)
    assert sum(size for _, size in loaded) < 300_000
    assert len({name for name, _ in loaded}) <= 28


def test_all_scripts_are_asked_for_at_once(page: Playground) -> None:
    """Three round trips until the form is there: the page, its files, and what the server takes."""
    named = page.script("return [...document.querySelectorAll('link, script')].map((one) => one.href || one.src)")
    loaded = page.script(
        "return performance.getEntriesByType('resource').map(({name, initiatorType}) => [name, initiatorType])"
    )
    asked = {name for name, initiator in loaded if initiator == "fetch"}
    assert {name.removeprefix(f"{page.url}/") for name in asked} == {"health", "capabilities"}
    assert {name for name, _ in loaded if name.endswith(".js")} == {name for name in named if name.endswith(".js")}


def test_the_operators_corner_tells_and_frees(page: Playground) -> None:
    page.type(prompt=PROMPT, num_inference_steps=4)
    page.draw()
    page.drawn()
    page.click("#tab-server")
    assert "FluxPipeline" in page.seen('[aria-label="Model"]').text
    assert "succeeded" in page.seen('[aria-label="Jobs"]').text

    def cached() -> str:
        return page.script("return document.querySelector('[aria-label=\"Memory\"] dl').textContent")

    assert page.find('[aria-label="Warnings of the last hour"]').text
    before = cached()
    page.click('[aria-label="Memory"] button')
    page.wait_until(lambda: cached() != before)


def test_priority_is_chosen_and_shown(driver: Chrome, rich: Server) -> None:
    page = Playground(driver, rich.url).open()
    page.type(prompt=PROMPT, num_inference_steps=4, priority=4)
    page.draw()
    assert "3" in page.seen('[data-field="priority"] .error').text
    page.type(priority=3)
    page.draw()
    page.drawn()
    page.click("#tab-server")
    assert "priority 3" in page.seen('[aria-label="Jobs"]').text


def test_the_operator_reads_warnings_without_their_values(driver: Chrome, rich: Server) -> None:
    assert rich.post("/loras/broken").status_code == 400
    page = Playground(driver, rich.url).open()
    page.click("#tab-server")
    rows = page.seen('[aria-label="Warnings of the last hour"] table').text
    # Other tests of this server may have failed in the same way before.
    assert re.search(r"error( \S \d+)? jobs\.pipeline_queue an action on the pipeline failed", rows), rows
    assert "safetensors" not in rows


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Address of another origin, and the folder that it shows."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    shown = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(SimpleHTTPRequestHandler, directory=folder))
    threading.Thread(target=shown.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{shown.server_port}", folder
    shown.shutdown()
    shown.server_close()


def test_a_key_is_asked_for_and_another_page_uses_one(
    driver: Chrome, tmp_path: Path, elsewhere: tuple[str, Path]
) -> None:
    origin, folder = elsewhere
    keyed = options(SERVER__API_KEYS=[{"name": "page", "key": KEY}], SERVER__CORS_ORIGINS=[origin])
    with serving(tmp_path, environ=keyed) as server:
        server.wait_for(ready)
        page = Playground(driver, server.url)
        driver.get(f"{server.url}/ui")
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
        assert "scope admin" in page.find('[aria-label="Warnings"]').text
        [example] = re.findall(r"```html\n(.*?)```", EMBEDDING.read_text(encoding="utf-8"), re.DOTALL)
        example = example.replace("https://pictures.example", server.url).replace("sk-...", KEY)
        (folder / "index.html").write_text(example, encoding="utf-8")
        driver.get(f"{origin}/index.html")
        page.wait_until(lambda: page.script("return document.getElementById('apple').naturalWidth") == 96)


def test_a_restarted_server_is_found_again(driver: Chrome, tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        server.wait_for(ready)
        page = Playground(driver, server.url).open()
        page.type(prompt=PROMPT, num_inference_steps=4)
        port = urlsplit(server.url).port
    page.draw()
    assert "does not answer" in page.seen("#fields .error").text
    assert "not answer" in page.seen("#banner").text
    with serving(tmp_path, port=port) as server:
        server.wait_for(ready)
        page.wait_until(lambda: page.find("#state").text == "ready")
        page.draw()
        assert page.drawn()[1].endswith("/ 4")


@pytest.mark.skipif(not shutil.which("node"), reason="no node on PATH")
@pytest.mark.parametrize("name", PAIRS)
def test_flip_of_the_page_is_that_of_flip_evaluator(name: str, tmp_path: Path) -> None:
    module = Path(__file__).parents[2] / "src/cache_dit_serving/api/static/ui/flip.js"
    ours, reference = ((255 * picture).round().astype(np.uint8) for picture in PAIRS[name])
    height, width, _ = ours.shape
    for file, picture in (("ours", ours), ("reference", reference)):
        (tmp_path / file).write_bytes(np.dstack([picture, np.full((height, width), 255, np.uint8)]).tobytes())
    code = f"""
    import {{ readFileSync }} from "node:fs";
    import {{ flip }} from {json.dumps(module.as_uri())};
    const picture = (file) => ({{ data: readFileSync(file), width: {width}, height: {height} }});
    console.log(flip(picture("ours"), picture("reference")), flip(picture("ours"), picture("ours")));
    """
    command = ["node", "--input-type=module", "-e", code]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    apart, same = (float(word) for word in run.stdout.split())
    assert apart == pytest.approx(flip(ours, reference), abs=1e-3)
    assert same == 0


def test_the_forecast_agrees_with_the_run_it_comes_from() -> None:
    module = Path(__file__).parents[2] / "src/cache_dit_serving/api/static/ui/forecast.js"
    code = f"""
    import {{ forecast }} from {json.dumps(module.as_uri())};
    const diffs = [undefined, undefined, .1, .15, .3, .1, .4];
    const rule = {{ threshold: .2, warmup: 2, most: -1, total: -1 }};
    const of = (change) => [...forecast(diffs, new Set([2, 3, 5]), {{ ...rule, ...change }})];
    const changes = [{{}}, {{ threshold: .12 }}, {{ most: 1 }}, {{ total: 1 }}, {{ threshold: 9 }}];
    console.log(JSON.stringify(changes.map(of)));
    """
    run = subprocess.run(["node", "--input-type=module", "-e", code], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == [[2, 3, 5], [2, 5], [2, 4], [2], [2, 3, 4, 5, 6]]
