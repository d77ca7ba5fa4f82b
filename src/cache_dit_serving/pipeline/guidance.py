"""Guidance over groups of ranks: each computes its own forward passes of a step, and they exchange the results.

Every rank runs the whole pipeline, so each knows what the others do.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from cache_dit.caching.cache_contexts import cache_manager

from cache_dit_serving.caching.evidence import Record, with_passes_of
from cache_dit_serving.pipeline.memory import is_out_of_memory
from cache_dit_serving.pipeline.passes import Arguments, Recipe, Result, agrees, joined, recipes
from cache_dit_serving.pipeline.wrapped import Method, standing_in, wrapped

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Forward = Callable[..., Any]


class PassesVary(Exception):
    """Error for a step whose forward passes are not those of the first step, which no exchange fits."""


class SharedGuidance:
    """Forward passes of a step, dealt out to groups of ranks: pass k belongs to group k modulo their number.

    A pass over a batch is split instead, and its result put together at once. In the first step of a call the result of
    each other pass is exchanged at once too, which tells how many passes a step has and how large their results are. In
    later steps all are exchanged at once:

    - at the last pass. Until then, a pass of another group returns tensors that have no values yet;
    - with `ahead` at the first pass, for pipelines that read each result before they make the next pass. The arguments
      of later passes are made of those of the first one then, and compared with the pipeline's own when these come.
    """

    def __init__(self, groups: int) -> None:
        """
        Args:
            groups: number of groups, which divides the number of ranks. Consecutive ranks are one group.
        """
        world = dist.get_world_size()
        size = world // groups
        self.ahead = False
        """True to compute all passes at the first one."""
        self._group, place = divmod(dist.get_rank(), size)
        self._ranks = list(range(place, world, size))
        """Ranks in the same place of each group: this one, and those with which it exchanges."""
        across = [range(each, world, size) for each in range(size)]
        self._exchange = _own(across)
        self._told = _own(across, backend="gloo")
        """The same ranks, to agree on values of the host."""
        self._within = _own([range(each * size, (each + 1) * size) for each in range(groups)]) if size > 1 else None
        self._sharing = False
        self._device = torch.device("cpu")
        self._begin()
        # It would reduce over all ranks alike, those of other passes too (1.5.3).
        cache_manager.dist = standing_in(dist, all_reduce=self._reduce)

    def _begin(self) -> None:
        self._index = 0
        """Number of the step's next pass."""
        self._passes: int | None = None
        """Passes a step; None in the first step."""
        self._arguments: list[Arguments] = []
        """Arguments of each pass, of the first step; with `ahead` those that were made for the current one."""
        self._recipes: list[dict[int | str, Recipe]] = []
        """Recipes of each pass's arguments from those of the first."""
        self._results: dict[int, Result] = {}
        """Last result of each pass."""
        self._error: Exception | None = None
        """Error of this rank's pass, of which the others do not know yet."""
        self._as_made: torch.Tensor | bool = True
        """True while the arguments of all passes were as made ahead; a tensor of the device."""
        self._in_part = self._split = False
        """True while a part of a batch is computed; true once one was in this call."""

    def install(self, denoisers: Sequence[torch.nn.Module]) -> None:
        """Share each call of these networks from now on, whatever is put in the place of their `forward` later."""
        for denoiser in denoisers:
            own = type(denoiser)
            self._device = next(denoiser.parameters()).device

            def call(module: torch.nn.Module, *args: Any, _own: type[torch.nn.Module] = own, **kwargs: Any) -> Any:
                return self._run(functools.partial(_own.__call__, module), Arguments(args, kwargs))

            # On a class of its own: cache-dit replaces the instance's `forward`.
            denoiser.__class__ = type(own.__name__, (own,), {"__module__": own.__module__, "__call__": call})

    @contextmanager
    def shared(self, pipe: DiffusionPipeline) -> Iterator[None]:
        """Share the forward passes of a pipeline's call in the body.

        Raises:
            PassesVary: the steps differ in their passes; raised on all ranks alike, in the call or after it.
        """

        def ending(step: Method) -> Method:
            @functools.wraps(step)  # pipelines inspect its parameters
            def ended_step(*args: Any, **kwargs: Any) -> Any:
                self._end_step()
                return step(*args, **kwargs)

            return ended_step

        self._begin()
        self._sharing = True
        try:
            with self._failing_together(), wrapped(type(pipe.scheduler), "step", ending):
                yield
        finally:
            self._sharing = False
            self._arguments, self._recipes, self._results = [], [], {}
        if not self._as_made:
            raise PassesVary("the arguments of a later pass do not follow from those of the first one")

    @property
    def shares(self) -> bool:
        """True if the last call made several passes a step, or one over a batch that was dealt out."""
        return self._split or (self._passes or 1) > 1

    def merged(self, record: Record) -> Record:
        """Return the record of a whole call, from those of the passes of each group. It is the same on all ranks."""
        records: list[Any] = [None] * len(self._ranks)
        dist.all_gather_object(records, record, group=self._told)
        first, *others = records
        return with_passes_of(first, others, split=self._split)

    def _reduce(self, tensor: torch.Tensor, op: Any) -> None:
        """Reduce a value that decides on the reuse of a pass, over the ranks that compute parts of this pass."""
        if self._in_part or not self._sharing:
            dist.all_reduce(tensor, op=op)
        elif self._within is not None:
            dist.all_reduce(tensor, op=op, group=self._within)

    def _end_step(self) -> None:
        if self._passes is None:
            if not self._index:
                return
            self._passes = self._index
            if self.ahead:
                self._recipes = [recipes(self._arguments[0], each) for each in self._arguments]
        elif self._index not in (0, self._passes):
            raise PassesVary(f"a step has {self._index} forward passes, the first one {self._passes}")
        self._index = 0

    def _run(self, forward: Forward, arguments: Arguments) -> Any:
        if not self._sharing:
            return forward(*arguments.args, **arguments.kwargs)
        if (part := arguments.part(len(self._ranks), self._group)) is not None:
            return self._run_part(forward, part)
        index, self._index = self._index, self._index + 1
        if self._passes is None:
            self._run_at_once(forward, arguments, index)
        elif index >= self._passes:
            raise PassesVary(f"a step has more forward passes than the first one, which has {self._passes}")
        elif self.ahead:
            self._run_ahead(forward, arguments, index)
        else:
            self._run_late(forward, arguments, index)
        return self._results[index].whole()

    def _run_at_once(self, forward: Forward, arguments: Arguments, index: int) -> None:
        """Have a pass computed by its group, and exchanged."""
        self._arguments.append(arguments)
        with self._failing_together():
            own = Result.of(forward, arguments) if self._is_own(index) else None
        said = [own.described() if own is not None else None]
        dist.broadcast_object_list(said, src=self._owner(index), group=self._told)
        self._results[index] = own or Result.empty(said[0], self._device)
        self._send([self._results[index]], first=index)

    def _run_late(self, forward: Forward, arguments: Arguments, index: int) -> None:
        """Compute a pass of this rank's group, or return a result without values; exchange all at the last pass."""
        last = index + 1 == self._passes
        with self._failing_together(now=last):
            self._results[index] = self._own_or_empty(forward, arguments, index)
        if last:
            self._send(self._step_results())

    def _run_ahead(self, forward: Forward, arguments: Arguments, index: int) -> None:
        """Compute all passes of this rank's group at the first pass of a step, and exchange all."""
        if index:
            same = agrees(self._arguments[index], arguments)
            self._as_made = same if self._as_made is True else self._as_made & same
            return
        made = zip(self._arguments, self._recipes, strict=True)
        self._arguments = [each.like(arguments, recipe) for each, recipe in made]
        with self._failing_together():
            for later, each in enumerate(self._arguments):
                self._results[later] = self._own_or_empty(forward, each, later)
        self._send(self._step_results())

    def _own_or_empty(self, forward: Forward, arguments: Arguments, index: int) -> Result:
        """Compute a pass of this rank's group; return a result without values for another one's.

        Raises:
            PassesVary: the result has other shapes than that of the step before, for which the others have room.
        """
        before = self._results[index].described()
        if not self._is_own(index):
            return Result.empty(before, self._device)
        result = Result.of(forward, arguments)
        if result.described()[0] != before[0]:
            raise PassesVary("the result of a pass has another shape than in the step before")
        return result

    def _run_part(self, forward: Forward, part: Arguments) -> Any:
        """Compute this rank's part of a batch; return the result of the whole batch."""
        self._in_part = self._split = True
        try:
            with self._failing_together():
                own = Result.of(forward, part)
        finally:
            self._in_part = False
        parts = [own if group == self._group else own.like() for group in range(len(self._ranks))]
        self._send(parts)
        return joined([each.whole() for each in parts])

    def _step_results(self) -> list[Result]:
        return [self._results[index] for index in range(self._passes or 0)]

    def _owner(self, index: int) -> int:
        """Return the rank that computes a pass, or a part of a batch, for this one."""
        return self._ranks[index % len(self._ranks)]

    def _is_own(self, index: int) -> bool:
        return index % len(self._ranks) == self._group

    def _send(self, results: Sequence[Result], *, first: int = 0) -> None:
        """Send those of these results that this rank has computed, and receive the others.

        Args:
            first: number of the first one, which tells whose they are.
        """
        works = [
            dist.broadcast(tensor, src=self._owner(index), group=self._exchange, async_op=True)
            for index, result in enumerate(results, start=first)
            for tensor in result.tensors
        ]
        for work in works:
            work.wait()

    @contextmanager
    def _failing_together(self, *, now: bool = True) -> Iterator[None]:
        """Raise an error of the body on all ranks of the exchange, which would wait for this one's results else.

        Each rank that leaves the body waits for the others to leave it, or another body of the same call.

        Args:
            now: the ranks exchange after the body. If they do not, the error is kept until they do.
        """
        try:
            yield
        except Exception as error:  # noqa: BLE001 (raised again)
            self._error = error
        if not now:
            return
        failed = torch.tensor([0 if self._error is None else _kind(self._error)])
        dist.all_reduce(failed, op=dist.ReduceOp.MAX, group=self._told)
        if self._error is not None:
            raise self._error
        if failed:
            raise KINDS[int(failed) - 1]("another rank failed in its forward pass")


KINDS = (PassesVary, RuntimeError, torch.OutOfMemoryError)
"""Errors that ranks raise together, by the number that they exchange, from 1: of several, the last one counts."""


def _kind(error: Exception) -> int:
    """Return the number of an error, as :data:`KINDS` has it."""
    if is_out_of_memory(error):
        return 3
    return 1 if isinstance(error, PassesVary) else 2


def _own(groups: Sequence[Sequence[int]], backend: str | None = None) -> Any:
    """Make these groups of ranks, as all ranks must; return the one that this rank is in."""
    made = [(ranks, dist.new_group(list(ranks), backend=backend)) for ranks in groups]
    return next(group for ranks, group in made if dist.get_rank() in ranks)
