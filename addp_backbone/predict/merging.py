"""From the checkpoint of a partial fine-tuning to one that is whole and plain."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from addp_backbone.checkpoint.errors import FROZEN_BASE, CheckpointError
from addp_backbone.checkpoint.integrity import sign_archive
from addp_backbone.checkpoint.locate import find_checkpoint
from addp_backbone.checkpoint.storage import read_checkpoint
from addp_backbone.files.atomic import replace_file
from addp_backbone.predict.predictor import load_network
from addp_backbone.runtime.launch import load_config
from addp_backbone.tuning.lora import merge_lora

KEPT_META = ('dataset_meta', 'iter', 'epoch', 'experiment_name', 'mmengine_version', 'seed')


@dataclass(frozen=True)
class Merged:
    """What was done.

    Attributes:
        source: The checkpoint that was read.
        num_layers: How many layers had low-rank differences.
        num_from_base: How many tensors came from the file of the frozen base.
    """

    source: Path
    num_layers: int
    num_from_base: int


def merge_checkpoint(
    config: str | Path, checkpoint: str | Path, dst: str | Path, options: dict[str, Any] | None = None
) -> Merged:
    """Writes a whole checkpoint with low-rank differences merged into the weights.

    Args:
        config: Config that the checkpoint was trained with.
        checkpoint: Its checkpoint, or the work dir of the run.
        dst: File to write: weights and what is known of the classes, no optimizer.
        options: Replaces values of the config, as ``--cfg-options`` does.

    Returns:
        What was done.

    Raises:
        CheckpointError: If the checkpoint does not fit the config, its base is another one, ``dst`` is the checkpoint
            itself or cannot be written.
        LaunchError: If the config does not exist, or options do not fit it.
    """
    cfg = load_config(str(config), options)
    source = find_checkpoint(checkpoint)
    if Path(dst).resolve() == source.resolve():
        raise CheckpointError(f'CHECKPOINT and DST are the same file, {source}')
    content = read_checkpoint(source)
    num_from_base = len((content.get(FROZEN_BASE) or {}).get('names', ()))
    model = load_network(cfg, content, str(source))
    num_layers = merge_lora(model)
    tensors = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    meta = {name: value for name, value in (content.get('meta') or {}).items() if name in KEPT_META}
    buffer = io.BytesIO()
    torch.save(dict(meta=meta, state_dict=tensors), buffer)
    try:
        replace_file(dst, sign_archive(buffer.getvalue()))
    except OSError as error:
        raise CheckpointError(f'{dst} cannot be written: {error}') from error
    return Merged(source, num_layers, num_from_base)
