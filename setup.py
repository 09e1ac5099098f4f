"""Installs, besides the packages, two files that put the stand-in for mmcv's compiled ops in force in every process.

Everything else is in pyproject.toml. The two files have to lie in site-packages itself, hence ``data_files``.
"""

import sys
import sysconfig
from pathlib import Path

from setuptools import Distribution, setup


class DistributionWithData(Distribution):
    """Answers ``has_data``, which setuptools' own class lacks: without it editable installs skip the data files."""

    def has_data(self):
        """Whether there are data files."""
        return self.has_data_files()


site_packages = Path(sysconfig.get_path('purelib')).relative_to(sys.prefix).as_posix()
folder = Path('build/site')
folder.mkdir(parents=True, exist_ok=True)
finder = folder / 'addp_mmcv_finder.py'
finder.write_text(Path('addp_backbone/mmcv_standin/finder.py').read_text(encoding='utf-8'), encoding='utf-8')
pth = folder / 'addp_mmcv_finder.pth'
pth.write_text('import addp_mmcv_finder; addp_mmcv_finder.install()\n', encoding='utf-8')
setup(distclass=DistributionWithData, data_files=[(site_packages, [finder.as_posix(), pth.as_posix()])])
