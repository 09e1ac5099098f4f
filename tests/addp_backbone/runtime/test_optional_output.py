"""Pictures and curves that cannot be written cost a warning, not the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, VISBACKENDS
from mmengine.visualization import BaseVisBackend
from running import toy_config, train_toy


@VISBACKENDS.register_module(force=True)
class FullDisk(BaseVisBackend):
    """Fails at everything."""

    experiment = None

    def _init_env(self) -> None:
        raise OSError(28, 'No space left on device')

    def add_config(self, config: Any, **options: Any) -> None:
        self._init_env()

    add_graph = add_image = add_scalar = add_scalars = add_config  # type: ignore[assignment]


@HOOKS.register_module(force=True)
class DrawingHook(Hook):
    """Says that a run can do without it."""

    optional_output = True

    def after_train_iter(self, *args: Any, **options: Any) -> None:
        raise OSError(28, 'No space left on device')


@HOOKS.register_module(force=True)
class OtherHook(DrawingHook):
    """Does not."""

    optional_output = False


def config(work_dir: Path, *hooks: str) -> Any:
    changes = dict(visualizer=dict(type='Visualizer', vis_backends=[dict(type='FullDisk')], name=work_dir.name))
    return toy_config(work_dir, **changes, custom_hooks=[dict(type=hook) for hook in hooks], log_level='WARNING')


def test_a_run_ends_well_without_curves_and_figures_and_says_so_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train_toy(config(tmp_path / 'a', 'DrawingHook')).iter == 6
    output = ''.join(capfd.readouterr())
    assert output.count('a picture of DrawingHook failed (OSError: [Errno 28] No space left on device)') == 1
    assert 'output to FullDisk failed' in output


def test_the_errors_of_other_hooks_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(OSError, match='No space left'):
        train_toy(config(tmp_path / 'b', 'OtherHook'))
