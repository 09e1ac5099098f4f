"""mmengine's Runner with checkpoints that are read safely and have to fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mmengine.config import Config
from mmengine.dist import broadcast, get_world_size
from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import RUNNERS
from mmengine.runner import BaseLoop, FlexibleRunner, Runner
from mmengine.visualization import Visualizer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from addp_backbone.checkpoint.errors import CheckpointError
from addp_backbone.checkpoint.frozen_base import FrozenBase, completing, initialise
from addp_backbone.checkpoint.matching import Mismatch, listed, match_tensors, unwrap_state_dict
from addp_backbone.runtime.bad_samples import NoSampleError, substituting
from addp_backbone.runtime.optim_wrappers import keep_implementation
from addp_backbone.runtime.optional_output import tolerate_hook, tolerate_visualizer
from addp_backbone.runtime.preemption import save
from addp_backbone.runtime.processes import WorkerInit
from addp_backbone.runtime.saving import BadLossError, StopOnBadLoss
from addp_backbone.tuning.lora import LORA_ENDINGS
from addp_backbone.tuning.summary import describe_trained

CLASS_LAYERS = {'fc_cls', 'fc_reg', 'conv_logits', 'conv_seg', 'head'}  # their shapes follow from the number of classes


class _Tolerance:
    """What both runners do alike: bad training samples and failed optional output do not end a run."""

    cfg: Config
    _train_dataloader: Any

    def build_train_loop(self, loop: Any) -> BaseLoop:
        """Builds the loop on data whose bad samples are replaced (``bad_samples`` in the config)."""
        self._train_dataloader = substituting(self._train_dataloader, self.cfg.get('bad_samples'))
        return super().build_train_loop(loop)  # type: ignore[misc]

    def build_evaluator(self, evaluator: Any) -> Evaluator:
        """Builds the evaluator, whose metrics gather their results over the network."""
        return gather_over_network(super().build_evaluator(evaluator))  # type: ignore[misc]

    def build_visualizer(self, visualizer: Any = None) -> Visualizer:
        """Builds the visualizer, whose backends may fail."""
        return tolerate_visualizer(super().build_visualizer(visualizer))  # type: ignore[misc]

    def register_hook(self, hook: Hook | dict[str, Any], priority: Any = None) -> None:
        """Registers a hook; one that only draws may fail."""
        super().register_hook(hook, priority)  # type: ignore[misc]
        for registered in self.hooks:  # type: ignore[attr-defined]
            tolerate_hook(registered)


class StageRunner(_Tolerance, Runner):
    """mmengine's Runner, but checkpoints have to fit.

    Resuming and testing refuse a checkpoint that does not hold all the weights. Training from weights (``load_from``)
    takes one of another number of classes: the layers that this changes start anew, as does what the file lacks; both
    are named in the log. Data workers end with the run, also if it is killed. Training goes on without samples that
    cannot be read (:mod:`addp_backbone.runtime.bad_samples`) and without pictures that cannot be written.

    Attributes:
        frozen_base: In training, what checkpoints may leave out (:mod:`addp_backbone.checkpoint.frozen_base`).
    """

    frozen_base: FrozenBase | None = None

    @staticmethod
    def build_dataloader(
        dataloader: DataLoader | dict[str, Any], seed: int | None = None, diff_rank_seed: bool = False
    ) -> DataLoader:
        """Builds a data loader as mmengine does."""
        loader = Runner.build_dataloader(dataloader, seed, diff_rank_seed)
        if not isinstance(loader.worker_init_fn, WorkerInit):
            loader.worker_init_fn = WorkerInit(loader.worker_init_fn)
        return loader

    def train(self) -> nn.Module:
        """Trains as mmengine does, after a line on what is trained; an error after a bad loss is reported as that.

        Raises:
            BadLossError: See :class:`addp_backbone.runtime.saving.StopOnBadLoss`.
            NoSampleError: If no sample can be read any more. One process has saved what it had then.
        """
        print_log(describe_trained(self._network()), logger='current')
        try:
            return super().train()
        except (BadLossError, CheckpointError):
            raise
        except NoSampleError as error:
            found = self.train_dataloader.dataset.bad_samples
            raise NoSampleError(f'{found.explain()}. {_save_between_iterations(self)}') from error
        except Exception:
            for hook in self.hooks:
                if isinstance(hook, StopOnBadLoss):
                    hook.explain(self)
            raise

    def build_optim_wrapper(self, optim_wrapper: Any) -> OptimWrapper | OptimWrapperDict:
        """Builds the optimizer wrapper; a resumed optimizer keeps the kernels of this run."""
        wrapper = super().build_optim_wrapper(optim_wrapper)
        for single in wrapper.values() if isinstance(wrapper, OptimWrapperDict) else (wrapper,):
            keep_implementation(single.optimizer)
        return wrapper

    def _network(self) -> nn.Module:
        """The model without wrappers."""
        model = self.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        return model

    def _init_model_weights(self) -> None:
        """Initialises as mmengine does, and notes what of a frozen backbone its file gives."""
        model: Any = self._network()
        if hasattr(model, 'init_weights'):
            self.frozen_base = initialise(model, model.init_weights)
            for tensor in model.state_dict().values():
                broadcast(tensor)

    def load_checkpoint(
        self, filename: str, map_location: str | Callable = 'cpu', strict: bool = False, revise_keys: list | None = None
    ) -> dict[str, Any]:
        """Loads ``filename`` as mmengine does.

        Raises:
            CheckpointError: If resuming or testing, and tensors are missing, left over or of another shape; in training
                from weights, if another layer than those that depend on the classes has another shape, or none fits.
        """
        model = self._network()
        with completing(model):
            checkpoint = super().load_checkpoint(filename, map_location, strict, revise_keys or [(r'^module\.', '')])
        testing = self._train_loop is None or isinstance(self._train_loop, dict)
        weights = unwrap_state_dict(checkpoint)
        if self._resume or testing:
            check_weights(filename, weights, model.state_dict())
        else:
            print_log(describe_start(filename, weights, model.state_dict()), logger='current')
        return checkpoint


def describe_start(path: str, given: Mapping[str, Any], wanted: Mapping[str, Tensor]) -> str:
    """Says what a training takes from a checkpoint that may be of another number of classes.

    Args:
        path: The file, for messages.
        given: Its tensors; ``module.`` in front of a name is passed over.
        wanted: The model's tensors.

    Returns:
        Text with every tensor that starts anew, and the first of those that are not used.

    Raises:
        CheckpointError: If no tensor fits, one differs otherwise than by the number of classes, or the checkpoint has
            low-rank differences and the model none.
    """
    found = match_tensors({name.removeprefix('module.'): tensor for name, tensor in given.items()}, wanted)
    adapters = [name for name in found.unexpected if name.endswith(LORA_ENDINGS)]
    if adapters:
        raise CheckpointError(
            f'{path} cannot be started from (load_from): it has low-rank differences ({adapters[0]}), which this '
            'config has not. Merge them into the weights: python tools/merge_checkpoint.py CONFIG CHECKPOINT DST, or '
            'set model.backbone.lora as in its training'
        )
    of_classes = {name: shapes for name, shapes in found.shapes.items() if CLASS_LAYERS & set(name.split('.'))}
    wrong = Mismatch(shapes={n: s for n, s in found.shapes.items() if n not in of_classes}, kinds=found.kinds)
    num_taken = len(wanted) - len(found.missing) - len(found.shapes) - len(found.kinds)
    if wrong or not num_taken:
        raise CheckpointError(
            f'{path} cannot be started from (load_from): {num_taken} of {len(wanted)} tensors fit, and these differ '
            f'though no number of classes changes them: {" ".join(wrong.lines()) or "none"}. Use a config of the same '
            'backbone and heads'
        )
    anew = [f'{name} {given_shape} instead of {shape}' for name, (given_shape, shape) in of_classes.items()]
    return (
        f'start from {path}: {num_taken} of {len(wanted)} tensors. '
        f'Start anew, number of classes: {", ".join(anew) or "none"}. '
        f'Start anew, not in the file: {", ".join(found.missing) or "none"}. '
        f'In the file, not used: {listed(found.unexpected)}'
    )


@RUNNERS.register_module()
class StageFlexibleRunner(_Tolerance, FlexibleRunner):
    """mmengine's runner for strategies (FSDP), which gathers results and tolerates as :class:`StageRunner` does."""


def _save_between_iterations(runner: StageRunner) -> str:
    """Saves where the next batch could not be loaded; returns a sentence about it."""
    loop = runner.train_loop
    if get_world_size() > 1 or not loop._iter:  # the others have begun the next iteration
        return 'The last checkpoint is the one that was saved before'
    loop._iter -= 1  # hooks save while the loop still counts their iteration
    try:
        return save(runner)
    finally:
        loop._iter += 1


def gather_over_network(evaluator: Evaluator) -> Evaluator:
    """Lets metrics send results through the process group; mmengine writes files, which machines need not share."""
    for metric in evaluator.metrics:
        metric.collect_device = 'gpu'  # mmengine's word for it; the objects travel by whatever backend there is
    return evaluator


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
