"""The playground in a real browser: drawing, what the cache did, and comparing."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageChops
from selenium.webdriver import ActionChains

from cache_dit_serving.measure.distances.flip import flip
from tests.support.browser import needs_browser
from tests.support.images import apple, file_of
from tests.support.playground import PROMPT, Playground

pytestmark = [pytest.mark.slow, needs_browser]
MARKUP = "<img src=x onerror=\"document.title='broken'\"><b>bold</b>"


def test_a_picture_is_drawn_watched_and_accounted_for(page: Playground) -> None:
    page.type(prompt=PROMPT, seed=5, num_inference_steps=100)
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
    assert steps == len(page.all(".timeline .step")) == 100
    assert count == len(page.all(".timeline .step.reused")) > 0
    assert f"{count} of 100 steps reused" in page.script("return document.getElementById('live').textContent")


def test_a_stranger_draws_an_idea_at_once(page: Playground) -> None:
    idea = page.find("#stage .actions button").text
    assert idea in page.find("#snippet").text, "it is the prompt's example, with which the request can be sent"
    page.choose_speed("lossless")
    page.click("#stage .actions button")
    assert page.drawn()[1:] == ["0 / 28", "lossless"]
    assert page.find(".frame img").get_attribute("alt") == page.value("prompt") == idea
    assert len(page.all(".timeline-place .cell.computed")) == 28


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


def test_the_reason_stands_where_the_cache_did_not_engage(page: Playground) -> None:
    page.type(prompt=PROMPT, num_inference_steps=8, **{"cache.max_warmup_steps": 8})
    page.draw()
    assert page.drawn()[1] == "0 / 8"
    assert "no more than the 8 of the warm-up" in page.find(".evidence .reason").text


def test_a_running_generation_is_cancelled(page: Playground) -> None:
    page.type(prompt=PROMPT, num_inference_steps=100, num_images=7)
    page.choose_speed("lossless")
    page.draw()
    page.wait_until(lambda: page.all(".step-bar .cell.computed"))
    page.click("#cancel")
    page.wait_until(lambda: [found.text for found in page.all("#stage .big")] == ["Cancelled"])
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
    drawn = Image.fromarray(page.pixels(page.find(".frame img")))
    apart = ImageChops.difference(drawn.convert("L"), apple().convert("L"))
    upper, lower = (float(np.asarray(apart.crop(box)).mean()) for box in ((0, 0, 96, 30), (20, 60, 76, 76)))
    assert 3 * upper < lower, "what was not painted stays"
    page.click(".actions button:last-child")
    page.wait_until(lambda: page.script("return document.querySelector('.picked img')?.alt").endswith("3.png"))


def test_what_is_typed_is_text_everywhere(page: Playground) -> None:
    page.type(prompt=MARKUP, negative_prompt=MARKUP)
    page.draw()
    page.seen('[data-field="negative_prompt"] .error')
    page.wait_until(lambda: page.find("#draw").is_enabled())
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


def test_the_history_outlives_the_page(page: Playground) -> None:
    page.type(prompt=PROMPT, num_inference_steps=4)
    page.draw()
    page.drawn()
    page.open()
    page.click("#history-list button")
    assert page.drawn()[1].endswith("/ 4")


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
    pictures = [page.pixels(picture) for picture in page.all(".side img")]
    shown = [float(found.text) for found in page.all(".side .flip")]
    assert shown == pytest.approx([flip(picture, pictures[0]) for picture in pictures[1:]], abs=1e-3)
    cut = page.find("#cut")
    page.script("arguments[0].value = 20; arguments[0].dispatchEvent(new Event('input'))", cut)
    assert "80%" in page.script("return document.querySelector('.above').style.clipPath")
    look_by = "const mode = document.getElementById('mode'); mode.value = arguments[0];" + (
        "mode.dispatchEvent(new Event('change'))"
    )
    page.script(look_by, "flicker")
    for hidden in ("true", "false"):
        page.wait_until(partial(page.script, f"return document.querySelector('.above').hidden === {hidden}"))
    page.script(look_by, "difference")
    assert "of 255" in page.seen(".heat figcaption").text


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
