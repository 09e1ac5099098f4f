"""Finding and loading the weights of tokenizer, token predictor and ADDP: released files, or our own training runs.

A config names them in ``model.init_cfg``, e.g. ``dict(tokenizer='exp/pretrained_model/vqgan_jax_strongaug.ckpt')``. A
value is a file, the work dir of a training run (its latest checkpoint is taken), or 'random' for networks that shall
stay as they were initialised.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from torch import nn

from addp_backbone.checkpoint.errors import CheckpointError
from addp_backbone.checkpoint.locate import find_checkpoint
from addp_backbone.checkpoint.matching import load_strictly, unwrap_state_dict
from addp_backbone.checkpoint.storage import read_checkpoint
from pretrain.weights.published import (
    PUBLISHED_FILES,
    LoadReport,
    find_published,
    load_published,
    load_published_token_predictor,
    load_published_tokenizer,
)

RANDOM = 'random'
SEARCHED_FOLDERS = (Path('exp/pretrained_model'), Path('exp/release'))
_PUBLISHED_LOADERS: dict[str, Callable[[Any, Mapping[str, Any]], LoadReport]] = {
    'addp': load_published,
    'tokenizer': load_published_tokenizer,
    'token_predictor': load_published_token_predictor,
}
_TRAINED_BY = {'addp': 'addp_*.py', 'tokenizer': 'tokenizer_*.py', 'token_predictor': 'token_predictor_*.py'}


def load_network(network: nn.Module, name: str, source: str | None) -> LoadReport | None:
    """Loads a network strictly: every tensor is there and has its shape, or nothing is loaded.

    Args:
        network: ``ADDP``, ``VQGANTokenizer`` or ``TokenPredictor``.
        name: 'addp', 'tokenizer' or 'token_predictor': its name in our training checkpoints and in ``model.init_cfg``.
        source: Where the weights are (see this module's first lines).

    Returns:
        What a released file held; None for our own files and for 'random'.

    Raises:
        CheckpointError: If there is no source, no such file, or it does not fit; the message says where files come from
            and which option points elsewhere.
    """
    option = f'model.init_cfg.{name}'
    if source == RANDOM:
        print_log(
            f'{option}={RANDOM}: {type(network).__name__} keeps random weights; what is trained on it is good for '
            'measuring speed only',
            logger='current',
            level=logging.WARNING,
        )
        return None
    path = find_weights(source, name)
    checkpoint = read_checkpoint(path)
    own = _own_tensors(checkpoint, name)
    report = None
    try:
        if own:
            load_strictly(network, own, str(path), 'Use the config it was trained with')
        else:
            report = _PUBLISHED_LOADERS[name](network, checkpoint)
    except ValueError as error:
        raise CheckpointError(
            f'{path} does not fit the {name} of this config ({option}): {error}. Give both configs the same sizes, or '
            f'set {option} to another file'
        ) from error
    print_log(f'{name}: weights of {path}', logger='current')
    return report


def find_weights(source: str | None, name: str) -> Path:
    """Finds a weights file; arguments and errors as in :func:`load_network`.

    A bare file name is looked for here and in ``exp/pretrained_model/`` and ``exp/release/``.
    """
    option = f'model.init_cfg.{name}'
    if not source:
        raise CheckpointError(
            f'the {name} has no weights: set {option} to a released file, to the work dir of a run of '
            f'pretrain/configs/{_TRAINED_BY[name]}, or to {RANDOM!r} (to measure speed)'
        )
    path = Path(source).expanduser()
    if path.is_dir():
        advice = f'train with pretrain/configs/{_TRAINED_BY[name]} into it, or set {option} to where the weights are'
        return find_checkpoint(path, option, advice)
    candidates = [path] if path.parent != Path() else [path, *(folder / path for folder in SEARCHED_FOLDERS)]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    if path.stem in PUBLISHED_FILES:
        try:
            return find_published(path.stem, path if path.parent != Path() else None, option)
        except FileNotFoundError as error:
            raise CheckpointError(
                f'{error} (a run of pretrain/configs/{_TRAINED_BY[name]} of the same sizes gives weights too)'
            ) from error
    raise CheckpointError(
        f'{option}={source!r}: no such file or folder (looked for {", ".join(map(str, candidates))}). Train with '
        f'pretrain/configs/{_TRAINED_BY[name]}, or set {option} to where the weights lie'
    )


def _own_tensors(checkpoint: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The network's tensors in a checkpoint of our own training, without prefix; empty for any other checkpoint."""
    prefix = f'{name}.'
    tensors = unwrap_state_dict(checkpoint)
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
