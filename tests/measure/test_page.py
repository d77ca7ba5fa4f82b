"""A page that stands alone: its markup, its plots, and a browser that opens it from a file."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from cache_dit_serving.measure.page.axes import number, scale_of
from cache_dit_serving.measure.page.bars import Bar, stacked_bars
from cache_dit_serving.measure.page.document import page
from cache_dit_serving.measure.page.parts import Figure, Heading, Paragraph, Part, Table
from cache_dit_serving.measure.page.plots import Point, Series, plot
from tests.support.browser import browser, needs_browser

HOSTILE = "<script>alert(1)</script>\" onload='x' & {{ 7 * 7 }}"


def _page(text: str = "4 users") -> str:
    latency = plot(
        [
            Series(text, [Point(1, 0.2, (0.1, 0.3), label=text), Point(8, 1.6, (1.5, 1.8))]),
            Series("p99", [Point(1, 0.4), Point(8, 2.4, x_range=(7, 9))], line=False),
        ],
        x=text,
        y="latency, s",
        title=text,
        x_log=True,
    )
    stages = stacked_bars([text, "denoise"], [Bar(text, [0.1, 0.2]), Bar("8", [0.9, 0.2])], x="users", y="s", title="t")
    parts: list[Part] = [
        Heading(text),
        Paragraph(text, note=True),
        Table([text, "p50"], [[text, "1.2 s"]], caption=text),
        Figure(latency, text),
        Figure(stages, "stages"),
    ]
    return page(text, parts, lead=text, foot=text)


class _Elements(HTMLParser):
    """Tags and attributes of a document."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs


def test_every_text_is_escaped_wherever_it_stands() -> None:
    plain, hostile = _Elements(_page()), _Elements(_page(HOSTILE))
    assert hostile.tags == plain.tags
    assert [name for name, _ in hostile.attributes] == [name for name, _ in plain.attributes]
    assert "7 * 7" in _page(HOSTILE)


def test_a_page_has_no_script_and_names_no_address() -> None:
    source = _page()
    elements = _Elements(source)
    assert "script" not in elements.tags
    assert not {"src", "href", "style", "onload", "onclick"} & {name for name, _ in elements.attributes}
    assert not re.search(r"https?://|url\(|@import", source)


def test_hover_shows_the_value_with_its_error_bars() -> None:
    source = _page()
    assert "4 users: 4 users 1, latency, s 0.2 (0.1 to 0.3)" in source
    assert "8: denoise 0.2" in source


def test_parts_of_a_bar_lie_on_each_other_in_proportion() -> None:
    drawn = str(stacked_bars(["a", "b"], [Bar("x", [1, 3])], x="", y="", title=""))
    bars = [
        tuple(map(float, found)) for found in re.findall(r'<rect [^>]*? y="([\d.]+)"[^>]*? height="([\d.]+)"', drawn)
    ]
    (top_a, height_a), (top_b, height_b) = bars
    assert height_b == pytest.approx(3 * height_a, abs=0.1)
    assert top_b + height_b == pytest.approx(top_a, abs=0.1)


@pytest.mark.parametrize(
    ("values", "log", "ticks"),
    [
        ([0.3, 4.7], False, (0, 1, 2, 3, 4, 5)),
        ([1, 8], True, (1, 2, 5, 10)),
        ([5, 5], False, (0, 1, 2, 3, 4, 5)),
        ([], False, (0, 0.2, 0.4, 0.6, 0.8, 1)),
        ([0, 0], True, (0, 0.2, 0.4, 0.6, 0.8, 1)),
    ],
)
def test_ticks_are_round_and_hold_all_values(values: list[float], log: bool, ticks: tuple[float, ...]) -> None:
    scale = scale_of(values, 0, 100, zero=True, log=log)
    assert scale.ticks == pytest.approx(ticks)
    assert (scale(scale.low), scale(scale.high)) == (0, 100)


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.012345, "0.0123"), (1.5, "1.5"), (12345.6, "12,346"), (-2.0, "-2"), (100.0, "100")]
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


@needs_browser
def test_a_browser_opens_it_from_a_file_without_a_complaint(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(_page(HOSTILE), encoding="utf-8")
    with browser() as driver:
        driver.get((tmp_path / "page.html").as_uri())
        assert driver.get_log("browser") == []  # type: ignore[no-untyped-call]  # a style that the policy refuses would be named here
        assert driver.find_element("css selector", "h1").text == HOSTILE
        tip = driver.find_element("css selector", ".tip")
        assert tip.value_of_css_property("visibility") == "hidden"
        driver.execute_script("document.querySelector('.mark').focus()")
        assert tip.value_of_css_property("visibility") == "visible"
        grounds = []
        for scheme in ("light", "dark"):
            features = [{"name": "prefers-color-scheme", "value": scheme}]
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
            grounds.append(driver.find_element("css selector", "body").value_of_css_property("background-color"))
        assert grounds[0] != grounds[1]
