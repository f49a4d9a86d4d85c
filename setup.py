"""What pyproject.toml cannot say: the C core, and the launcher, a C program that is the `crumble` command."""

import os
import shlex
import subprocess
import sysconfig

from setuptools import setup  # before distutils, which is its own from then on

from distutils.command.build_scripts import build_scripts  # isort: skip


class BuildLauncher(build_scripts):
    """Compiles the scripts, which are C."""

    def run(self) -> None:
        compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
        self.mkpath(self.build_dir)
        for source in self.scripts:
            name = os.path.splitext(os.path.basename(source))[0]
            output = os.path.join(self.build_dir, name)
            subprocess.run([*compiler, "-O2", "-Wall", "-Wextra", "-o", output, source], check=True)


setup(
    cffi_modules=["native/build_core.py:ffibuilder"],
    scripts=["native/launcher/crumble.c"],
    cmdclass={"build_scripts": BuildLauncher},
)
