"""Lets ``import mmcv._ext`` find the stand-in in :mod:`addp_backbone.mmcv_standin.ops` where mmcv has no compiled ops.

Standard library only and cheap to import: installing the project puts a copy of this file, with a ``.pth`` file that
runs :func:`install`, into site-packages, so that the stand-in is in force in every process, stock mmdet and mmseg tools
included.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from types import ModuleType

EXTENSION = 'mmcv._ext'


class _StandInLoader(importlib.abc.Loader):
    """Fills ``mmcv._ext`` from the stand-in when it is first imported."""

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        """Asks for the default module."""

    def exec_module(self, module: ModuleType) -> None:
        """Fills the module."""
        from addp_backbone.mmcv_standin.ops import fill_extension_module

        fill_extension_module(module)


class StandInFinder(importlib.abc.MetaPathFinder):
    """Answers for ``mmcv._ext`` alone; stands last, so that compiled ops are found first."""

    def find_spec(
        self, fullname: str, path: object = None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Returns a spec for ``mmcv._ext``, None for every other module or if the stand-in cannot be imported."""
        if fullname != EXTENSION or importlib.util.find_spec('addp_backbone') is None:
            return None
        return importlib.machinery.ModuleSpec(
            fullname, _StandInLoader(), origin='addp_backbone.mmcv_standin.ops (torchvision)'
        )


def install() -> None:
    """Appends the finder to ``sys.meta_path`` once (whichever copy of this file asks)."""
    if not any(type(finder).__name__ == StandInFinder.__name__ for finder in sys.meta_path):
        sys.meta_path.append(StandInFinder())
