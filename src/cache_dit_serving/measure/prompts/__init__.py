"""Prompts that ship with this package, one a line: for load on any model, and those of the embedded one."""

from __future__ import annotations

from importlib.resources import files


def varied() -> str:
    """Return the text of 200 prompts that differ in length, subject and style."""
    return (files(__package__) / "varied.txt").read_text(encoding="utf-8")


def embedded() -> str:
    """Return the text of the prompts that the embedded model was trained for."""
    return (files(__package__) / "embedded.txt").read_text(encoding="utf-8")
