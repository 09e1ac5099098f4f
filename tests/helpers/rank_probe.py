"""A hook for the ranks of test_distributed.py: compares gradients, and records what the rank saw and holds."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

from addp_backbone.runtime.seeding import SeedEachIteration


@HOOKS.register_module(force=True)
class RankProbe(Hook):
    """Writes ``rank{r}.json``: gradient_error, and per iteration the number of objects and a parameter digest."""

    priority = 'LOWEST'

    def before_train(self, runner: Runner) -> None:
        self.record: dict[str, Any] = dict(gradient_error=None, num_objects=[], digests=[])

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self.record['num_objects'].append(sum(len(sample.gt_instances) for sample in data_batch['data_samples']))
        if runner.iter == 0:
            # Alone: the bare model, then the mean over ranks. Together: the wrapped model, which reduces while it goes
            # backward.
            alone = self.gradients(runner, runner.model.module, data_batch)
            for gradient in alone.values():
                torch.distributed.all_reduce(gradient)
                gradient /= get_world_size()
            together = self.gradients(runner, runner.model, data_batch)
            scale = max(float(gradient.abs().max()) for gradient in alone.values())
            errors = [float((together[name] - gradient).abs().max()) / scale for name, gradient in alone.items()]
            self.record['gradient_error'] = max(errors)
            SeedEachIteration().before_train_iter(runner, batch_idx)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        digest = hashlib.sha256(
            b''.join(parameter.detach().numpy().tobytes() for parameter in runner.model.parameters())
        )
        self.record['digests'].append(digest.hexdigest())

    def after_train(self, runner: Runner) -> None:
        Path(runner.work_dir, f'rank{get_rank()}.json').write_text(json.dumps(self.record), encoding='utf-8')

    @staticmethod
    def gradients(runner: Runner, model: nn.Module, data_batch: Any) -> dict[str, Tensor]:
        """Gradients of the loss on this rank's batch, drawn with the iteration's seed."""
        bare = runner.model.module
        SeedEachIteration().before_train_iter(runner, 0)
        data = bare.data_preprocessor(copy.deepcopy(data_batch), training=True)
        bare.parse_losses(model(**data, mode='loss'))[0].backward()
        gradients = {
            name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
            for name, parameter in bare.named_parameters()
        }
        bare.zero_grad()
        return gradients
