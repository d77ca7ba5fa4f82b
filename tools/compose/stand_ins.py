"""Stand-ins for the images of PostgreSQL and Prometheus: Debian's packages under the names of deploy/compose.yaml."""

from __future__ import annotations

from pathlib import Path

from tools.image.storage import Storage

_PACKAGES = "postgresql-15,prometheus"
_POSTGRES = """\
#!/bin/sh
# The part of the real image's entrypoint that deploy/compose.yaml uses.
set -eu
data=/var/lib/postgresql/data
as_postgres="setpriv --reuid=postgres --regid=postgres --clear-groups"
install -d -o postgres -g postgres "$data" /var/run/postgresql
if [ ! -s "$data/PG_VERSION" ]; then
    secret=$(mktemp)
    printf %s "$POSTGRES_PASSWORD" > "$secret"
    chown postgres "$secret"
    $as_postgres initdb -D "$data" -U "$POSTGRES_USER" --pwfile="$secret" --auth=scram-sha-256 \\
        --encoding=UTF8 --locale=C.UTF-8 > /dev/null
    rm "$secret"
    echo "host all all all scram-sha-256" >> "$data/pg_hba.conf"
    echo "CREATE DATABASE \\"$POSTGRES_DB\\"" | $as_postgres postgres --single -D "$data" postgres > /dev/null
fi
exec $as_postgres postgres -D "$data" -c listen_addresses='*' -c unix_socket_directories=/var/run/postgresql
"""
_PROMETHEUS = ["/usr/bin/prometheus", "--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]


def ensure_stand_ins(storage: Storage, postgres: str, prometheus: str) -> None:
    """Make the images that are not there already.

    Args:
        postgres: Name of the image of PostgreSQL.
        prometheus: Name of the image of Prometheus.
    """
    if storage.has(postgres) and storage.has(prometheus):
        return
    rootfs = storage.folder / "services.tar"
    if not rootfs.exists():
        storage.run("mmdebstrap", "--variant=minbase", f"--include={_PACKAGES}", "bookworm", str(rootfs), timeout=900)
    made = storage.run("buildah", "from", "scratch")
    storage.run("buildah", "add", made, str(rootfs), "/", timeout=300)
    root = Path(storage.run("buildah", "mount", made))
    _write_program(root / "usr/local/bin/docker-entrypoint.sh", _POSTGRES)
    _configure(storage, made, PATH="/usr/lib/postgresql/15/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
    storage.run("buildah", "config", "--entrypoint", '["docker-entrypoint.sh"]', made)
    storage.run("buildah", "commit", made, postgres, timeout=300)

    storage.run("chroot", str(root), "sh", "-c", "mkdir -p /prometheus && chown nobody /prometheus")
    words = ", ".join(f'"{word}"' for word in _PROMETHEUS)
    storage.run("buildah", "config", "--user", "nobody", "--entrypoint", f"[{words}]", "--cmd", "", made)
    storage.run("buildah", "commit", "--rm", made, prometheus, timeout=300)
    rootfs.unlink()


def _write_program(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


def _configure(storage: Storage, made: str, **variables: str) -> None:
    for name, value in variables.items():
        storage.run("buildah", "config", "--env", f"{name}={value}", made)
