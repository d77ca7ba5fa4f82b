"""What pyproject.toml cannot state: service.py and configs/ go into the wheel, as `cache_dit_serving/bundle`.

BentoML looks for them at the top of a checkout and of a Bento, so they are no part of the package there.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

BUNDLED = [Path("service.py"), *sorted(Path("configs").glob("*.yaml"))]


class BuildWithBundle(build_py):
    """setuptools' copying of a package, with the bundle beside its modules."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return  # an editable install reads the checkout's
        # setuptools keeps build/ between two builds, and a removed configuration would stay in it.
        shutil.rmtree(self._bundle, ignore_errors=True)
        for file in BUNDLED:
            copy = self._bundle / file
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)

    def get_source_files(self) -> list[str]:
        """Return the files that the source distribution must hold."""
        return [*super().get_source_files(), *map(str, BUNDLED)]

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Return the files that the build makes."""
        return [*super().get_outputs(include_bytecode), *(str(self._bundle / file) for file in BUNDLED)]

    @property
    def _bundle(self) -> Path:
        return Path(self.build_lib, "cache_dit_serving", "bundle")


setup(cmdclass={"build_py": BuildWithBundle})
