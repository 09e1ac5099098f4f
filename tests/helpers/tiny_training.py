"""The three pre-training stages at the smallest size, through the repository's own configs and tools/train.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from PIL import Image
from running import ROOT, run_tool
from tiny_addp import ARCH, IMG_SIZE, TOKENIZER, tiny_batch

from pretrain.training.models import ADDPPretraining

CONFIGS = ROOT / 'pretrain' / 'configs'
NUM_IMAGES = 10
PREDICTOR = dict(arch=ARCH, decoder_depth=1, decoder_num_heads=4)
NETWORK = dict(PREDICTOR, img_size=IMG_SIZE, patch_size=8, tokenizer=TOKENIZER, token_predictor=PREDICTOR)
MODELS = dict(
    tokenizer_tiny=dict(tokenizer=TOKENIZER, objective=dict(quantize_from_iters=1)),
    token_predictor_tiny=dict(tokenizer=TOKENIZER, token_predictor=PREDICTOR, img_size=IMG_SIZE),
    addp_tiny=dict(network=NETWORK),
)


def make_images(folder: Path) -> Path:
    """Smooth random images, 40 x 48 px."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(NUM_IMAGES):
        coarse = Image.fromarray(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8))
        coarse.resize((48, 40), Image.Resampling.BILINEAR).save(folder / f'{i}.png')
    return folder


def write_leaf(folder: Path, base: str, images: Path, model: dict, **changes: object) -> Path:
    """Writes a leaf of pretrain/configs/``base``.py: small images, every iteration logged in full precision."""
    pipeline = [
        dict(type='SeedAugmentation'),
        dict(type='RandomResizedCropImage', size=IMG_SIZE),
        dict(type='RandomFlipImage'),
        dict(type='PackImage'),
    ]
    settings = dict(
        model=_replaces(model),
        vis_backends=[dict(type='LocalVisBackend')],
        log_level='ERROR',
        visualizer=dict(vis_backends=[dict(type='LocalVisBackend')]),
        train_dataloader=dict(
            batch_size=3,
            num_workers=0,
            persistent_workers=False,
            dataset=dict(data_root=str(images), data_prefix='', pipeline=pipeline),
        ),
        default_hooks=dict(
            logger=dict(interval=1), checkpoint=dict(interval=2), figure=dict(interval=1000, num_images=2)
        ),
        log_processor=dict(window_size=1),
        **changes,
    )
    if base == 'tokenizer_tiny':
        settings['custom_hooks'] = [dict(type='ReviveCodesHook', interval=1)]
    text = '\n'.join(f'{key} = {value!r}' for key, value in settings.items())
    path = folder / f'{base}.py'
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(f'_base_ = {str(CONFIGS / base) + ".py"!r}\n{text}\n', encoding='utf-8')
    return path


def train(config: Path, work_dir: Path, *words: str, options: tuple[str, ...] = ()) -> Path:
    """Runs tools/train.py in this process; returns the work dir."""
    run_tool('train', config, '--work-dir', work_dir, *words, options=options)
    return work_dir


def _replaces(settings: dict) -> dict:
    """Marks dicts that take the place of a name in the base config."""
    return {
        key: dict(value, _delete_=True) if key == 'arch' else _replaces(value) if isinstance(value, dict) else value
        for key, value in settings.items()
    }


def state_dict(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The weights in a checkpoint of ours."""
    return torch.load(checkpoint, weights_only=False)['state_dict']


class GivenMasks(ADDPPretraining):
    """ADDP with fixed masks: those of a process's share (``rows``) of a global batch of four."""

    rows = slice(None)

    def draw_masks(self, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        mask, noisier = tiny_batch(4)[1:]
        return mask[self.rows][:batch_size], noisier[self.rows][:batch_size]


def random_addp(**options) -> GivenMasks:
    torch.manual_seed(0)
    model = GivenMasks({**NETWORK, **options}, init_cfg=dict(tokenizer='random', token_predictor='random'))
    model.init_weights()
    torch.nn.init.normal_(model.addp.tokenizer.codebook, std=0.3)
    return model


def as_loaded(images: torch.Tensor) -> dict:
    """Images (B, 3, H, W) in [0, 1] as the data loader gives them."""
    return dict(inputs=list(images * 255), data_samples=[None] * len(images))


def step_once(rank: int, world_size: int, folder: Path) -> None:
    """One optimizer step on this process's share of four images; rank 0 writes the weights."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = GivenMasks(dict(NETWORK, dropout=0.0)).train()
    torch.nn.init.normal_(model.addp.tokenizer.codebook, std=0.3)
    model.rows = slice(rank, None, world_size)
    images = tiny_batch(4)[0][model.rows]
    wrapper = OptimWrapper(
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0), clip_grad=dict(max_norm=3.0)
    )
    trained: torch.nn.Module = model
    if world_size > 1:
        dist.init_process_group('gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=world_size)
        trained = MMDistributedDataParallel(model, broadcast_buffers=False)
    for _ in range(2):
        trained.train_step(as_loaded(images), wrapper)
    if rank == 0:
        torch.save(model.state_dict(), folder / f'{world_size}.pth')
    if world_size > 1:
        dist.destroy_process_group()
