"""mmengine's Runner with checkpoints that are read safely and have to fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor
from torch.utils.data import DataLoader

from addp_backbone.checkpoint.errors import CheckpointError
from addp_backbone.checkpoint.matching import match_tensors, unwrap_state_dict
from addp_backbone.runtime.processes import WorkerInit


class StageRunner(Runner):
    """mmengine's Runner, but resuming and testing refuse a checkpoint that does not hold all the weights.

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
            check_weights(filename, unwrap_state_dict(checkpoint), model.state_dict())
        return checkpoint


def check_weights(path: str, given: Mapping[str, Any], wanted: Mapping[str, Tensor]) -> None:
    """Compares a checkpoint's tensors with a model's.

    Args:
        path: The checkpoint, for the error.
        given: Its tensors; ``module.`` in front of a name is passed over.
        wanted: The model's tensors.

    Raises:
        CheckpointError: If names are missing or left over, or shapes differ; the message has the lists.
    """
    mismatch = match_tensors({name.removeprefix('module.'): tensor for name, tensor in given.items()}, wanted)
    if mismatch:
        raise CheckpointError(
            f'{path} does not fit the model of this config. {mismatch}. Use the config the checkpoint was trained with'
        )
