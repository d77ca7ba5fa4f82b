"""The base image's stand-in: Debian and this machine's CPython, under the name that the Bento's Dockerfile asks for."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from tools.image.storage import Storage

NAME = "docker.io/library/python:3.11-slim"
_LIBRARIES = (
    "ca-certificates,libssl3,libffi8,libsqlite3-0,zlib1g,libbz2-1.0,liblzma5,libreadline8,libuuid1,libncursesw6"
)
_PATH = "/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin"
_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"


def ensure_base(storage: Storage) -> None:
    """Make the stand-in unless it is there already."""
    if storage.has(NAME):
        return
    rootfs = storage.folder / "rootfs.tar"
    storage.run("mmdebstrap", "--variant=minbase", f"--include={_LIBRARIES}", "bookworm", str(rootfs), timeout=600)
    made = storage.run("buildah", "from", "scratch")
    storage.run("buildah", "add", made, str(rootfs), "/", timeout=300)
    rootfs.unlink()
    root = Path(storage.run("buildah", "mount", made))
    _copy_python(root / "usr/local")
    storage.run("chroot", str(root), "ldconfig")  # libpython lies in /usr/local/lib
    shutil.copy(_CERTIFICATES, root / _CERTIFICATES.lstrip("/"))
    environ = {"PATH": _PATH, "SSL_CERT_FILE": _CERTIFICATES, "PIP_CERT": _CERTIFICATES}
    for name, value in environ.items():
        storage.run("buildah", "config", "--env", f"{name}={value}", made)
    storage.run("buildah", "commit", "--rm", made, NAME, timeout=300)


def _copy_python(to: Path) -> None:
    """Copy the running CPython with its headers, without packages, tests and static libraries."""
    source = Path(sys.base_prefix)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    skipped = shutil.ignore_patterns(
        "__pycache__", "test", "tests", "idlelib", "tkinter", "*.a", "site-packages", "config-*"
    )
    shutil.copytree(source / "lib" / version, to / "lib" / version, ignore=skipped, symlinks=True, dirs_exist_ok=True)
    shutil.copytree(source / "include" / version, to / "include" / version, dirs_exist_ok=True)
    for library in (source / "lib").glob("libpython*.so*"):
        shutil.copy2(library, to / "lib" / library.name, follow_symlinks=False)
    site = to / "lib" / version / "site-packages"
    for package in (source / "lib" / version / "site-packages").glob("pip*"):
        shutil.copytree(package, site / package.name, dirs_exist_ok=True)
    shutil.copy2(source / "bin" / version, to / "bin" / version)
    for link in ("python3", "python"):
        (to / "bin" / link).symlink_to(version)
    pip = to / "bin" / "pip"
    pip.write_text('#!/bin/sh\nexec python3 -m pip "$@"\n')
    pip.chmod(0o755)
