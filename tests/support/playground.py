"""The playground in a browser, as a person works it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import axe_core_python
import numpy as np
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

from cache_dit_serving.measure.distances.pixels import Pixels

PATIENCE_S = 120
T = TypeVar("T")
PROMPT = "a red apple on a blue background"
AXE = Path(axe_core_python.__file__).with_name("axe.min.js").read_text()
FOUND_BY_AXE = """
const [rules, done] = arguments;
const said = ({ id, nodes }) => `${id}: ${nodes.map(({ target }) => target.join(" ")).join(", ")}`;
axe.run(rules).then(({ violations }) => done(violations.map(said)));
"""


def run(text: str, language: str, folder: Path) -> str:
    """Run a copied text in a folder, and return what it writes to its standard output."""
    words = ["bash", "-c", text] if language == "curl" else [sys.executable, "-c", text]
    return subprocess.run(words, cwd=folder, check=True, timeout=120, capture_output=True, text=True).stdout


class Playground:
    """The page of one server, open in a browser."""

    def __init__(self, driver: Chrome, url: str) -> None:
        self.driver, self.url = driver, url

    def open(self) -> Playground:
        self.driver.get(f"{self.url}/ui")
        self.wait_until(lambda: self.driver.execute_script("return document.documentElement.dataset.ready"))
        return self

    def wait_until(self, condition: Callable[[], T]) -> T:
        return WebDriverWait(self.driver, PATIENCE_S, 0.05).until(lambda driver: condition())

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def seen(self, selector: str) -> WebElement:
        """The element once it is there and shown."""

        def shown() -> list[WebElement]:
            with contextlib.suppress(StaleElementReferenceException):  # another one stands in its place
                return [found for found in self.all(selector) if found.is_displayed()]
            return []

        return self.wait_until(shown)[0]

    def field(self, name: str) -> WebElement:
        return self.find(f'[data-field="{name}"] > :is(input, textarea, select)')

    def type(self, **fields: object) -> None:
        """Fill in fields; those that are folded away are opened."""
        for name, value in fields.items():
            field = self.field(name)
            self.driver.execute_script("arguments[0].closest('details')?.setAttribute('open', '')", field)
            if field.tag_name == "select":
                Select(field).select_by_value(json.dumps(value))
            else:
                field.clear()
                field.send_keys(str(value))

    def add_argument(self, name: str, value: str) -> None:
        """Add a pair of a name and a value to the further arguments."""
        self.script("document.querySelector('details.more').open = true")
        self.click('[data-field="extra_args"] .label button')
        pair = self.all(".pair")[-1]
        Select(pair.find_element("css selector", "select")).select_by_value(name)
        pair.find_element("css selector", "input").send_keys(value)

    def unfold(self) -> None:
        """Show all fields of the form, with an error and an argument."""
        self.script("for (const part of document.querySelectorAll('details')) part.open = true")
        self.add_argument("prompt_2", '"round"')
        self.type(sigmas="none")

    def choose_speed(self, name: str) -> None:
        self.driver.execute_script("arguments[0].click()", self.find(f'.speed input[value="{name}"]'))

    def click(self, selector: str) -> None:
        self.driver.execute_script("arguments[0].click()", self.seen(selector))

    def copied(self, action: str, language: str) -> str:
        """What *Copy as* offers of an action, in a language."""
        self.click(f"""[aria-label='Copy "{action}" as']""")
        self.click(f'#copied input[value="{language}"]')
        text = self.text("#copied pre")
        self.click("#copied .actions button:last-child")
        return text

    def draw(self) -> None:
        self.click("#draw")

    def drawn(self) -> list[str]:
        """The figures below an output, once there is one."""
        self.seen(".evidence")
        return [figure.text for figure in self.all(".figure dd")]

    def drop_latest(self) -> None:
        """Drop the file of the newest output on the page, and take its settings."""
        self.driver.execute_script(
            "const open = indexedDB.open('cache-dit-serving');"
            "open.onsuccess = () => {"
            " open.result.transaction('drawn').objectStore('drawn').getAll().onsuccess = ({target}) => {"
            "  const [{files}] = target.result.sort((a, b) => b.at - a.at);"
            "  const data = new DataTransfer(); data.items.add(new File([files[0]], 'mine.png'));"
            "  document.dispatchEvent(new DragEvent('drop', {dataTransfer: data, cancelable: true})); }; };"
        )
        self.click("#dropped-settings")

    def value(self, name: str) -> str:
        """What a field holds."""
        return str(self.field(name).get_attribute("value"))

    @contextlib.contextmanager
    def narrow(self, width: int) -> Iterator[None]:
        """Context in which the page is on a phone of this width, pixels."""
        metrics = {"width": width, "height": 740, "deviceScaleFactor": 1, "mobile": True}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        try:
            yield
        finally:
            self.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

    def pixels(self, picture: WebElement) -> Pixels:
        """Return the bytes of a picture on the page, (height, width, 3)."""
        width, height, values = self.script(
            """const picture = arguments[0], canvas = document.createElement("canvas");
            [canvas.width, canvas.height] = [picture.naturalWidth, picture.naturalHeight];
            const context = canvas.getContext("2d");
            context.drawImage(picture, 0, 0);
            const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
            return [canvas.width, canvas.height, [...data]];""",
            picture,
        )
        return np.array(values, np.uint8).reshape(height, width, 4)[..., :3]

    def text(self, selector: str) -> str:
        """The text of an element that may be replaced at any time; empty if there is none."""
        return str(self.script("return document.querySelector(arguments[0])?.textContent ?? ''", selector))

    def script(self, code: str, *arguments: object) -> Any:
        return self.driver.execute_script(code, *arguments)

    def complaints(self) -> list[str]:
        """Errors in the browser's console: what the page's policy forbids, what failed to load, what was not caught."""
        log = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        return [entry["message"] for entry in log if entry["level"] == "SEVERE"]
