"""Imports of single files of ``addp_backbone`` and ``pretrain`` where OpenMMLab is missing, for checks without it.

``import addp_backbone`` registers everything with OpenMMLab and so needs mmengine, mmcv and mmdet. Attention, blocks,
ADDP and generation compute without them: they take a logger and a registry from mmengine. A bare machine (torch,
torchvision, timm, OpenCV) can check those. Only the process of a check calls :func:`import_lightly`.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[2]
REGISTERING = ('addp_backbone', 'pretrain.training')  # packages whose __init__ registers everything in them
T = TypeVar('T')
_stand_ins: set[str] = set()  # packages that this process has a stand-in of


def missing_packages(names: tuple[str, ...]) -> list[str]:
    """Those of the packages that are not installed; a stand-in counts as missing."""
    return [name for name in names if name in _stand_ins or importlib.util.find_spec(name) is None]


def import_lightly() -> None:
    """Lets files of packages be imported without their ``__init__``, and without mmengine if there is none."""
    for name in REGISTERING:
        spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [str(ROOT.joinpath(*name.split('.')))]
        sys.modules.setdefault(name, importlib.util.module_from_spec(spec))
    if not missing_packages(('mmengine',)):
        return
    _stand_ins.add('mmengine')
    contents_of: dict[str, dict[str, Any]] = dict(
        mmengine={},
        logging=dict(print_log=_print_log),
        registry=dict(MODELS=_Registry(), FUNCTIONS=_Registry()),
    )
    for name, contents in contents_of.items():
        full = name if name == 'mmengine' else f'mmengine.{name}'
        module = sys.modules[full] = ModuleType(full)
        module.__dict__.update(contents)
    sys.modules['mmengine'].__path__ = []


class _Registry:
    """Takes registrations and forgets them: nothing is built by name here."""

    def register_module(self, name: str | None = None, module: T | None = None) -> Any:
        return module if module is not None else lambda cls: cls


def _print_log(message: str, logger: str = 'current', level: int = logging.INFO) -> None:
    logging.getLogger(logger).log(level, message)
