"""Buildah's and podman's storage in a folder of its own, without a daemon, a registry or the user's own images."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

_CONTAINERS = """\
[containers]
netns="host"
default_ulimits=["nofile=1024:1024","nproc=1024:1024"]
[engine]
runtime="runc"
cgroup_manager="cgroupfs"
events_logger="file"
"""


class Storage:
    """Images and containers below one folder.

    Args:
        folder: Where they lie; kept between runs, outside the repository.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        (folder / "storage.conf").write_text(
            f'[storage]\ndriver="overlay"\ngraphroot="{folder}/graph"\nrunroot="{folder}/run"\n'
        )
        (folder / "containers.conf").write_text(_CONTAINERS)
        self.environ = os.environ | {
            "BUILDAH_ISOLATION": "chroot",  # the default isolation wants a daemon's rights
            "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
            "CONTAINERS_CONF": str(folder / "containers.conf"),
        }

    def run(self, *command: str, timeout: float = 120, check: bool = True) -> str:
        """Return what a command prints, with this storage in its environment."""
        done = subprocess.run(
            command, env=self.environ, stdout=subprocess.PIPE, text=True, timeout=timeout, check=check
        )
        return done.stdout.strip()

    def has(self, image: str) -> bool:
        """Whether an image of that name lies here."""
        found = subprocess.run(
            ["buildah", "inspect", "--type", "image", image], check=False, env=self.environ, capture_output=True
        )
        return found.returncode == 0
