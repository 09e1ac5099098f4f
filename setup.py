"""Installs what pyproject.toml cannot say.

- Two files that put the stand-in for mmcv's compiled ops in force in every process. They have to lie in site-packages
  itself, which is the root of a wheel. An editable install takes nothing but packages from there, hence ``data_files``,
  whose path has the version of this Python.
- In a wheel, ``det_configs``, ``seg_configs`` and ``tools`` within ``addp_backbone/shipped``. They are no packages, and
  an editable install finds them in the checkout.
"""

import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

SHIPPED = ('det_configs', 'seg_configs', 'tools')


class DistributionWithData(Distribution):
    """Answers ``has_data``, which setuptools' own class lacks: without it editable installs skip the data files."""

    def has_data(self):
        """Whether there are data files."""
        return self.has_data_files()


class BuildWithFolders(build_py):
    """Adds the folders of :data:`SHIPPED` and the files for site-packages."""

    def run(self):
        """Builds the packages, then copies folders and files."""
        super().run()
        if self.editable_mode:
            return
        self.distribution.data_files = []
        for file in (finder, pth):
            shutil.copy(file, self.build_lib)
        for name in SHIPPED:
            target = Path(self.build_lib) / 'addp_backbone' / 'shipped' / name
            shutil.rmtree(target, ignore_errors=True)  # of an earlier build
            shutil.copytree(name, target, ignore=shutil.ignore_patterns('__pycache__', 'benchmark'))


site_packages = Path(sysconfig.get_path('purelib')).relative_to(sys.prefix).as_posix()
folder = Path('build/site')
folder.mkdir(parents=True, exist_ok=True)
finder = folder / 'addp_mmcv_finder.py'
finder.write_text(Path('addp_backbone/mmcv_standin/finder.py').read_text(encoding='utf-8'), encoding='utf-8')
pth = folder / 'addp_mmcv_finder.pth'
pth.write_text('import addp_mmcv_finder; addp_mmcv_finder.install()\n', encoding='utf-8')
setup(
    distclass=DistributionWithData,
    cmdclass=dict(build_py=BuildWithFolders),
    data_files=[(site_packages, [finder.as_posix(), pth.as_posix()])],
)
