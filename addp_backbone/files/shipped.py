"""Where the configs and the tools are: in the checkout, or within the installed package.

A wheel has ``det_configs``, ``seg_configs`` and ``tools`` in ``addp_backbone/shipped`` (``setup.py`` copies them), as
they lie beside each other in the repository; ``pretrain/configs`` is data of its package.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # the checkout, or site-packages
SHIPPED = 'addp_backbone/shipped'
CONFIG_FOLDERS = {'det': 'det_configs', 'seg': 'seg_configs', 'pretrain': 'pretrain/configs'}


def shipped_folder(name: str) -> Path:
    """The folder of the repository with this name, e.g. 'tools', wherever it is installed."""
    shipped = ROOT / SHIPPED / name
    return shipped if shipped.is_dir() else ROOT / name  # site-packages may have another project's folder 'tools'


def find_config(name: str) -> Path:
    """The file of a config.

    Args:
        name: A file, or the name of a config of ours: 'det/addp_base_maskrcnn', 'seg/addp_base_upernet',
            'pretrain/addp_base_1600e'. An existing file goes first.

    Returns:
        The path; it may not exist.
    """
    path = Path(name)
    folder, _, stem = name.partition('/')
    if path.is_file() or folder not in CONFIG_FOLDERS:
        return path
    shipped = shipped_folder(CONFIG_FOLDERS[folder]) / (stem if stem.endswith('.py') else f'{stem}.py')
    return shipped if shipped.is_file() else path


def config_names() -> list[str]:
    """Names of all configs of ours, as :func:`find_config` takes them."""
    return [
        f'{name}/{path.stem}'
        for name, folder in CONFIG_FOLDERS.items()
        for path in sorted(shipped_folder(folder).glob('*.py'))
    ]
