"""The console commands that an installation has: each runs the script of the same task in ``tools``.

``addp-train`` is ``python tools/train.py``, and so on; configs are given by file or by name
(``det/addp_base_maskrcnn``).
"""

from __future__ import annotations

import runpy
import sys

from addp_backbone.files.shipped import shipped_folder


def run_tool(name: str) -> int:
    """Runs ``tools/NAME.py`` with the command line of this process.

    Args:
        name: The script, without its ending.

    Returns:
        The exit code.
    """
    script = shipped_folder('tools') / f'{name}.py'
    sys.path.insert(0, str(script.parent))  # as Python does for a script: command_line.py lies there
    return int(runpy.run_path(str(script), run_name=f'addp_{name}')['main']() or 0)


def train() -> int:
    """``addp-train``."""
    return run_tool('train')


def test() -> int:
    """``addp-test``."""
    return run_tool('test')


def predict() -> int:
    """``addp-predict``."""
    return run_tool('predict')


def convert() -> int:
    """``addp-convert``."""
    return run_tool('convert_checkpoint')


def export() -> int:
    """``addp-export``."""
    return run_tool('export')


def demo() -> int:
    """``addp-demo``."""
    return run_tool('demo')


def merge() -> int:
    """``addp-merge``."""
    return run_tool('merge_checkpoint')


def new_dataset() -> int:
    """``addp-new-dataset``."""
    return run_tool('new_dataset')


def probe() -> int:
    """``addp-probe``."""
    return run_tool('probe')
