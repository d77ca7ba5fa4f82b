"""Arguments and results of forward passes, taken apart and put together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput

from cache_dit_serving.pipeline.passes import Arguments, Result, agrees, joined, recipes

BATCH = torch.arange(12.0).reshape(2, 3, 2)
ROPE = torch.rand(3, 4)
PROMPT = torch.rand(1, 5, 2)


def part(**kwargs: Any) -> dict[str, Any] | None:
    """The second of two groups' part of these arguments."""
    found = Arguments((), kwargs).part(2, 1)
    return found and found.kwargs


def test_a_group_gets_its_samples_of_a_batch_and_all_that_has_none() -> None:
    residuals = [torch.rand(2, 3), torch.rand(2, 3)]
    given = {
        "hidden_states": BATCH,
        "timestep": torch.tensor([9, 9]),
        "rotary": (ROPE, ROPE),
        "residuals": residuals,
        "attention": {"mask": torch.ones(2, 5), "scale": 0.5},
        "sizes": [(8, 8), (8, 6)],
    }
    own = part(**given)
    assert own is not None
    assert torch.equal(own["hidden_states"], BATCH[1:])
    assert own["timestep"].tolist() == [9]
    assert own["rotary"][0] is ROPE
    assert [each.shape[0] for each in own["residuals"]] == [1, 1]
    assert torch.equal(own["residuals"][0], residuals[0][1:])
    assert own["attention"]["mask"].shape == (1, 5)
    assert own["attention"]["scale"] == 0.5
    assert own["sizes"] == [(8, 6)]


def test_a_batch_of_lists_is_dealt_out_by_sample() -> None:
    own = part(x=[torch.zeros(4, 3), torch.ones(4, 3)], t=torch.tensor([1.0, 1.0]))
    assert own is not None
    assert len(own["x"]) == 1
    assert bool((own["x"][0] == 1).all())


@pytest.mark.parametrize(
    "states", [torch.zeros(1, 3), torch.zeros(3, 3), torch.tensor(1.0)], ids=["one", "three", "none"]
)
def test_what_is_no_batch_for_these_groups_stays_whole(states: torch.Tensor) -> None:
    assert part(hidden_states=states) is None


@pytest.mark.parametrize(
    "result",
    [(BATCH,), (BATCH, None, BATCH[:, 0]), Transformer2DModelOutput(sample=BATCH), BATCH, ([*BATCH], {"more": 1})],
    ids=["tuple", "several", "output", "tensor", "list"],
)
def test_parts_of_a_batch_are_joined_as_the_whole(result: Any) -> None:
    whole = Result.of(lambda: result, Arguments((), {}))
    parts = [Result.of(lambda index=index: _sample(result, index), Arguments((), {})).whole() for index in (0, 1)]
    together = Result.of(lambda: joined(parts), Arguments((), {}))
    assert together.structure == whole.structure
    assert type(joined(parts)) is type(result)
    assert all(torch.equal(one, other) for one, other in zip(together.tensors, whole.tensors, strict=True))


def _sample(value: Any, index: int) -> Any:
    if isinstance(value, torch.Tensor):
        return value[index : index + 1]
    if isinstance(value, list):
        return value[index : index + 1]
    if isinstance(value, Transformer2DModelOutput):
        return Transformer2DModelOutput(sample=_sample(value.sample, index))
    return tuple(_sample(each, index) for each in value) if isinstance(value, tuple) else value


def test_a_result_without_values_shows_that_it_was_read() -> None:
    result = Result.of(lambda: (BATCH, None), Arguments((), {}))
    empty = Result.empty(result.described(), torch.device("cpu"))
    tensor, none = empty.whole()
    assert none is None
    assert tensor.shape == BATCH.shape
    assert bool(tensor.isnan().all())


def test_later_arguments_follow_from_the_first_ones_as_they_did_before() -> None:
    first = {"states": BATCH, "prompt": PROMPT, "t": torch.tensor([3.0]), "mode": "a"}
    later = {"states": BATCH[1:], "prompt": PROMPT + 1, "t": torch.tensor([3.0]), "mode": "b"}
    found = recipes(Arguments((), first), Arguments((), later))
    anew = {"states": BATCH * 2, "prompt": PROMPT, "t": torch.tensor([2.0]), "mode": "a"}
    made = Arguments((), later).like(Arguments((), anew), found).kwargs
    expected = {"states": BATCH[1:] * 2, "prompt": PROMPT + 1, "t": torch.tensor([2.0]), "mode": "b"}
    assert bool(agrees(made, expected))
    assert not bool(agrees(made, expected | {"t": torch.tensor([1.0])}))
    assert not bool(agrees(made, expected | {"mode": "a"}))
    assert not bool(agrees(made, expected | {"states": BATCH}))
