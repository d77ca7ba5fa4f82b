"""Diffusion transformers behind a dependable API, accelerated by cache-dit, served by BentoML."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("cache-dit-serving")
except PackageNotFoundError:  # in a Bento the sources are on the path but not installed
    __version__ = "0.1.0"
