"""Where the curves of a run go besides its own log: TensorBoard, Weights & Biases, MLflow (``--log-to``).

Every config writes TensorBoard's files. W&B and MLflow are mmengine's back ends with what a training run needs: curves
over the iteration instead of the number of calls, nothing sent without a key or an address, no copies of source code.
"""

from __future__ import annotations

import logging
import netrc
import numbers
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import VISBACKENDS
from mmengine.visualization.vis_backend import MLflowVisBackend, WandbVisBackend, force_init_env
from torch import Tensor

from addp_backbone.runtime.config_checks import LaunchError

BACKENDS = {'tensorboard': 'TensorboardVisBackend', 'wandb': 'WandbCurves', 'mlflow': 'MLflowCurves'}
PROJECT = 'addp-transfer'  # of W&B, and MLflow's experiment
# the package that a back end needs, mmengine's own included
PACKAGES = {
    'TensorboardVisBackend': 'tensorboard',
    'WandbCurves': 'wandb',
    'WandbVisBackend': 'wandb',
    'MLflowCurves': 'mlflow',
    'MLflowVisBackend': 'mlflow',
}
_WANDB_HOST = 'api.wandb.ai'


def use_curves(cfg: Config, names: Sequence[str] = ()) -> None:
    """Adds back ends to the config's, and makes sure that all of them can be used.

    Args:
        cfg: A training config; changed in place.
        names: Of :data:`BACKENDS`.

    Raises:
        LaunchError: If a package is missing, of a back end that the config names itself too.
    """
    visualizer = cfg.get('visualizer') or dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')])
    backends = list(visualizer.get('vis_backends') or [])
    present = {backend['type'] for backend in backends}
    backends += [dict(type=BACKENDS[name]) for name in dict.fromkeys(names) if BACKENDS[name] not in present]
    for backend in backends:
        package = PACKAGES.get(backend['type'])
        if package and find_spec(package) is None:
            raise LaunchError(
                f'curves go to {backend["type"]}, and the package {package} is not installed: pip install {package}'
            )
    cfg.visualizer = dict(visualizer, vis_backends=backends)


def _numbers(scalars: dict[str, Any]) -> dict[str, float]:
    """The values that are numbers; torch's and numpy's with one element are."""
    found = {}
    for name, value in scalars.items():
        if isinstance(value, Tensor | np.ndarray | np.generic):
            values = np.asarray(value.detach().float().cpu() if isinstance(value, Tensor) else value).ravel()
            value = values[0] if len(values) == 1 else None
        if isinstance(value, numbers.Real):
            found[name] = float(value)
    return found


@VISBACKENDS.register_module()
class WandbCurves(WandbVisBackend):
    """Weights & Biases, over iterations; without a key and without ``WANDB_MODE`` in files that ``wandb sync`` sends.

    Each start of a run is a run of W&B, in a group named after the work dir.

    Args:
        save_dir: mmengine's folder for curves, ``WORK_DIR/TIMESTAMP/vis_data``.
        project: W&B's project.
    """

    def __init__(self, save_dir: str, project: str = PROJECT) -> None:
        group = Path(save_dir).resolve().parents[1].name
        super().__init__(save_dir, init_kwargs=dict(project=project, group=group))

    def _init_env(self) -> None:
        if 'WANDB_MODE' not in os.environ and not has_wandb_key():
            os.environ['WANDB_MODE'] = 'offline'
            print_log(
                f'W&B: no key, so curves stay in {self._save_dir}/wandb; `wandb sync` sends them later (`wandb login` '
                'or WANDB_API_KEY sends them at once)',
                logger='current',
                level=logging.WARNING,
            )
        super()._init_env()
        self._wandb.define_metric('*', step_metric='iteration')

    @force_init_env
    def add_config(self, config: Config, **options: Any) -> None:
        """Records the config; mmengine's would also upload all source code below the current folder."""
        self._wandb.config.update(config.to_dict(), allow_val_change=True)

    @force_init_env
    def add_image(self, name: str, image: Any, step: int = 0, **options: Any) -> None:
        """Records an (H, W, 3) RGB image at an iteration."""
        self._wandb.log({name: self._wandb.Image(image), 'iteration': step})

    @force_init_env
    def add_scalar(self, name: str, value: Any, step: int = 0, **options: Any) -> None:
        """Records a number at an iteration."""
        self.add_scalars({name: value}, step)

    @force_init_env
    def add_scalars(self, scalar_dict: dict, step: int = 0, file_path: str | None = None, **options: Any) -> None:
        """Records numbers at an iteration."""
        self._wandb.log({**_numbers(scalar_dict), 'iteration': step})

    def close(self) -> None:
        """Ends the run."""
        if hasattr(self, '_wandb'):
            self._wandb.finish()


@VISBACKENDS.register_module()
class MLflowCurves(MLflowVisBackend):
    """MLflow: the server of ``MLFLOW_TRACKING_URI``, or a database in the work dir (``mlflow ui`` reads it).

    Args:
        save_dir: mmengine's folder for curves, ``WORK_DIR/TIMESTAMP/vis_data``.
        exp_name: MLflow's experiment.
    """

    def __init__(self, save_dir: str, exp_name: str = PROJECT) -> None:
        work_dir = Path(save_dir).resolve().parents[1]
        server = os.environ.get('MLFLOW_TRACKING_URI')
        self._local = None if server else work_dir / 'mlflow'
        super().__init__(
            save_dir,
            exp_name=exp_name,
            run_name=work_dir.name,
            tracking_uri=server or f'sqlite:///{work_dir / "mlflow" / "mlflow.db"}',
            artifact_location=None if server else (work_dir / 'mlflow' / 'artifacts').as_uri(),
        )

    def _init_env(self) -> None:
        if self._local is not None:
            self._local.mkdir(parents=True, exist_ok=True)
            print_log(f'MLflow: mlflow ui --backend-store-uri {self._tracking_uri}', logger='current')
        super()._init_env()

    @force_init_env
    def add_config(self, config: Config, **options: Any) -> None:
        """Records the config as text, and its single values as parameters."""
        flat = self._flatten(config.to_dict())
        plain = {
            k: v for k, v in flat.items() if isinstance(v, bool | int | float) or (isinstance(v, str) and len(v) < 250)
        }
        self._mlflow.log_params(plain)
        self._mlflow.log_text(config.pretty_text, 'config.py')

    @force_init_env
    def add_image(self, name: str, image: Any, step: int = 0, **options: Any) -> None:
        """Records an (H, W, 3) RGB image at an iteration."""
        self._mlflow.log_image(image, key=name, step=step)

    @force_init_env
    def add_scalar(self, name: str, value: Any, step: int = 0, **options: Any) -> None:
        """Records a number at an iteration."""
        self.add_scalars({name: value}, step)

    @force_init_env
    def add_scalars(self, scalar_dict: dict, step: int = 0, file_path: str | None = None, **options: Any) -> None:
        """Records numbers at an iteration."""
        self._mlflow.log_metrics(_numbers(scalar_dict), step)

    def close(self) -> None:
        """Ends the run; mmengine's would also copy every text file of the work dir."""
        if hasattr(self, '_mlflow'):
            self._mlflow.end_run()


def has_wandb_key() -> bool:
    """Whether W&B has a key, in the environment or in ``.netrc``, where ``wandb login`` puts it."""
    if os.environ.get('WANDB_API_KEY'):
        return True
    try:
        return netrc.netrc(os.environ.get('NETRC')).authenticators(_WANDB_HOST) is not None
    except (OSError, netrc.NetrcParseError):
        return False
