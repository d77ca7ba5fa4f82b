"""Methods that are wrapped for the time of a call, and are afterwards as they were."""

from __future__ import annotations

import pytest

from cache_dit_serving.pipeline.wrapped import Method, wrapped


class Parent:
    def step(self) -> str:
        return "stepped"


class Child(Parent):
    pass


def louder(step: Method) -> Method:
    return lambda self: step(self).upper()


@pytest.mark.parametrize("cls", [Parent, Child])
@pytest.mark.parametrize("error", [None, KeyError])
def test_a_method_of_the_class_or_of_its_parent_is_wrapped_for_the_body_alone(
    cls: type[Parent], error: type[Exception] | None
) -> None:
    before, instance = dict(vars(cls)), cls()
    try:
        with wrapped(cls, "step", louder):
            assert instance.step() == "STEPPED"
            assert Parent().step() == ("STEPPED" if cls is Parent else "stepped")
            if error is not None:
                raise error
    except KeyError:
        pass
    assert instance.step() == "stepped"
    assert dict(vars(cls)) == before


def test_wraps_of_a_class_and_its_parent_nest() -> None:
    with wrapped(Parent, "step", louder), wrapped(Child, "step", lambda step: lambda self: step(self) + "!"):
        assert Child().step() == "STEPPED!"
    assert Child().step() == "stepped"
