"""From CONFIG and CKPT to a model that can generate: ADDP and its tokenizer, without the token predictor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import print_log

from addp_backbone.checkpoint.errors import CheckpointError
from addp_backbone.checkpoint.locate import find_checkpoint
from addp_backbone.checkpoint.matching import load_strictly, unwrap_state_dict
from addp_backbone.checkpoint.storage import read_checkpoint
from addp_backbone.runtime.tf32 import exact_float32
from pretrain.networks.addp import ADDP
from pretrain.weights.loading import load_network
from pretrain.weights.published import PUBLISHED_FILES, find_published, load_published

PRECISIONS = ('fp32', 'bf16')  # of generation; half precision was never compared
# A stand-in for the token predictor, which every ADDP has and generation does not use.
_SMALLEST_PREDICTOR = dict(arch=dict(width=4, depth=1, num_heads=1), decoder_depth=1, decoder_num_heads=1)
_OWN_PREFIX = 'addp.'  # of our training checkpoints
_EMA_PREFIX = 'module.'


def load_generator(cfg: Config, checkpoint: str | Path, ema: bool | None = None, tokenizer: str | None = None) -> ADDP:
    """Builds the model of a pre-training config and loads it for generation.

    Args:
        cfg: A config that trains ADDP (``model.type='ADDPPretraining'``).
        checkpoint: A released file (whole training checkpoint or ADDP alone), a checkpoint of our training, or its work
            dir.
        ema: True for the averaged weights, which the checkpoint then has to hold; False for the last ones; None for the
            averaged ones if there are any, else the last.
        tokenizer: File or work dir of the tokenizer; None for the checkpoint's own, or if it has none the config's
            ``model.init_cfg.tokenizer``.

    Returns:
        The model in eval mode, on the CPU, float32.

    Raises:
        CheckpointError: If a file is missing, unreadable or does not fit.
        ValueError: If the config does not train ADDP.
    """
    require_addp(cfg)
    model = ADDP(**{**cfg.model.network.to_dict(), 'token_predictor': _SMALLEST_PREDICTOR, 'frozen_dtype': None}).eval()
    path = find_generator(checkpoint)
    contents = read_checkpoint(path)
    own = _own_tensors(contents, ema, path)
    try:
        if own:
            load_strictly(model, own, f'{path}', 'Give a checkpoint of a run with this config')
            has_tokenizer = False
        else:
            has_tokenizer = tokenizer is None and holds_tokenizer(contents)
            load_published(model, contents, needed=('tokenizer',) if has_tokenizer else ())
    except ValueError as error:
        raise CheckpointError(f'{path} does not fit the model of {cfg.filename}: {error}') from error
    print_log(f'addp: weights of {path}', logger='current')
    if not has_tokenizer:
        load_network(model.tokenizer, 'tokenizer', tokenizer or (cfg.model.get('init_cfg') or {}).get('tokenizer'))
    return model


def require_addp(cfg: Config) -> None:
    """Raises a ValueError unless the config trains ADDP."""
    model = cfg.get('model', {})
    if model.get('type') != 'ADDPPretraining' or not isinstance(model.get('network'), Mapping):
        raise ValueError(
            f'{cfg.filename} trains {model.get("type")!r}, wanted a config of ADDP (model.type="ADDPPretraining"), '
            'e.g. pretrain/configs/addp_base_1600e.py or addp_tiny.py'
        )


def find_generator(checkpoint: str | Path) -> Path:
    """Finds the file that CKPT means: a checkpoint, the latest of a work dir, or a released file.

    Raises:
        CheckpointError: If there is none; names the source of a released file.
    """
    path = Path(checkpoint).expanduser()
    if path.stem in PUBLISHED_FILES and not path.exists():
        try:
            return find_published(path.stem, path, 'CKPT')
        except FileNotFoundError as error:
            raise CheckpointError(str(error)) from error
    advice = 'give a released ADDP file, a checkpoint of tools/train.py with a config of ADDP, or its work dir'
    return find_checkpoint(path, advice=advice)


@contextmanager
def precision(model: ADDP, name: str) -> Iterator[None]:
    """Runs the model in 'fp32' or 'bf16': the tokenizer's convolutions in that precision, the rest by autocast.

    In 'fp32' CUDA does not use TF32, whose rounding is enough to change tokens, and the tokenizer has the layout that
    rounds least.
    """
    if name not in PRECISIONS:
        raise ValueError(f'precision must be one of {PRECISIONS}, got {name!r}')
    dtype = torch.bfloat16 if name == 'bf16' else torch.float32
    model.tokenizer.set_precision(dtype)
    model.tokenizer.lay_out(channels_last=name == 'bf16')
    model.frozen_dtype = dtype
    with (
        exact_float32() if name == 'fp32' else nullcontext(),
        torch.autocast(model.pixel_mean.device.type, dtype=torch.bfloat16, enabled=name == 'bf16'),
    ):
        yield


def _own_tensors(contents: Mapping[str, Any], ema: bool | None, path: Path) -> dict[str, Any]:
    """ADDP's tensors in a checkpoint of our own training, without their prefix; empty for any other checkpoint."""
    tensors = unwrap_state_dict(contents)
    averaged = 'ema_state_dict' in contents
    if ema and not averaged:
        raise CheckpointError(f'{path} holds no averaged weights (it was trained without EMAHook): leave --ema out')
    if averaged and ema is False:
        # mmengine stores the two swapped: the averaged weights lie where deployment looks, the last ones under "ema".
        tensors = {
            name.removeprefix(_EMA_PREFIX): value
            for name, value in contents['ema_state_dict'].items()
            if name.startswith(_EMA_PREFIX)
        }
    own = {name.removeprefix(_OWN_PREFIX): value for name, value in tensors.items() if name.startswith(_OWN_PREFIX)}
    if averaged:
        print_log(f'{path}: {"last" if ema is False else "averaged"} weights', logger='current')
    return own


def holds_tokenizer(contents: Mapping[str, Any]) -> bool:
    """Whether a released file's contents hold the tokenizer beside ADDP."""
    return any('vqgan.' in name for name in unwrap_state_dict(contents))
