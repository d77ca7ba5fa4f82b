"""docs/licences.md, from the metadata of the installed packages. `python -m tools.licences` writes it anew."""

from __future__ import annotations

import re
import sysconfig
from importlib.metadata import Distribution, distributions
from pathlib import Path

from tests.support.server import ROOT
from tools.licences.bundled import LICENCES, bundled_libraries
from tools.licences.declared import declared_licence, is_copyleft

PAGE = ROOT / "docs" / "licences.md"
SITE = Path(sysconfig.get_path("purelib"))
FILES = ("requirements.txt", "requirements-quantization.txt")
"""The pins that the image installs, but for torchvision, which only an image with CUDA keeps."""
HEAD = """\
# Licences

This project is under Apache-2.0. The image also holds the packages below, Debian's, and Python. This page says what is
there; it is no legal advice.

- Each image has its bill of materials and a list of licences inside, made while it was built:
  [how to read them](image.md#bill-of-materials). They alone know what an image with CUDA holds: NVIDIA's libraries,
  which are proprietary, and torchvision, which is BSD.
- Debian's licences are in the image, in `/usr/share/doc/*/copyright`.
- Wheels of Rust and of Pillow name their parts, with licences, in `*.dist-info/sboms/` of the image.
- Weights have licences of their own: `about.licence` of the files in `configs/`, and the card of the model.
"""
GPL = """\

**GPL: x264 and x265.** The wheel of PyAV, `av`, holds both, and its FFmpeg is linked with them. The server encodes MP4
files by x264. Running the server needs no licence from you. Passing the image on, to customers or to a public registry,
is distribution of GPL software: recipients are owed the licence and the source. Licences of patents on H.264 and H.265
are another matter.

**LGPL and MPL.** Who passes the image on owes recipients the licences, and the source of these libraries. The project's
own code stays under Apache-2.0: it calls them as libraries of their own. psycopg is loaded only where `jobs.database`
is PostgreSQL.

**GCC's libraries.** The exception leaves programs that use them free.
"""


def normalized(name: str) -> str:
    """Return a package's name as the index writes it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned() -> dict[str, Distribution]:
    """Return the packages that the image's requirements pin, by normalized name."""
    lines = "".join((ROOT / file).read_text(encoding="utf-8") for file in FILES)
    names = {normalized(name) for name in re.findall(r"^([\w.-]+)==", lines, re.MULTILINE)}
    packages = {normalized(each.metadata["Name"]): each for each in distributions(path=[str(SITE)])}
    return {name: packages[name] for name in sorted(names)}


def licences_page() -> str:
    """docs/licences.md."""
    packages = pinned()
    declared = {name: declared_licence(package) for name, package in packages.items()}
    parts = [HEAD, "\n## Copyleft\n\n", "| package | of it | licence |\n", "|---|---|---|\n"]
    parts += [f"| `{name}` | itself | {text} |\n" for name, text in declared.items() if is_copyleft(text)]
    for folder, libraries in sorted(bundled_libraries(SITE).items()):
        name = normalized(folder)
        if name in packages:
            parts += [f"| `{name}` | {names} | {text} |\n" for text, names in _copyleft_of(libraries).items()]
    parts += [GPL, "\n## All packages\n\n", "| package | version | licence, as declared |\n", "|---|---|---|\n"]
    parts += [f"| `{name}` | {_version(packages[name])} | {text} |\n" for name, text in declared.items()]
    return "".join(parts)


def _version(package: Distribution) -> str:
    """Return a package's version as it is pinned: a build of torch for the CPU is of the same."""
    return package.version.split("+", maxsplit=1)[0]


def _copyleft_of(libraries: set[str]) -> dict[str, str]:
    """Return the names of libraries by licence, where that is copyleft."""
    by_licence: dict[str, list[str]] = {}
    for name in sorted(libraries):
        if is_copyleft(LICENCES[name]):
            by_licence.setdefault(LICENCES[name], []).append(f"lib{name}")
    return {licence: ", ".join(names) for licence, names in sorted(by_licence.items())}


if __name__ == "__main__":
    PAGE.write_text(licences_page(), encoding="utf-8")
