"""Keys as an operator writes them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from cache_dit_serving.config.keys import read_keys
from cache_dit_serving.config.reading import load_settings
from cache_dit_serving.errors import ConfigError

KEY = "sk-0123456789abcdef"
VARIABLE = "CACHE_DIT_SERVING__SERVER__API_KEYS"


def test_a_text_is_a_key_and_several_have_commas() -> None:
    keys = load_settings({VARIABLE: f"{KEY}, {KEY}x"}).server.api_keys
    assert [key.sha256 for key in keys] == [hashlib.sha256(each.encode()).hexdigest() for each in (KEY, f"{KEY}x")]
    assert [key.scopes for key in keys] == [("generate",)] * 2
    assert keys[0].name != keys[1].name
    assert KEY not in repr(load_settings({VARIABLE: KEY}))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("short", "16 or more"),
        ("[{name: a, key: short}]", "16 or more"),
        (f"[{{name: a, key: {KEY}, sha256: {'0' * 64}}}]", "give one of them"),
        (f"[{{key: {KEY}}}]", "name"),
        (f"[{{name: 'a b', key: {KEY}}}]", "name"),
        (f"[{{name: a, key: {KEY}, scopes: [all]}}]", "scopes"),
        (f"[{{name: a, key: {KEY}, scopes: []}}]", "scopes is empty"),
        (f"[{{name: a, key: {KEY}, colour: red}}]", "colour"),
        ("[{name: a}]", "sha256"),
        ("[7]", "api_keys"),
        (f"[{{{KEY}: bob}}]", "unknown field"),
        (f"{{{KEY}: bob}}", "api_keys"),
        (f"[{{name: bob, key: {KEY}", "line 1, column"),
        (f"[{KEY}, [{KEY}]]", "api_keys.1"),
        ("[2024-13-45]", "no valid value"),
        ("[!!bool x]", "no valid value"),
        ("[!!timestamp x]", "no valid value"),
        ("[" * 3000, "nested too deeply"),
    ],
)
def test_what_is_no_key_is_refused_without_telling_it(given: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load_settings({VARIABLE: given})
    assert sentence in str(error.value)
    assert KEY not in str(error.value)


def test_a_file_of_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(f"- {KEY}\n- {{name: bob, key: {KEY}y, scopes: [admin]}}\n")
    assert [key.scopes for key in read_keys(file)] == [("generate",), ("admin",)]
    file.write_text("")
    assert read_keys(file) == ()
    for content in (
        "{",
        "a: 1",
        f"- {{name: bob, key: {KEY}, colour: red}}",
        f"- {{{KEY}: bob}}",
        f"{{{KEY}: bob}}",
        f"- {{name: bob, key: {KEY}",
        f"- [{KEY}]",
        f"- *{KEY}",
        "- 2024-13-45",
        "- !!int ''",
        "- !!timestamp x",
        "[" * 3000,
    ):
        file.write_text(content)
        with pytest.raises(ConfigError, match="api_keys_file") as error:
            read_keys(file)
        assert KEY not in str(error.value)
    with pytest.raises(ConfigError, match="FileNotFoundError"):
        read_keys(tmp_path / "none.yaml")
