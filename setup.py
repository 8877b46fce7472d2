"""Puts the configs, which lie beside the package, into a wheel as dlen/conf. All else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """A build for a wheel; an editable install reads the configs where they lie."""

    def run(self) -> None:
        """Build, then copy; conf/sweep is a link to sweeps/, which is followed."""
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / "dlen" / "conf"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(Path(__file__).parent / "conf", target)


setup(cmdclass={"build_py": BuildWithConfigs})
