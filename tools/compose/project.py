"""The services of deploy/compose.yaml, run by podman-compose."""

from __future__ import annotations

import secrets
import subprocess
import sys
from pathlib import Path

import yaml

from tools.image.storage import Storage

FILE = Path(__file__).resolve().parents[2] / "deploy" / "compose.yaml"
COMPOSE = "podman-compose==1.6.0"


def images() -> dict[str, str]:
    """Return the image of each service."""
    return {name: service["image"] for name, service in yaml.safe_load(FILE.read_text())["services"].items()}


class Project:
    """The containers, networks and volumes of the file.

    Args:
        storage: Images and containers.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._password = secrets.token_hex(16)
        self._variables = storage.folder / "compose.env"
        self._variables.write_text(f"POSTGRES_PASSWORD={self._password}\nGRAFANA_PASSWORD=unused\n")
        environment = storage.folder / "podman-compose"
        self._program = environment / "bin" / "podman-compose"
        if not self._program.exists():
            subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True, timeout=120)
            subprocess.run([environment / "bin" / "pip", "install", "-q", COMPOSE], check=True, timeout=120)

    def compose(self, *words: str) -> None:
        """Run podman-compose with the file."""
        subprocess.run(
            [self._program, "--env-file", self._variables, "-f", FILE, *words],
            env=self._storage.environ,
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=300,
        )

    def healthy(self, service: str) -> bool:
        """Return whether a service's own health check passes; podman runs it by itself under systemd alone."""
        done = subprocess.run(
            ["podman", "healthcheck", "run", self._container(service)],
            env=self._storage.environ,
            check=False,
            capture_output=True,
            timeout=60,
        )
        return done.returncode == 0

    def replace(self, service: str) -> None:
        """End a service by SIGTERM, remove its container, and start another: as for a new version."""
        container = self._container(service)
        self._storage.run("podman", "stop", "-t", "60", container)
        self._storage.run("podman", "rm", container)
        self.compose("up", "-d", "--no-build", service)

    def query(self, statement: str) -> str:
        """Return the answer of PostgreSQL to a statement, as lines without a head."""
        psql = ("psql", "-U", "serving", "-h", "/var/run/postgresql", "-At", "-c", statement)
        return self._storage.run(
            "podman", "exec", "-e", f"PGPASSWORD={self._password}", self._container("postgres"), *psql
        )

    def logs(self, service: str) -> str:
        """Return the last lines of a service's log."""
        done = subprocess.run(
            ["podman", "logs", "--tail", "15", self._container(service)],
            env=self._storage.environ,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        return f"{service}:\n{done.stdout}"

    def _container(self, service: str) -> str:
        label = f"label=io.podman.compose.service={service}"
        return self._storage.run("podman", "ps", "-a", "--filter", label, "--format", "{{.Names}}")
