"""Puts experiments/ inside the package of a wheel, so that `vdit train clips` finds them there."""

from pathlib import Path
from shutil import copytree, ignore_patterns

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithExperiments(build_py):
    """Copies experiments/*.py to vdit/experiments of the wheel; an editable install reads them where they are."""

    def run(self):
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "vdit" / "experiments"
            source = Path(__file__).parent / "experiments"
            copytree(source, target, ignore=ignore_patterns("__pycache__", "colab", "launch"), dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithExperiments})
