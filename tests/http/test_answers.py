"""The shape of every kind of answer, held to a snapshot."""

from __future__ import annotations

from tests.support.server import Server
from tools.snapshot import ANSWERS, answers_of, rendered


def test_answers_have_the_keys_and_types_of_the_snapshot(server: Server) -> None:
    assert rendered(answers_of(server)) == ANSWERS.read_text(encoding="utf-8"), (
        "an answer has changed: if it should, write the snapshot anew with python -m tools.snapshot"
    )
