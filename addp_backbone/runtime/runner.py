"""mmengine's Runner with checkpoints that are read safely and have to fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import CheckpointLoader, Runner
from torch import Tensor
from torch.utils.data import DataLoader

from addp_backbone.checkpoint.storage import CheckpointError, read_checkpoint
from addp_backbone.runtime.processes import WorkerInit


class StageRunner(Runner):
    """mmengine's Runner, but resuming and testing refuse a checkpoint that does not hold all the weights; nothing is passed over.

    Starting from weights (``load_from`` in training) stays lenient, as heads may differ in their number of classes;
    mmengine logs what differs. Data workers end with the run, also if it is killed.
    """

    @staticmethod
    def build_dataloader(
        dataloader: DataLoader | dict[str, Any], seed: int | None = None, diff_rank_seed: bool = False
    ) -> DataLoader:
        """Builds a data loader as mmengine does."""
        loader = Runner.build_dataloader(dataloader, seed, diff_rank_seed)
        if not isinstance(loader.worker_init_fn, WorkerInit):
            loader.worker_init_fn = WorkerInit(loader.worker_init_fn)
        return loader

    def load_checkpoint(
        self, filename: str, map_location: str | Callable = 'cpu', strict: bool = False, revise_keys: list | None = None
    ) -> dict[str, Any]:
        """Loads ``filename`` as mmengine does.

        Raises:
            CheckpointError: If resuming or testing, and tensors are missing, left over or of another shape.
        """
        checkpoint = super().load_checkpoint(filename, map_location, strict, revise_keys or [(r'^module\.', '')])
        testing = self._train_loop is None or isinstance(self._train_loop, dict)
        if self._resume or testing:
            model = self.model
            while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
                model = model.module
            check_weights(filename, checkpoint.get('state_dict', checkpoint), model.state_dict())
        return checkpoint


def check_weights(path: str, given: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Compares a checkpoint's tensors with a model's.

    Raises:
        CheckpointError: If names are missing or left over, or shapes differ; the message has the lists.
    """
    given = {name.removeprefix('module.'): tensor for name, tensor in given.items()}
    missing, unexpected = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    shapes = [
        f'{name} {tuple(given[name].shape)} instead of {tuple(tensor.shape)}'
        for name, tensor in wanted.items()
        if name in given and given[name].shape != tensor.shape
    ]
    if missing or unexpected or shapes:
        raise CheckpointError(
            f'{path} does not fit the model of this config. Missing: {_some(missing)}. Unknown to the model: '
            f'{_some(unexpected)}. Of another shape: {_some(shapes)}. Use the config the checkpoint was trained with'
        )


def read_checkpoints_safely() -> None:
    """Makes every checkpoint that mmengine reads from a file or a web address go through :func:`read_checkpoint`.

    mmengine falls back to unrestricted unpickling when safe loading fails, which runs whatever the file says.
    """
    CheckpointLoader.register_scheme('', load_from_local, force=True)
    CheckpointLoader.register_scheme(('http://', 'https://'), load_from_http, force=True)


def load_from_local(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Reads onto the CPU: loading copies each tensor to where it belongs."""
    return read_checkpoint(filename)


def load_from_http(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Refuses: what mmengine downloads it unpickles without restriction.

    Raises:
        CheckpointError: Always.
    """
    raise CheckpointError(f'{filename} is a web address; download the file and give its path')


def _some(names: list[str]) -> str:
    return (', '.join(names[:8]) + (f' and {len(names) - 8} more' if len(names) > 8 else '')) or 'none'
