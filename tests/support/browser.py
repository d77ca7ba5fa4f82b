"""A real browser, without a screen."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService

from tests.support.server import free_port

CHROMIUM = shutil.which("chromium-headless-shell", path="/usr/lib/chromium") or shutil.which("chromium")
"""The first one takes half as much CPU to open a page: it has no windows to draw.

Not Debian's script of that name on PATH: chromedriver would end the script, and not the browser.
"""
DRIVER = shutil.which("chromedriver")
ARGUMENTS = (
    *("headless", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"),
    # Less work beside the tests: no services of the browser's own, and no animation to paint.
    *("disable-background-networking", "disable-component-update", "disable-extensions", "disable-sync"),
    "force-prefers-reduced-motion",
)
needs_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no chromium and chromedriver on PATH (Debian: chromium, chromium-driver)"
)


@contextlib.contextmanager
def browser() -> Iterator[Chrome]:
    options = ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for argument in ARGUMENTS:
        options.add_argument(f"--{argument}")
    driver = Chrome(options, ChromeService(DRIVER, port=free_port()))
    driver.set_script_timeout(120)
    try:
        yield driver
    finally:
        driver.quit()
