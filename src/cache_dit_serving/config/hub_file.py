"""One file of a hub id's, by the paths and addresses under which people know it."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import NamedTuple

from cache_dit_serving.safetensors_header import PICKLES

SUFFIXES = "|".join(sorted(suffix.removeprefix(".") for suffix in {".safetensors", ".gguf", *PICKLES}))
PART = r"(?=[\w.-]{1,96}(?![\w.-]))\w+(?:(?:[.-](?<!--)(?<!\.\.))+\w+)*"
"""An owner's or a model's name, by the hub's rules. It begins and ends with a letter, a digit or `_`."""
HUB_ID = re.compile(rf"(?a:{PART}/{PART})(?<!\.git)")
ID = rf"(?P<hub_id>{HUB_ID.pattern})"
NAME = rf"(?P<name>(?!.*\.\./)\w[^:?#]*\.(?:{SUFFIXES}))"
FORMS = (
    re.compile(rf"(?:https?://)?(?:huggingface\.co|hf\.co)/{ID}/(?:blob|resolve)/(?P<revision>[^/]+)/{NAME}(?:\?.*)?"),
    re.compile(rf"{ID}[:/]{NAME}"),
)
"""The address of a file's page or download, as diffusers' `from_single_file` takes it; and the hub id with a path."""


PAGE = re.compile(rf"(?:hf://|(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/){ID}(?:/tree/[^/]+)?/?(?:\?.*)?")
"""The address of a model's page."""


class HubFile(NamedTuple):
    """Place of a file on the hub."""

    hub_id: str
    name: str
    """Path within the hub id's files."""
    revision: str | None = None
    """Branch, tag or commit; None: `main`."""

    @property
    def file_name(self) -> str:
        """Name of the file, without its folder."""
        return PurePosixPath(self.name).name


def hub_file(path: str) -> HubFile | None:
    """Return the hub's file that a path or an address names; None if it has none of the forms."""
    for form in FORMS:
        if match := form.fullmatch(path):
            revision = match.groupdict().get("revision")
            return HubFile(match["hub_id"], match["name"], None if revision == "main" else revision)
    return None


def hub_page(path: str) -> str | None:
    """Return the hub id of the model whose page an address is; None if it is no such address."""
    match = PAGE.fullmatch(path)
    return match["hub_id"] if match else None
