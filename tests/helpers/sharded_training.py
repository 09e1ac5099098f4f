"""The same small training on two processes, once with DDP and twice with FSDP (whole, and resumed in the middle)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.registry import DATASETS, HOOKS, MODELS, OPTIM_WRAPPERS, RUNNERS
from mmengine.runner import Runner
from running import ToyMetric
from torch import Tensor, nn

from addp_backbone import ADDPViT
from addp_backbone.runtime.launch import fit_to_device, set_resume, use_safe_hooks
from addp_backbone.runtime.runner import StageRunner, gather_over_network
from addp_backbone.runtime.sharding import check_sharding

NUM_ITERS = 4
MAX_NORM = 0.05  # every step is clipped
SIDE_PX = 32
records: dict[str, list[float]] = {}


@DATASETS.register_module(force=True)
class ToyImages(BaseDataset):
    """Eight random images."""

    def load_data_list(self) -> list[dict[str, Any]]:
        generator = torch.Generator().manual_seed(5)
        return [dict(inputs=torch.randn(3, SIDE_PX, SIDE_PX, generator=generator)) for _ in range(8)]


@MODELS.register_module(force=True)
class ToyViTModel(BaseModel):
    """A ViT of two blocks and a linear head that is to give each image's mean colour."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = ADDPViT(arch=dict(width=16, depth=2, num_heads=2), img_size=SIDE_PX, window_size=0)
        self.head = nn.Linear(16, 3)

    def init_weights(self) -> None:
        torch.manual_seed(0)
        super().init_weights()

    def forward(self, inputs: list[Tensor], sample_idx: Any = None, mode: str = 'tensor') -> Any:
        x = torch.stack(inputs)
        return dict(loss=(self.head(self.backbone(x)[-1].mean((2, 3))) - x.mean((2, 3)) - 1).square().mean())


@OPTIM_WRAPPERS.register_module(force=True)
class ScaledOptimWrapper(OptimWrapper):
    """Keeps a loss scale as mmengine's ``AmpOptimWrapper`` does, which asserts CUDA."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.loss_scale = 1024.0

    def step(self, **options: Any) -> None:
        super().step(**options)
        self.loss_scale *= 2

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), 'loss_scaler': dict(scale=self.loss_scale)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.loss_scale = state_dict.pop('loss_scaler')['scale']
        super().load_state_dict(state_dict)


@HOOKS.register_module(force=True)
class Recorder(Hook):
    """Keeps each iteration's loss and gradient norm."""

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        norm = float(runner.message_hub.get_scalar('train/grad_norm').current())
        loss = outputs['loss'].detach().clone()
        dist.all_reduce(loss)
        records.setdefault(runner.work_dir, []).append((float(loss) / dist.get_world_size(), norm))


def make_config(work_dir: Path, sharded: bool) -> Config:
    """The training, unsharded or sharded."""
    cfg = Config(
        dict(
            model=dict(type='ToyViTModel'),
            work_dir=str(work_dir),
            experiment_name=work_dir.name,
            launcher='pytorch',
            train_dataloader=dict(
                batch_size=2,
                num_workers=0,
                dataset=dict(type='ToyImages'),
                sampler=dict(type='SeededInfiniteSampler', seed=0),
            ),
            train_cfg=dict(by_epoch=False, max_iters=NUM_ITERS),
            optim_wrapper=dict(
                type='ScaledOptimWrapper',
                constructor='ViTLayerDecayConstructor',
                paramwise_cfg=dict(decay_rate=0.7, no_weight_decay='1d'),
                optimizer=dict(type='AdamW', lr=0.01, weight_decay=0.1),
                clip_grad=dict(max_norm=MAX_NORM),
            ),
            param_scheduler=[dict(type='LinearLR', by_epoch=False, start_factor=0.1, end=NUM_ITERS)],
            default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2)),
            custom_hooks=[dict(type='Recorder')],
            randomness=dict(seed=0),
            env_cfg=dict(dist_cfg=dict(backend='gloo')),
            log_level='ERROR',
        )
    )
    if sharded:
        fsdp = Config.fromfile(Path(__file__).parents[2] / 'det_configs' / '_base_' / 'fsdp.py')
        cfg.merge_from_dict(fsdp.to_dict())
    return cfg


def train(cfg: Config, resume: str | None = None) -> Any:
    """Trains as tools/train.py does."""
    check_sharding(cfg)
    set_resume(cfg, resume)
    use_safe_hooks(cfg, world_size=2)
    fit_to_device(cfg)
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else StageRunner.from_cfg(cfg)
    runner.train()
    return runner


def groups_of(runner: Any) -> dict[str, tuple[float, float]]:
    """Parameter name -> (base learning rate, weight decay)."""
    names = {parameter: name for name, parameter in runner.model.named_parameters()}
    clean = {p: name.replace('_fsdp_wrapped_module.', '').removeprefix('module.') for p, name in names.items()}
    return {
        clean[parameter]: (group['initial_lr'], group['weight_decay'])
        for group in runner.optim_wrapper.optimizer.param_groups
        for parameter in group['params']
    }


def error_of(call: Any) -> str:
    """The message of the error that a call raises, or nothing."""
    try:
        call()
    except (ValueError, RuntimeError) as error:
        return f'{type(error).__name__}: {error}'
    return ''


def mean_without_common_folder(rank: int, place: Path) -> float:
    """The mean of a metric's results, of each rank its number, where ranks work in folders of their own."""
    own = place / f'machine{rank}'
    own.mkdir()
    before = Path.cwd()
    os.chdir(own)
    evaluator = gather_over_network(Evaluator([ToyMetric()]))
    evaluator.metrics[0].results = [float(rank)]
    result = evaluator.evaluate(2)
    os.chdir(before)
    return result['mean']


def run_rank(rank: int, folder: str, port: int) -> None:
    """One of the two processes; writes ``rank{r}.pt``."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2', MASTER_ADDR='localhost')
    os.environ['MASTER_PORT'] = str(port)
    dist.init_process_group('gloo')
    place = Path(folder)
    result: dict[str, Any] = {}
    ddp = train(make_config(place / 'ddp', sharded=False))
    result['groups'] = dict(ddp=groups_of(ddp))
    fsdp = train(make_config(place / 'fsdp', sharded=True))
    result['groups']['fsdp'] = groups_of(fsdp)
    resumed = train(make_config(place / 'resumed', sharded=True), str(place / 'fsdp' / 'iter_2.pth'))
    result['loss_scale'] = resumed.optim_wrapper.loss_scale
    result['records'] = {Path(name).name: values for name, values in records.items()}
    result['from_ddp'] = error_of(lambda: fsdp.strategy.resume(str(place / 'ddp' / 'iter_2.pth')))
    lacking = {name: value for name, value in fsdp.strategy.whole_tensors.items() if 'head' not in name}
    fsdp.strategy.resuming = True
    result['lacking'] = error_of(lambda: fsdp.strategy.load_model_state_dict(lacking))
    result['mean_of_ranks'] = mean_without_common_folder(rank, place)
    if rank == 1:
        fsdp.model.head.weight.data.fill_(float('nan'))
        fsdp.model.head.bias.data.fill_(float('nan'))
    result['not_finite'] = error_of(lambda: fsdp.strategy.save_checkpoint(str(place / 'bad.pth')))
    torch.save(result, place / f'rank{rank}.pt')
    dist.barrier()
    dist.destroy_process_group()
