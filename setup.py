"""Installed, the folder `scripts` is the package `synthaug`, and its bundles name it so.

Other distributions install a top-level `scripts`, too; a clone and a packed bundle keep the name that MONAI wants.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py


class RenamedBundles(build_py):
    """Writes `synthaug.` where bundles say `scripts.`; an editable installation runs those of the clone."""

    def run(self) -> None:
        """Copy everything, then rename."""
        super().run()
        if not self.editable_mode:
            bundles = Path(self.build_lib, "synthaug/bundles")
            for path in (*bundles.glob("*/configs/*.json"), *bundles.glob("*/docs/**/*.py")):
                path.write_text(re.sub(r"\bscripts\.", "synthaug.", path.read_text()))


setup(
    packages=[
        "synthaug",
        *(f"synthaug.{room}" for room in find_packages("scripts")),
        "synthaug.bundles",  # data of the package, so that an installed `synthaug` can run them
        *find_packages(include=["nnunet_plugin*"]),
    ],
    package_dir={"synthaug": "scripts", "synthaug.bundles": "bundles"},
    cmdclass={"build_py": RenamedBundles},
)
