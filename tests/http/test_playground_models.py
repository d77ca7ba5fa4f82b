"""The playground in a real browser at a server of several models: the choice, what follows it, and the operator."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Chrome, Keys

from tests.support.browser import needs_browser
from tests.support.playground import AXE, FOUND_BY_AXE, PROMPT, Playground, run
from tests.support.server import Server

pytestmark = [needs_browser, pytest.mark.slow]
STATES = {"ready", "not loaded", "loading", "asleep", "failed"}


@pytest.fixture
def choosing(several: Server, driver: Chrome) -> Iterator[Playground]:
    """The playground of several models, as opened for the first time; it ends without an error in the console."""
    driver.execute_cdp_cmd("Storage.clearDataForOrigin", {"origin": several.url, "storageTypes": "all"})
    page = Playground(driver, several.url).open()
    yield page
    # The console lists what the server refuses: a model that cannot be loaded, and one that is not there.
    assert [entry for entry in page.complaints() if not re.search("status of (503|404)", entry)] == []


def choose(page: Playground, name: str) -> None:
    page.click(f'[data-model="{name}"]')
    page.wait_until(lambda: page.text("#model") == name)
    assert chosen(page) == [name]


def chosen(page: Playground) -> list[str]:
    return [str(row.get_attribute("data-model")) for row in page.all('.model[aria-pressed="true"]')]


def test_each_model_is_offered_once_with_its_state(choosing: Playground) -> None:
    rows = choosing.all(".model")
    assert [row.get_attribute("data-model") for row in rows] == ["apples", "quick", "classes", "torn"]
    assert {row.find_element("css selector", ".state").text for row in rows} <= STATES
    assert chosen(choosing) == ["apples"]


def test_a_server_of_one_model_offers_no_choice(page: Playground) -> None:
    assert page.all("#models") == []
    assert '"model"' not in page.find("#snippet").text


def test_a_chosen_model_brings_its_form_and_keeps_what_fits(choosing: Playground) -> None:
    page = choosing
    page.type(prompt=PROMPT, seed=5, num_inference_steps=4, width=112)
    page.script(
        "window.told = new Set();"
        "new MutationObserver(() => told.add(document.querySelector('#models .hint').textContent))"
        ".observe(document.getElementById('models'), {subtree: true, childList: true, characterData: true})"
    )
    choose(page, "quick")
    assert any(words.startswith("quick: ") for words in page.script("return [...told]"))
    kept = [page.value(name) for name in ("prompt", "seed", "num_inference_steps", "width")]
    assert kept == [PROMPT, "5", "4", "112"]
    assert page.find(".speed :checked").get_attribute("value") == "fast"
    choose(page, "classes")
    assert page.all('[data-field="prompt"]') == []
    assert page.value("seed") == "5"
    choose(page, "apples")
    assert page.value("prompt") == PROMPT
    assert page.find(".speed :checked").get_attribute("value") == "balanced"


def test_the_address_keeps_the_choice(choosing: Playground, driver: Chrome) -> None:
    choose(choosing, "quick")
    driver.refresh()
    choosing.wait_until(lambda: choosing.all(".model"))
    assert chosen(choosing) == ["quick"]
    driver.get(f"{choosing.url}/ui?model=nothing")
    choosing.wait_until(lambda: choosing.all(".model"))
    assert chosen(choosing) == ["apples"]


def test_a_model_that_cannot_be_loaded_leaves_the_form(choosing: Playground) -> None:
    choosing.type(prompt=PROMPT)
    choosing.click('[data-model="torn"]')
    assert choosing.seen("#models .error").text.startswith("torn: ")
    choosing.wait_until(lambda: choosing.text('[data-model="torn"] .state') == "failed")
    assert choosing.text('[data-model="torn"] .note')
    assert chosen(choosing) == ["apples"]
    assert choosing.value("prompt") == PROMPT
    choosing.draw()
    choosing.drawn()


def test_an_output_names_its_model_and_is_drawn_again_by_it(choosing: Playground, several: Server) -> None:
    page = choosing
    choose(page, "quick")
    page.type(prompt=PROMPT, seed=5, num_inference_steps=4)
    page.draw()
    page.drawn()
    newest = several.get("/jobs?limit=1").json()["jobs"][0]
    assert several.get(f"/jobs/{newest['id']}").json()["result"]["cache"]["speed"] == "fast"
    assert page.find(".drawn .seed").text == "quick · seed 5"
    choose(page, "apples")
    page.drop_latest()  # a file's settings go into the form that is there
    assert page.text("#dropped-name") == "mine.png: drawn by quick, the form is that of apples"
    page.wait_until(lambda: page.value("seed") == "5")
    assert chosen(page) == ["apples"]
    page.type(seed=6)
    [reuse] = [button for button in page.all(".picture button") if button.text == "Reuse settings with quick"]
    page.script("arguments[0].click()", reuse)
    page.wait_until(lambda: page.text("#model") == "quick" and page.value("seed") == "5")


@pytest.mark.parametrize(
    ("language", "model", "fields"),
    [
        ("curl", "classes", {"class_label": 3}),  # the default model refuses a class
        ("python", "classes", {"class_label": 3}),
        ("openai", "quick", {"prompt": PROMPT}),  # OpenAI's API has no classes
    ],
)
def test_what_is_copied_asks_the_chosen_model(
    choosing: Playground, language: str, model: str, fields: dict[str, object], tmp_path: Path
) -> None:
    choose(choosing, model)
    choosing.type(**fields, seed=1, num_inference_steps=10, image_format="png")
    choosing.click(f'#snippet-kind input[value="{language}"]')
    assert model in choosing.find("#snippet").text
    run(choosing.find("#snippet").text, language, tmp_path)
    assert len([*tmp_path.glob("output*.png")]) == 1


def test_a_comparison_is_that_of_the_chosen_model(choosing: Playground) -> None:
    choose(choosing, "classes")
    choosing.type(class_label=3, seed=1, num_inference_steps=2)
    choosing.click("#tab-compare")
    for box in choosing.all("#compare .choice input"):
        if box.is_selected() != (box.get_attribute("value") in ("lossless", "as in the form")):
            choosing.script("arguments[0].click()", box)
    choosing.click("#compare-draw")
    choosing.seen(".side")
    assert '"model":"classes"' in choosing.copied("Compare", "curl")
    assert "no such request" in choosing.copied("Compare", "OpenAI SDK")


def test_another_page_chooses_by_the_client(choosing: Playground) -> None:
    drawn = choosing.driver.execute_async_script(
        "const [fields, done] = arguments; import('./ui/client.js').then(async ({ Client }) => {"
        " const client = new Client({ model: 'classes' });"
        " const { files } = await client.draw(fields); const { tasks } = await client.capabilities();"
        " done([files[0].type, tasks]); });",
        {"class_label": 3, "seed": 1, "num_inference_steps": 2},
    )
    assert drawn == ["image/png", ["class-conditional"]]


def test_the_operator_has_a_model_sleep_and_wakes_it(choosing: Playground, several: Server) -> None:
    def status() -> str:
        [found] = [model for model in several.get("/health").json()["models"] if model["name"] == "classes"]
        return str(found["status"])

    choose(choosing, "classes")
    choosing.click("#tab-server")
    if status() == "asleep":
        choosing.click('[aria-label="Wake classes"]')
    choosing.click('[aria-label="Sleep classes"]')
    choosing.seen('[aria-label="Wake classes"]')
    assert status() == "asleep"
    assert "MiB" in choosing.text('[aria-label="Models"]')
    choosing.click('[aria-label="Wake classes"]')
    choosing.seen('[aria-label="Sleep classes"]')
    assert status() == "ready"
    assert "classes" in choosing.text('[aria-label="Model"]')


def test_the_choice_is_for_keyboards_readers_and_narrow_screens(choosing: Playground) -> None:
    choosing.find('[data-model="quick"]').send_keys(Keys.TAB)  # moves on, and chooses nothing
    assert chosen(choosing) == ["apples"]
    choosing.find('[data-model="quick"]').send_keys(Keys.ENTER)
    choosing.wait_until(lambda: choosing.text("#model") == "quick")
    choosing.script(AXE)
    found = []
    for scheme in ("light", "dark"):
        choosing.script("document.documentElement.style.colorScheme = arguments[0]", scheme)
        for tab in ("server", "draw"):
            choosing.click(f"#tab-{tab}")
            if tab == "server":
                choosing.seen('[aria-label="Models"]')
            found += choosing.driver.execute_async_script(FOUND_BY_AXE, {})
    assert found == []
    with choosing.narrow(360):
        for tab in ("server", "draw"):
            choosing.click(f"#tab-{tab}")
            assert choosing.script("return document.documentElement.scrollWidth") == 360, tab
