"""Files that a command's flags name for its results."""

from __future__ import annotations

from pathlib import Path

from cache_dit_serving.errors import ConfigError


def check_writable(file: Path | None) -> None:
    """Refuse a file whose folder is missing, before the work and not after it.

    Raises:
        ConfigError: names the file and the reason.
    """
    if file is not None and (file.is_dir() or not file.parent.is_dir()):
        raise ConfigError(f"{file} cannot be written: {'it is a folder' if file.is_dir() else 'its folder is missing'}")


def write_file(file: Path | None, text: str) -> None:
    """Write a text into a file, if there is one.

    Raises:
        ConfigError: the file cannot be written.
    """
    if file is None:
        return
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror}") from error
