"""The smallest pre-training config with its two checkpoints, for the tests of tools/generate.py and tools/edit.py."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from tiny_addp import ARCH, IMG_SIZE, TOKENIZER, tiny_addp

from pretrain import ADDP


class GeneratorFiles(NamedTuple):
    """Where the files are, and the model that they make."""

    config: str
    checkpoint: str
    tokenizer: str
    model: ADDP


def write_generator_files(folder: Path) -> GeneratorFiles:
    """Writes CONFIG, CKPT (without frozen networks, as training saves it) and the tokenizer that CONFIG names."""
    model = tiny_addp()
    files = GeneratorFiles(str(folder / 'config.py'), str(folder / 'addp.pth'), str(folder / 'tokenizer.pth'), model)
    network = dict(
        arch=ARCH,
        decoder_depth=1,
        decoder_num_heads=4,
        img_size=IMG_SIZE,
        patch_size=8,
        tokenizer=TOKENIZER,
        token_predictor=dict(arch='base'),
        frozen_dtype='bfloat16',
    )
    init_cfg = dict(tokenizer=files.tokenizer, token_predictor='this file does not exist.pth')
    settings = dict(type='ADDPPretraining', network=network, init_cfg=init_cfg)
    Path(files.config).write_text(f'model = {settings!r}\n', encoding='utf-8')
    save_with_prefix(model, 'addp.', files.checkpoint)
    save_with_prefix(model.tokenizer, 'tokenizer.', files.tokenizer)
    return files


def save_with_prefix(module: torch.nn.Module, prefix: str, path: str | Path) -> None:
    """Saves a checkpoint like those of training."""
    torch.save(dict(state_dict={f'{prefix}{name}': value for name, value in module.state_dict().items()}), path)
