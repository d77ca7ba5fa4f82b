"""A request's JSON body: read within bounds, and checked before anything is done with it.

BentoML 1.4.39 validates a body on the event loop, answers every finding of pydantic's, and logs each such answer as an
error with a traceback that quotes the body. So each body is checked here first, at a cost that its size cannot raise,
and only one without fault reaches BentoML.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, AnyStr, NamedTuple

import pydantic_core
from pydantic import BaseModel, ValidationError
from starlette.types import Message, Receive

from cache_dit_serving.api.lenient import read_leniently, with_whole_numbers
from cache_dit_serving.api.operation import UNSUPPORTED_FIELDS_HEADER, JsonBody, Respelt
from cache_dit_serving.api.uploads import take_out_files
from cache_dit_serving.caching.step_masks import MOST_STEPS
from cache_dit_serving.engine.sent_as import SentAs
from cache_dit_serving.errors import BodyTooLarge, BodyTooSlow, ClientGone, InvalidRequest
from cache_dit_serving.findings import and_more, cut, findings_of, known_keys, nearest_key, not_supported
from cache_dit_serving.schemas.answers import RequestWarning
from cache_dit_serving.schemas.request import GenerateRequest, JobRequest

AS_IT_STANDS = SentAs()
OF_JOBS = JobRequest.model_fields.keys() - GenerateRequest.model_fields.keys()
MOST_VALUES = MOST_STEPS
"""Greatest number of values in one list; no field takes more."""
MOST_KEYS = 200
"""Greatest number of keys in one object; no object has as many."""
MOST_SYMBOLS = 100_000
"""Greatest number of `[`, `{`, `:` and `,` in a body, which make JSON slow to read. No prompt holds as many."""
SMALL_BYTES = 32_768
"""A body up to this size is checked in well under a millisecond; larger ones leave the event loop for it."""
SURROGATE = re.compile("[\ud800-\udfff]")
HALF_SPELT = re.compile(rb"\\u[dD][89a-fA-F]")
"""A half of a surrogate pair, or both, as an escape."""
DRAIN_LIMITS = 4
"""Multiple of the limit up to which the rest of a body that is too large is read and dropped."""
DRAIN_S = 3.0
"""Seconds for which it is."""


async def read_body(receive: Receive, *, max_bytes: int, max_s: float) -> bytes:
    """Return the whole body of a request.

    Raises:
        BodyTooLarge: it is larger than `max_bytes`.
        BodyTooSlow: it is not there after `max_s` seconds.
        ClientGone: the client closed the connection before it was there.
    """
    parts: list[bytes] = []
    received = 0
    try:
        async with asyncio.timeout(max_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone("the client closed the connection before its request was there")
                part = message.get("body", b"")
                received += len(part)
                if received > max_bytes:
                    raise too_large(max_bytes)
                parts.append(part)
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError:
        raise BodyTooSlow(f"the body was not there after {max_s:g} s; send it at once") from None


def too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than the {max_bytes:,} bytes this server takes")


async def drop_rest(receive: Receive, *, max_bytes: int) -> None:
    """Read what a client still sends of a body that is refused.

    A connection that is closed with bytes unread is reset, and the client sees that instead of the answer.
    """
    left = DRAIN_LIMITS * max_bytes
    try:
        async with asyncio.timeout(DRAIN_S):
            while left > 0:
                message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
                left -= len(message.get("body", b""))
    except TimeoutError:
        return


def replayed(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives a body already read, then the messages after it."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


class CheckedBody(NamedTuple):
    """A body without fault."""

    content: BaseModel
    """The model of its row."""
    respelt: bytes
    """JSON of the content, for BentoML, which reads it once more; empty if the client sent nothing."""
    warnings: tuple[RequestWarning, ...]
    """Fields that were read otherwise than they were sent."""
    uploads: tuple[str | bytes, ...]
    """Its images: each field names one as `upload:0` and so on."""
    sent_as: SentAs
    """Its fields as the client named them."""


async def check_body(
    body: bytes, policy: JsonBody, *, lenient: bool, files: Sequence[bytes] = (), sent_as: SentAs = AS_IT_STANDS
) -> CheckedBody:
    """Refuse a body that is no request of its model's; an empty one counts as `{}`.

    Args:
        files: images that came beside it.
        sent_as: names that its fields had in a form.
        lenient: whether it is read as :mod:`api.lenient` says; it then comes back so spelt.

    Raises:
        InvalidRequest: it is not JSON, or holds too much, a key twice, or what the model does not take.
    """
    if len(body) <= SMALL_BYTES:
        return _check(body, policy, lenient, files, sent_as)
    return await asyncio.to_thread(_check, body, policy, lenient, files, sent_as)


def _check(given: bytes, policy: JsonBody, lenient: bool, files: Sequence[bytes], sent_as: SentAs) -> CheckedBody:
    given = given.removeprefix(codecs.BOM_UTF8)
    tree = _read(given or b"{}")
    with sent_as.in_errors():
        respelt = policy.respelt(tree, lenient)
    respelt = respelt._replace(sent_as=sent_as | respelt.sent_as)
    with respelt.sent_as.in_errors():
        return _validated(given, respelt, policy.model, changed=respelt.tree is not tree, lenient=lenient, files=files)


def _read(body: bytes) -> dict[str, Any]:
    """Return the JSON object that a body holds, within bounds."""
    left = MOST_SYMBOLS
    for symbol in (b"[", b"{", b":", b","):
        left -= _count(body, symbol, left)
    if left < 0:
        raise InvalidRequest("the body holds far more values than any request has; send fewer", code="too_long")
    try:
        tree = pydantic_core.from_json(body)
    except ValueError as error:
        raise _not_json(body, error) from None
    if not isinstance(tree, dict):
        raise InvalidRequest(f"the body must be a JSON object, not {_json_type(tree)}")
    for path, value in _containers(tree):
        if isinstance(value, list) and len(value) > MOST_VALUES:
            sentence = f"{path}: holds {len(value):,} values; no field takes more than {MOST_VALUES:,}"
            raise InvalidRequest(sentence, param=path, code="too_long")
        if isinstance(value, dict) and len(value) > MOST_KEYS:
            place = path or "the body"
            raise InvalidRequest(f"{place} has {len(value):,} fields; no request has as many", param=path or None)
    if _may_hold_a_key_twice(body, tree):
        json.loads(body, object_pairs_hook=_without_duplicates)
    return tree


def _count(text: AnyStr, symbol: AnyStr, most: float = math.inf) -> int:
    """Return how often a text holds a symbol, or a number above `most`.

    `count` looks at each byte in one call that keeps the interpreter's lock: 14 ms for 20 MB of base64 on a slow
    machine. `find` skips to the next one by memchr.
    """
    found, place = 0, text.find(symbol)
    while place >= 0 and found <= most:
        found += 1
        place = text.find(symbol, place + 1)
    return found


def _may_hold_a_key_twice(body: bytes, tree: dict[str, Any]) -> bool:
    """Return whether only a reader of pairs can tell, which keeps the interpreter's lock for 60 ms of such a body.

    Each pair of an object has a colon, and of pairs with one key the tree has the last alone. So it has them all if its
    colons are those of the body: one a pair, and those of its texts, which must not be spelt as escapes.
    """
    if b"\\" in body and b"\\u003" in body:
        return True
    left = _count(body, b":")
    for _, value in _containers(tree):
        texts = list(value.values()) if isinstance(value, dict) else value
        if isinstance(value, dict):
            left -= len(value)
            texts += value
        left -= sum(_count(text, ":") for text in texts if isinstance(text, str))
    return left != 0


def _validated(
    given: bytes, respelt: Respelt, model: type[BaseModel], *, changed: bool, lenient: bool, files: Sequence[bytes]
) -> CheckedBody:
    """Return a body that a model takes.

    Args:
        changed: whether it is respelt otherwise than it was given.
    """
    tree = with_whole_numbers(respelt.tree, model)
    changed = changed or tree is not respelt.tree
    uploads = take_out_files(tree, files)
    warnings = list(respelt.warnings)
    if lenient:
        tree, adjusted = read_leniently(tree, model)
        warnings += adjusted
    body = given or b"{}"
    if given and (changed or uploads or lenient):
        given = body = pydantic_core.to_json(tree)
    try:
        content = model.model_validate_json(body)
    except ValidationError as error:
        raise _invalid(error, model, {} if lenient else _read_under_warn(tree, model)) from None
    return CheckedBody(content, given, tuple(warnings), tuple(uploads), respelt.sent_as)


def _read_under_warn(tree: dict[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """Return the fields that only the lenient reader takes, as it reads them."""
    read, _ = read_leniently(tree, model)
    try:
        model.model_validate_json(pydantic_core.to_json(read))
        refused = set()
    except ValidationError as error:
        refused = {detail["loc"][0] for detail in error.errors(include_url=False, include_input=False) if detail["loc"]}
    return {name: value for name, value in read.items() if value is not tree.get(name) and name not in refused}


def _not_json(body: bytes, error: ValueError) -> InvalidRequest:
    """Return the refusal of a body that pydantic cannot read.

    It reads no half of a surrogate pair, which JSON can spell and Unicode does not have. Python's reader does, and so
    finds the field.
    """
    if body.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return InvalidRequest("the body is UTF-16; send JSON as UTF-8", code="invalid_json")
    with contextlib.suppress(ValueError, RecursionError):
        tree = json.loads(body) if HALF_SPELT.search(body) else None
        if isinstance(tree, dict) and (param := _surrogate_in(tree)) is not None:
            half = "holds half a character (a surrogate without its other half); send whole characters"
            return InvalidRequest(f"{param}: {half}", param=param)
    return InvalidRequest(f"the body is not valid JSON ({error})", code="invalid_json")


def _surrogate_in(tree: dict[str, Any]) -> str | None:
    """Return the dotted place of the first text that UTF-8 cannot hold; for a key, that of its object."""
    for path, value in _containers(tree):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            for text, place in ((key, path), (part, f"{path}.{key}" if path else str(key))):
                if isinstance(text, str) and SURROGATE.search(text):
                    return place or "the body"
    return None


def _containers(tree: dict[str, Any]) -> Iterator[tuple[str, list[Any] | dict[str, Any]]]:
    """Yield each list and object of a body with its dotted place, which is empty for the body itself."""
    waiting: list[tuple[str, list[Any] | dict[str, Any]]] = [("", tree)]
    while waiting:
        path, value = waiting.pop()
        yield path, value
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        waiting += [
            (f"{path}.{cut(str(key))}" if path else cut(str(key)), part)
            for key, part in parts
            if isinstance(part, (list, dict))
        ]


def _without_duplicates(pairs: list[tuple[str, Any]]) -> None:
    """Refuse an object with one key twice: readers differ in which of the two counts."""
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise InvalidRequest(f"{cut(key)}: stands twice in one object; send it once", param=cut(key))
        seen.add(key)


def _invalid(error: ValidationError, model: type[BaseModel], under_warn: dict[str, Any]) -> InvalidRequest:
    """Return pydantic's findings as one error: the first few in the message, the first one's field as `param`.

    Args:
        under_warn: fields that the lenient reader takes, as it reads them.
    """
    findings = findings_of(error)
    sentences = []
    for finding in findings:
        message = finding.message
        if finding.kind == "missing":
            message = "is missing; it is required"
        elif finding.kind == "extra_forbidden":
            key = finding.keys[-1]
            nearest = nearest_key(key, known_keys(model, finding.keys[:-1]))
            hint = f"did you mean '{nearest}'?" if nearest else "remove it"
            if finding.field in OF_JOBS:
                hint = "POST /jobs takes it"
            message = not_supported(key) or f"is not a field of this request; {hint}"
        elif finding.field in under_warn:
            read = under_warn[finding.field]
            meaning = "as if left out" if read is None else f"as {cut(json.dumps(read))}"
            message += f" (with the header {UNSUPPORTED_FIELDS_HEADER}: warn it is read {meaning})"
        sentences.append(f"{finding.field}: {message}" if finding.field else message)
    return InvalidRequest("; ".join(sentences) + and_more(error), param=findings[0].field or None)


def _json_type(value: object) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null")
