"""The words: background colours, sizes and the templates that captions are drawn from."""

from __future__ import annotations

import random

COLOURS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255), "black": (20, 16, 16), "gray": (133, 128, 136), "red": (221, 36, 54),
    "orange": (250, 143, 37), "yellow": (252, 222, 66), "green": (46, 163, 76), "blue": (38, 88, 210),
    "sky blue": (143, 204, 248), "purple": (128, 72, 189), "pink": (250, 165, 206), "brown": (121, 81, 48),
}  # fmt: skip

SIZES: tuple[str, ...] = ("small", "", "big")
PLURALS: frozenset[str] = frozenset({"cherries", "sunglasses"})

TEMPLATES: tuple[str, ...] = (
    "{a} on {a_colour} background",
    "{a} on {a_colour} background",
    "{a} on {a_colour} background",
    "{it} on {a_colour} background",
    "{it} on {colour}",
    "{a} on {colour}",
    "{a}, {colour} background",
    "{it}, {colour} background",
    "{a} with {a_colour} background",
    "picture of {a} on {a_colour} background",
    "a picture of {a} on {a_colour} background",
)


def with_article(noun: str) -> str:
    """The noun phrase with "a" or "an", or bare when it is a plural."""
    if noun.rsplit(maxsplit=1)[-1] in PLURALS:
        return noun
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def caption(
    noun: str, colour: str, size: str, rng: random.Random, *, p_no_background: float = 0.08, p_empty: float = 0.06
) -> str:
    """A caption of the picture, sometimes without its background and sometimes empty.

    The empty ones make classifier-free guidance possible; those without a background teach that it is free.
    """
    draw = rng.random()
    if draw < p_empty:
        return ""
    it = f"{size} {noun}".strip()
    if draw < p_empty + p_no_background:
        return rng.choice((it, with_article(it)))
    template = rng.choice(TEMPLATES)
    return template.format(it=it, a=with_article(it), colour=colour, a_colour=with_article(colour))


def vocabulary(nouns: list[str]) -> list[str]:
    """Every word that a caption of these nouns can hold, sorted."""
    texts = [*nouns, *COLOURS, *SIZES, "a an of on with picture background"]
    return sorted({word for text in texts for word in text.split()})
