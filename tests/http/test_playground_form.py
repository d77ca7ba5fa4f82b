"""The playground's form in a real browser: what it sends, refuses, writes for other clients and takes back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.support.browser import needs_browser
from tests.support.playground import PROMPT, Playground, run

pytestmark = [pytest.mark.slow, needs_browser]


@pytest.mark.parametrize("language", ["curl", "python", "openai"])
def test_what_is_copied_runs(page: Playground, language: str, tmp_path: Path) -> None:
    page.type(prompt='an apple\'s "twin" \\ $HOME', seed=5, num_inference_steps=4, image_format="png")
    page.script("document.querySelector('details.cache').open = true")
    page.type(**{"cache.max_warmup_steps": 1})
    page.click(f'#snippet-kind input[value="{language}"]')
    text = page.find("#snippet").text
    run(text, language, tmp_path)
    [file] = tmp_path.glob("output*.png")
    with Image.open(file) as drawn:
        written = json.loads(drawn.info["parameters"])
    assert written["prompt"] == 'an apple\'s "twin" \\ $HOME'
    assert (written["seed"], written["num_inference_steps"]) == (5, 4)
    assert written["cache"]["max_warmup_steps"] == 1


@pytest.mark.parametrize("language", ["curl", "Python"])
def test_what_is_copied_of_a_comparison_and_of_the_operators_actions_runs(
    page: Playground, language: str, tmp_path: Path
) -> None:
    page.type(prompt=PROMPT, seed=5, num_inference_steps=4, image_format="png")
    page.click("#tab-compare")
    run(page.copied("Compare", language), language, tmp_path)
    caches = {}
    for path in tmp_path.glob("*.png"):
        with Image.open(path) as drawn:
            written = json.loads(drawn.info["parameters"])
        assert (written["prompt"], written["seed"]) == (PROMPT, 5)
        caches[path.stem.removesuffix("-0")] = json.dumps(written.get("cache"))
    assert caches.keys() == {"lossless", "balanced", "fast"}
    assert len({*caches.values()}) == 3
    page.click("#tab-server")
    assert json.loads(run(page.copied("Free the cache", language), language, tmp_path))["success"]


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
    page.add_argument("negative_prompt_2", '"grey"')
    page.add_argument("prompt_2", "red & round")
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
    page.add_argument("prompt_2", "5")
    page.draw()
    assert "prompt_2" in page.seen('[data-field="extra_args"] .error').text
    assert page.driver.switch_to.active_element == page.find(".pair input")
    assert [entry for entry in page.complaints() if "400" not in entry] == []
