"""Environments of Python for tests of what is installed, made quickly."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections import Counter
from importlib.metadata import Distribution, distributions
from pathlib import Path, PurePath

from packaging.utils import canonicalize_name

UV = Path(sys.executable).with_name("uv")
WOULD_INSTALL = re.compile(r"^ \+ (\S+)==(\S+)$", re.MULTILINE)
"""A line of `uv pip install --dry-run`."""
SETTING = re.compile(r"^(\S+)=(.*)$", re.MULTILINE)
"""A line of `pip config list`."""


def empty_environment(folder: Path) -> Path:
    """Make an environment without packages, pip among them; return its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    return folder / "bin" / "python"


def pip_for(python: Path) -> list[str]:
    """The words of this process's pip that install into another environment."""
    return [sys.executable, "-m", "pip", "--python", str(python)]


def install_requirements(python: Path, requirements: Path) -> None:
    """Give an empty environment what a file of requirements brings, and nothing else.

    uv resolves them. Packages that this process's environment has in the same version are links to it; others are
    installed. To unpack torch and compile all modules anew takes forty seconds.

    Raises:
        CalledProcessError: uv finds no packages that meet them.
    """
    words = [str(UV), "pip", "install", "--python", str(python)]
    environ = os.environ | places_of_pip()
    asked = [*words, "--dry-run", "-r", str(requirements.absolute())]
    resolved = subprocess.run(asked, env=environ, cwd=python.parent, stderr=subprocess.PIPE, text=True, check=True)
    here = {(canonicalize_name(each.name), each.version): each for each in distributions()}
    wanted = WOULD_INSTALL.findall(resolved.stderr)
    assert wanted, resolved.stderr
    _link([here[one] for one in wanted if one in here], python)
    if others := [f"{name}=={version}" for name, version in wanted if (name, version) not in here]:
        subprocess.run([*words, "--quiet", "--no-deps", *others], env=environ, cwd=python.parent, check=True)


def _link(packages: list[Distribution], python: Path) -> None:
    """Link the files of packages into an environment: a folder as one, unless other packages have files in it."""
    (site_packages,) = python.parents[1].glob("lib/*/site-packages")
    owners = Counter(top for each in distributions() for top in {file.parts[0] for file in each.files or ()})
    for package in packages:
        files = [file for file in package.files or () if file.parts[0] != ".."]  # without its commands
        for part in dict.fromkeys(PurePath(file.parts[0]) if owners[file.parts[0]] == 1 else file for file in files):
            (site_packages / part).parent.mkdir(parents=True, exist_ok=True)
            (site_packages / part).symlink_to(str(package.locate_file(part)))


def places_of_pip() -> dict[str, str]:
    """uv's variables for the places where this process's pip finds packages: uv reads none of pip's settings."""
    words = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    # Variables come first in the list, and go before files.
    settings = {name.rpartition(".")[2]: str(ast.literal_eval(value)) for name, value in SETTING.findall(listed)[::-1]}
    places = {
        "UV_DEFAULT_INDEX": settings.get("index-url", ""),
        "UV_INDEX": settings.get("extra-index-url", ""),
        "UV_FIND_LINKS": ",".join(settings.get("find-links", "").split()),
        "UV_INDEX_STRATEGY": "unsafe-best-match",  # as pip has it
    }
    return {name: value for name, value in places.items() if value}
