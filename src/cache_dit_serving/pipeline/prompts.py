"""Detection of prompts that a tokenizer cuts off, by recording the pipeline's calls of its tokenizers.

Limits and templates differ by family, and most families cut without a warning.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from cache_dit_serving.pipeline.protocol import Cut
from cache_dit_serving.pipeline.wrapped import Method, wrapped

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class Heard(NamedTuple):
    """Recorded call of a tokenizer with truncation."""

    component: str
    tokenizer: Any
    text: str
    tokens: int
    """Greatest number of tokens; the text beyond it is cut off."""
    special: bool
    """True if special tokens count among them."""
    kept: int | None
    """Characters up to the end of the last token that it kept; None if the tokenizer does not tell."""


def tokenizers_of(pipe: DiffusionPipeline) -> dict[str, Any]:
    """Return the tokenizers among a pipeline's components and inside its processors, by the component's name."""
    from transformers import PreTrainedTokenizerBase

    found = {}
    for name, component in pipe.components.items():
        tokenizer = getattr(component, "tokenizer", component)
        if isinstance(tokenizer, PreTrainedTokenizerBase):
            found[name] = tokenizer
    return found


@contextmanager
def listening(tokenizers: dict[str, Any]) -> Iterator[list[Heard]]:
    """Record the calls of these tokenizers in the body; yields the list that they are added to."""
    heard: list[Heard] = []
    names = {id(tokenizer): name for name, tokenizer in tokenizers.items()}
    with ExitStack() as stack:
        # Patches the class: `tokenizer(...)` does not look up `__call__` on the instance. The class that defines it:
        # one of the tokenizers' classes may inherit from another, and its calls would be recorded twice.
        for cls in {_definer(type(tokenizer)) for tokenizer in tokenizers.values()}:
            stack.enter_context(wrapped(cls, "__call__", partial(_noting, names=names, heard=heard)))
        yield heard


def _definer(cls: type) -> type:
    """Return the class of a tokenizer's ancestors, itself included, that defines its `__call__`."""
    return next(base for base in cls.__mro__ if "__call__" in vars(base))


def _noting(call: Method, *, names: dict[int, str], heard: list[Heard]) -> Method:
    def noting(tokenizer: Any, text: Any = None, *args: Any, **options: Any) -> Any:
        tokenized = call(tokenizer, text, *args, **options)
        if options.get("truncation") and id(tokenizer) in names:
            tokens = options.get("max_length") or tokenizer.model_max_length
            special = options.get("add_special_tokens", True)
            texts = [text] if isinstance(text, str) else list(text or ())
            name = names[id(tokenizer)]
            heard.extend(
                Heard(name, tokenizer, each, tokens, special, kept)
                for each, kept in zip(texts, _kept(tokenized, len(texts)), strict=True)
                if isinstance(each, str)
            )
        return tokenized

    return noting


def _kept(tokenized: Any, texts: int) -> list[int | None]:
    """Return the characters of each text that a tokenizer's result covers; None where it does not tell."""
    encodings = getattr(tokenized, "encodings", None) or ()
    if len(encodings) != texts:
        return [None] * texts  # a slow tokenizer, or one that returns the overflow as further texts
    return [
        max((end for _, end in encoding.offsets), default=0) if encoding.n_sequences == 1 else None
        for encoding in encodings
    ]


def cuts_of(heard: list[Heard], prompts: dict[str, str]) -> tuple[Cut, ...]:
    """Return the ends of prompts that were cut off, one entry per field and tokenizer.

    Args:
        prompts: text of each prompt, by field.
    """
    cuts = {}
    whole: dict[str, list[str]] = {}
    for each in heard:
        param = _field_of(each.text, prompts)
        if param is None:
            continue
        lost = _lost(each, prompts[param])
        if lost.strip():
            cuts[param, each.component] = Cut(param, each.component, each.tokens, lost.strip())
        elif each.component not in whole.setdefault(param, []):
            whole[param].append(each.component)
    return tuple(cut._replace(read_by=tuple(whole.get(cut.param, ()))) for cut in cuts.values())


def _field_of(text: str, prompts: dict[str, str]) -> str | None:
    """Return the field whose prompt a text contains; None if there is none.

    Case and blanks are ignored: pipelines put prompts into lower case, clean them and add templates.
    """
    words = _normal(text)
    return next((param for param, prompt in prompts.items() if prompt and _normal(prompt) in words), None)


def _normal(text: str) -> str:
    return " ".join(text.lower().split())


def _lost(heard: Heard, prompt: str) -> str:
    """Return the end of a prompt that a tokenizer cut off; empty if it kept all."""
    tokenizer, text, end = heard.tokenizer, heard.text, heard.kept
    if end is None and tokenizer.is_fast:
        options = {"truncation": True, "max_length": heard.tokens, "add_special_tokens": heard.special}
        offsets = tokenizer(text, return_offsets_mapping=True, **options)["offset_mapping"]
        end = max((end for _, end in offsets), default=0)
    if end is None:
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        room = heard.tokens - (tokenizer.num_special_tokens_to_add() if heard.special else 0)
        return str(tokenizer.decode(tokens[room:]))
    begin = text.find(prompt)
    if begin < 0:
        return text[end:]  # the pipeline has cleaned the prompt
    return prompt[max(0, end - begin) :]  # leaves out the template after the prompt
