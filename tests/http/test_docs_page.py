"""The page of `/docs` in a browser: an example is one click away, and its pictures are seen."""

from __future__ import annotations

import json

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.expected_conditions import element_to_be_clickable, presence_of_element_located
from selenium.webdriver.support.wait import WebDriverWait

from tests.support.browser import needs_browser
from tests.support.server import Server

pytestmark = pytest.mark.slow

PICTURES = """
const [operation, done] = arguments;
const pictures = () => [...document.querySelectorAll(`${operation} .shown-files img`)];
const look = () => {
  if (pictures().length && pictures().every(picture => picture.complete && picture.naturalWidth))
    done(pictures().map(picture => [picture.alt, picture.naturalWidth]));
  else setTimeout(look, 50);
};
look();
"""

TYPED = """
const [area, text] = arguments;
Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, "value").set.call(area, text);
area.dispatchEvent(new Event("input", { bubbles: true }));
"""
"""Types a text at once: React renders the page anew at each key."""


def click(driver: Chrome, selector: str) -> None:
    element = WebDriverWait(driver, 120).until(element_to_be_clickable((By.CSS_SELECTOR, selector)))
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'}); arguments[0].click()", element)


def open_operation(driver: Chrome, operation: str) -> None:
    if not driver.find_elements(By.CSS_SELECTOR, f"{operation}.is-open"):
        click(driver, f"{operation} .opblock-summary-control")


@pytest.fixture(scope="module")
def page(server: Server, chromium: Chrome) -> None:
    """The page in the browser; it takes a second to draw."""
    chromium.get(f"{server.url}/docs")


@needs_browser
@pytest.mark.parametrize(
    ("operation", "shown"),
    [
        ("#operations-Generation-post_generate", ["images.0"]),
        ("#operations-Generation-post_compare", ["cached.image", "uncached.image", "difference"]),
        ("#operations-OpenAI-post_v1_images_generations", ["data.0.b64_json"]),
    ],
)
@pytest.mark.usefixtures("page")
def test_the_pictures_of_an_answer_are_shown(driver: Chrome, operation: str, shown: list[str]) -> None:
    open_operation(driver, operation)
    click(driver, f"{operation} .execute")
    pictures = driver.execute_async_script(PICTURES, operation)
    # What the page's policy forbids, and what fails to load, is told here.
    log = driver.get_log("browser")  # type: ignore[no-untyped-call]
    complaints = [entry for entry in log if entry["level"] == "SEVERE"]
    assert pictures == [[place, 96] for place in shown]
    assert complaints == []


@needs_browser
def test_an_example_is_sent_as_it_was_changed(server: Server, driver: Chrome) -> None:
    driver.get(f"{server.url}/docs")
    operation = "#operations-Generation-post_generate"
    open_operation(driver, operation)
    there = presence_of_element_located((By.CSS_SELECTOR, f"{operation} textarea.body-param__text"))
    body = WebDriverWait(driver, 120).until(there)
    changed = {**json.loads(str(body.get_attribute("value"))), "scheduler": "unipc", "num_inference_steps": 4}
    driver.execute_script(TYPED, body, json.dumps(changed))
    click(driver, f"{operation} .execute")
    driver.execute_async_script(PICTURES, operation)
    answer = driver.find_element(By.CSS_SELECTOR, f"{operation} .live-responses-table .highlight-code").text
    assert '"scheduler": "unipc"' in answer
