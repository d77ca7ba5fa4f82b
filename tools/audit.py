"""Known vulnerabilities of the pinned requirements, by pip-audit: `make audit`.

pip-audit reads them from PyPI itself, version by version, or from OSV or a copy of it. Where it reaches neither, the
audit fails, and prints what the pages of the newest releases say, which mirrors have too.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import urllib.request
import venv
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "audit"
"""A throwaway environment: the audit's requirements are none of the project's."""
PYPI, OSV = "https://pypi.org", "https://api.osv.dev"
REQUIREMENTS = [ROOT / f"requirements{of}.txt" for of in ("", "-vision", "-quantization", "-c2pa")]
"""Pins of what the image holds, and of what may be added to it."""
KNOWN = ("pip", "24.0")
"""Release that tries a source: it has known vulnerabilities."""
PIN = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)$", re.MULTILINE)
TIMEOUT_S = 30


@dataclass
class Newest:
    """What the pages of the newest releases say of the pins."""

    clean: list[str] = field(default_factory=list)
    vulnerable: dict[str, list[str]] = field(default_factory=dict)
    """Identifiers of vulnerabilities by pin."""
    unknown: list[str] = field(default_factory=list)
    """Pins that are not their newest release, and those whose page cannot be read."""


def main() -> int:
    """Audit the pins and return the exit status: 0 only if each was looked at, and has no known vulnerability."""
    parser = argparse.ArgumentParser(prog="python -m tools.audit", description=__doc__)
    parser.add_argument("--pypi", default=PYPI, help="address of PyPI's pages (default: %(default)s)")
    parser.add_argument("--osv", default=OSV, help="address of OSV or of a copy of it (default: %(default)s)")
    parser.add_argument("--requirements", type=Path, nargs="+", default=REQUIREMENTS, help="files of pins")
    arguments = parser.parse_args()
    if source := source_of(arguments.pypi, arguments.osv):
        return audited(with_pip_audit(FOLDER), source, arguments.requirements)
    pins = dict(pin for file in arguments.requirements for pin in PIN.findall(file.read_text(encoding="utf-8")))
    found = newest(pins, arguments.pypi)
    print(
        f"make audit: pip-audit cannot look at {', '.join(file.name for file in arguments.requirements)} from here. "
        "It needs one of\n"
        f"  {PYPI}/pypi/NAME/VERSION/json (a mirror of PyPI often lacks it)\n"
        f"  {arguments.osv}/v1/query\n"
        f"By the pages of the newest releases at {arguments.pypi}/pypi/NAME/json, "
        f"{len(found.clean)} of {len(pins)} pins have no known vulnerability.",
        file=sys.stderr,
    )
    for pin, identifiers in found.vulnerable.items():
        print(f"{pin} has {', '.join(identifiers)}", file=sys.stderr)
    if found.unknown:
        print(f"Not looked at, {len(found.unknown)}: {', '.join(found.unknown)}", file=sys.stderr)
    return 1


def source_of(pypi: str, osv: str) -> list[str] | None:
    """Return pip-audit's options for the first source that knows a release with vulnerabilities; None if none does.

    pip-audit has no option for another address than PyPI's own.
    """
    name, version = KNOWN
    if pypi == PYPI and _read(f"{pypi}/pypi/{name}/{version}/json").get("vulnerabilities"):
        return ["--vulnerability-service", "pypi"]
    address = f"{osv}/v1/query"
    query = {"version": version, "package": {"name": name, "ecosystem": "PyPI"}}
    if _read(address, json.dumps(query).encode()).get("vulns"):
        return ["--vulnerability-service", "osv", "--osv-url", address]
    return None


def newest(pins: Mapping[str, str], pypi: str) -> Newest:
    """Return what is known of the pins that are the newest release of their project."""
    found = Newest()
    with ThreadPoolExecutor(4) as pool:
        pages = pool.map(lambda name: _read(f"{pypi}/pypi/{name}/json"), pins)
        for (name, version), page in zip(pins.items(), pages, strict=True):
            pin = f"{name}=={version}"
            if page.get("info", {}).get("version") != version or "vulnerabilities" not in page:
                found.unknown.append(pin)
            elif identifiers := [each["id"] for each in page["vulnerabilities"]]:
                found.vulnerable[pin] = identifiers
            else:
                found.clean.append(pin)
    return found


def with_pip_audit(folder: Path) -> Path:
    """Make an environment with pip-audit; return its Python."""
    venv.create(folder, clear=True, with_pip=True)
    python = folder / "bin" / "python"
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "pip-audit"], check=True, timeout=300
    )
    return python


def audited(python: Path, source: Sequence[str], requirements: Sequence[Path]) -> int:
    """Run pip-audit and return its exit status.

    Strict: pip-audit 2 passes over packages that it finds no data of.

    Args:
        source: Its options for the data.
    """
    options = ["--strict", "--disable-pip", "--no-deps", "--progress-spinner", "off", *source]
    files = [word for file in requirements for word in ("--requirement", str(file))]
    return subprocess.run([python, "-m", "pip_audit", *options, *files], check=False).returncode


def _read(address: str, data: bytes | None = None) -> dict[str, Any]:
    """Return the JSON object at an address; an empty one if there is none."""
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"} if data else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            found: dict[str, Any] = json.load(answer)
            return found
    except (OSError, ValueError):
        return {}


if __name__ == "__main__":
    sys.exit(main())
