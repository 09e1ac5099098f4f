"""Finding a config's mistakes before anything long begins: misspelt options, data that is not there."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner

# What Runner reads from the config besides its own arguments.
OTHER_RUNNER_OPTIONS = (
    'model_wrapper_cfg',
    'find_unused_parameters',
    'sync_bn',
    'compile',
    'activation_checkpointing',
    'tta_model',
    'tta_pipeline',
    'strategy',
    'bad_samples',
)
AMP_OPTIONS = ('dtype', 'loss_scale')  # of optimizer wrappers; --amp reads them where the config has none


class LaunchError(ValueError):
    """The command line, the config or the data are not what a run needs; the message says what to change."""


def closest(name: str, candidates: Iterable[str]) -> str:
    """', did you mean ...?' with the nearest candidate, or nothing."""
    near = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.6)
    return f', did you mean {near[0]}?' if near else ''


def check_option_names(cfg: Config, options: Mapping[str, Any]) -> None:
    """Refuses ``--cfg-options`` that would create a value nobody reads.

    A first name must be in the config or an argument of mmengine's Runner. Deeper names may be new (an argument at its
    default), unless they are nearly the name of a sibling.

    Raises:
        LaunchError: With the option and the name that was probably meant.
    """
    known = {*cfg.keys(), *inspect.signature(Runner.__init__).parameters, *OTHER_RUNNER_OPTIONS}
    for option in options:
        node: Any = cfg
        for depth, name in enumerate(option.split('.')):
            if isinstance(node, list | tuple):
                node = node[int(name)] if name.isdigit() and int(name) < len(node) else None
                continue
            if not isinstance(node, Mapping | Config):
                break
            if name not in node:
                is_amp = name in AMP_OPTIONS and option.startswith('optim_wrapper.')
                names = [] if is_amp else [str(key) for key in node]
                meant = difflib.get_close_matches(name, names, n=1, cutoff=0.88)
                if (depth == 0 and name not in known) or (depth > 0 and meant):
                    raise LaunchError(
                        f'--cfg-options {option}: the config has no {".".join(option.split(".")[: depth + 1])}'
                        f'{closest(name, known if depth == 0 else map(str, node))}'
                    )
            node = node.get(name)


def check_data(cfg: Config, split: str) -> None:
    """Looks whether the files and folders of a split are there.

    Args:
        cfg: A config whose ``{split}_dataloader`` has data sets with any of ``data_root``, ``ann_file``,
            ``data_prefix``.
        split: 'train', 'val' or 'test'.

    Raises:
        LaunchError: With the path that is missing and the option to set.
    """
    loader = cfg.get(f'{split}_dataloader')
    if loader is None:
        return
    for option, dataset in _datasets(loader.get('dataset'), f'{split}_dataloader.dataset'):
        root = dataset.get('data_root') or ''
        _require(root, f'{option}.data_root')
        if isinstance(dataset.get('ann_file'), str):
            _require(dataset['ann_file'], f'{option}.ann_file', root)
        prefixes = dataset.get('data_prefix') or {}
        for key, prefix in prefixes.items() if isinstance(prefixes, Mapping) else [('', prefixes)]:
            _require(prefix, f'{option}.data_prefix{key and "." + key}', root)
    evaluators = cfg.get(f'{split}_evaluator') or []
    for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
        if isinstance(evaluator.get('ann_file'), str):
            _require(evaluator['ann_file'], f'{split}_evaluator.ann_file')


def _datasets(node: Any, option: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields (option name, config) of every data set within wrappers."""
    if not isinstance(node, Mapping):
        return
    if isinstance(node.get('datasets'), list):
        for index, inner in enumerate(node['datasets']):
            yield from _datasets(inner, f'{option}.datasets.{index}')
    elif isinstance(node.get('dataset'), Mapping):
        yield from _datasets(node['dataset'], f'{option}.dataset')
    else:
        yield option, node


def _require(path: Any, option: str, root: str = '') -> None:
    if not isinstance(path, str) or not path or '://' in path or '://' in root:
        return
    target = Path(root) / path
    if not target.exists():
        shown = f'{path!r}' if str(target) == str(Path(path)) else f'{path!r} under {root!r}'
        raise LaunchError(
            f'{option} is {shown}: {target.absolute()} does not exist. Put the data there, or point elsewhere with '
            f'--cfg-options {option}=PATH'
        )
