"""The released checkpoints: where they lie, and strict loading into our networks.

Every tensor of a file is mapped, or dropped for a stated reason. A missing, an extra or a mis-shaped tensor raises with
its name, and then nothing has been loaded.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from addp_backbone.checkpoint.errors import CheckpointError
from addp_backbone.checkpoint.matching import MAX_NAMES, match_tensors, split_checkpoint

if TYPE_CHECKING:
    from pretrain.networks.addp import ADDP
    from pretrain.networks.token_predictor import TokenPredictor
    from pretrain.networks.tokenizer import VQGANTokenizer


@dataclass(frozen=True)
class PublishedFile:
    """A released checkpoint, on Hugging Face (``hub_repo``) or Google Drive (``drive_id``).

    Attributes:
        path: Where the published README puts it, from the repository's root.
        hub_repo: Model repository on Hugging Face.
        drive_id: File on Google Drive.
    """

    path: Path
    hub_repo: str = ''
    drive_id: str = ''

    @property
    def source(self) -> str:
        """Where to get it, in words."""
        return (
            f'the Hugging Face model repository {self.hub_repo}'
            if self.hub_repo
            else f'Google Drive, file id {self.drive_id}'
        )

    @property
    def page(self) -> str:
        """Where to get it with a browser."""
        return (
            f'https://huggingface.co/{self.hub_repo}'
            if self.hub_repo
            else f'https://drive.google.com/file/d/{self.drive_id}/view'
        )


_ADDP_REPO = 'Changyao/ADDP'
PUBLISHED_FILES = {
    'addp-vit-base-16': PublishedFile(Path('exp/release/addp-vit-base-16.pth'), hub_repo=_ADDP_REPO),
    'addp-vit-large-16': PublishedFile(Path('exp/release/addp-vit-large-16.pth'), hub_repo=_ADDP_REPO),
    'vqgan_jax_strongaug': PublishedFile(
        Path('exp/pretrained_model/vqgan_jax_strongaug.ckpt'), drive_id='13S_unB87n6KKuuMdyMnyExW0G1kplTbP'
    ),
    'mage-vitb-1600': PublishedFile(
        Path('exp/pretrained_model/mage-vitb-1600.pth'), drive_id='1Q6tbt3vF0bSrv5sPrjpFu8ksG3vTsVX2'
    ),
    'mage-vitl-1600': PublishedFile(
        Path('exp/pretrained_model/mage-vitl-1600.pth'), drive_id='15xBPa8EIa0IRUiRYtXiYOC9JZVyMIFrB'
    ),
}


@dataclass
class LoadReport:
    """What was done with a published file.

    Attributes:
        loaded: Names of the file's tensors that were loaded.
        dropped: Reason for every entry that was not, by name.
        absent: Networks the file does not hold, which keep their weights: 'tokenizer', 'token_predictor'.
    """

    loaded: list[str] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)


# Entries that training programs put beside a network's weights.
_RUN_STATE = frozenset(
    (
        'optimizer',
        'epoch',
        'scaler',
        'args',
        'global_step',
        'lr_schedulers',
        'optimizer_states',
        'callbacks',
        'loops',
        'pytorch-lightning_version',
        'hyper_parameters',
        'hparams_name',
        'native_amp_scaling_state',
    )
)
_RUN_STATE_REASON = 'state of the training run, not of a network'
_NOT_NEEDED_REASON = 'of a network that is not needed here'
_UNUSED_REASON = 'stored, but not used by the published forward pass'
_ALIAS_REASON = 'second name of the tokenizer, whose weights are loaded from vqgan.*'
_FOREIGN_TOKENIZER_REASON = 'a tokenizer kept in the file of a token predictor; tokenizers have their own file'


def find_published(name: str, path: str | Path | None = None, option: str = 'path') -> Path:
    """Finds a released checkpoint.

    Args:
        name: A key of :data:`PUBLISHED_FILES`, for example ``'mage-vitb-1600'``.
        path: Where a config says the file lies; None for where the published README puts it.
        option: The config option that ``path`` comes from, for the error.

    Returns:
        The path of an existing file.

    Raises:
        ValueError: If the name is unknown.
        FileNotFoundError: If there is no such file.
    """
    if name not in PUBLISHED_FILES:
        raise ValueError(f'unknown published checkpoint {name!r}: use one of {sorted(PUBLISHED_FILES)}')
    published = PUBLISHED_FILES[name]
    found = Path(path) if path is not None else published.path
    if not found.is_file():
        raise FileNotFoundError(
            f'{found} does not exist. Get {published.path.name} from {published.source} and place it '
            f'at {published.path} (python tools/download_weights.py {name}), or set {option} to where it lies'
        )
    return found


def load_published(
    model: ADDP, contents: Mapping[str, Any], needed: Collection[str] = ('tokenizer', 'token_predictor')
) -> LoadReport:
    """Loads a released ADDP file or a published training checkpoint.

    The ADDP tensors must all be there. Tokenizer (``vqgan.*``) and token predictor (``token_predictor.*``) are loaded
    if the file holds them, each in full; a released file may hold neither, and then they keep their weights, which is
    reported as a warning.

    Args:
        model: Receives the weights.
        contents: The file's contents, or the state dict alone.
        needed: Which of the frozen networks to load; the others' tensors are dropped (generation needs no predictor).

    Returns:
        What was loaded, what was dropped and why, and which needed networks the file does not hold.

    Raises:
        CheckpointError: If tensors are missing, unknown or of another shape; nothing is loaded then.
    """
    report = LoadReport()
    tensors = _network_tensors(contents, report)
    alias = _take(tensors, 'token_predictor.vqgan.')
    predictor = _take(tensors, 'token_predictor.')
    tokenizer = _take(tensors, 'vqgan.')
    copies = _match(model, tensors, '', _unused_of_addp(model), report)
    for name, prefix, found in (
        ('tokenizer', 'vqgan.', tokenizer),
        ('tokenizer', 'token_predictor.vqgan.', alias),
        ('token_predictor', 'token_predictor.', predictor),
    ):
        if name not in needed:
            report.dropped.update({f'{prefix}{key}': _NOT_NEEDED_REASON for key in found})
            found.clear()
    if predictor:
        unused = _unused_of_token_predictor(model.token_predictor, model.patch_size)
        copies += _match(model.token_predictor, predictor, 'token_predictor.', unused, report)
    if tokenizer:
        copies += _match(model.tokenizer, tokenizer, 'vqgan.', {}, report)
        _drop_alias(alias, tokenizer, report)
    elif alias:
        copies += _match(model.tokenizer, alias, 'token_predictor.vqgan.', {}, report)
    report.absent = [
        name
        for name, found in (('tokenizer', tokenizer or alias), ('token_predictor', predictor))
        if name in needed and not found
    ]
    _copy(copies)
    if report.absent:
        print_log(
            f'the checkpoint holds ADDP but no {" and no ".join(report.absent)}: they keep the weights they have, so '
            f'load their own files before training or generating',
            logger='current',
            level=logging.WARNING,
        )
    return report


def load_published_token_predictor(
    predictor: TokenPredictor, contents: Mapping[str, Any], patch_size: int = 16
) -> LoadReport:
    """Loads ``mage-vit{b,l}-1600.pth``.

    Args:
        predictor: Receives the weights.
        contents: The file's contents, or the state dict alone.
        patch_size: Of MAGE's pixel branch, which we have no use for; to check the file against.

    Returns:
        What was loaded, and what was dropped and why.

    Raises:
        CheckpointError: As in :func:`load_published`.
    """
    report = LoadReport()
    tensors = _network_tensors(contents, report)
    report.dropped.update({f'vqgan.{name}': _FOREIGN_TOKENIZER_REASON for name in _take(tensors, 'vqgan.')})
    _copy(_match(predictor, tensors, '', _unused_of_token_predictor(predictor, patch_size), report))
    return report


def load_published_tokenizer(tokenizer: VQGANTokenizer, contents: Mapping[str, Any]) -> LoadReport:
    """Loads ``vqgan_jax_strongaug.ckpt``; arguments, returns and errors as in :func:`load_published`."""
    report = LoadReport()
    _copy(_match(tokenizer, _network_tensors(contents, report), '', {}, report))
    return report


def _network_tensors(contents: Mapping[str, Any], report: LoadReport) -> dict[str, Any]:
    """The network's entries, also from under ``model`` or ``state_dict``; run state is dropped with its reason."""
    tensors, beside = split_checkpoint(contents)
    entries = {**tensors, **beside}
    for name in _RUN_STATE.intersection(entries):
        del entries[name]
        report.dropped[name] = _RUN_STATE_REASON
    return entries


def _take(tensors: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Removes the entries with a prefix and returns them without it."""
    return {name.removeprefix(prefix): tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}


def _unused_of_addp(model: ADDP) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a published file that ADDP's forward pass does not use."""
    width = model.pos_embed.shape[-1]
    positions = tuple(model.pos_embed.shape)
    pixels = 3 * model.patch_size**2
    return {
        'decoder_pos_embed': positions,
        'pos_token_embed': positions,
        'pos_mask_embed': positions,
        'decoder_pred.weight': (pixels, width),
        'decoder_pred.bias': (pixels,),
    }


def _unused_of_token_predictor(predictor: TokenPredictor, patch_size: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a published file's tensors that the token predictor does not use (MAGE's pixel branch)."""
    positions = tuple(predictor.decoder_pos_embed_learned.shape)
    width = positions[-1]
    pixels = 3 * patch_size**2
    return {
        'cls_token': (1, 1, width),
        'mask_token': (1, 1, width),
        'pos_embed': positions,
        'decoder_pos_embed': positions,
        'patch_embed.proj.weight': (width, 3, patch_size, patch_size),
        'patch_embed.proj.bias': (width,),
        'decoder_pred.weight': (pixels, width),
        'decoder_pred.bias': (pixels,),
        'token_emb.position_ids': positions[:2],
    }


# Newer versions of the library that made this integer buffer do not store it.
_OPTIONAL = frozenset(('token_emb.position_ids',))


def _match(
    module: nn.Module, source: Mapping[str, Any], prefix: str, unused: Mapping[str, tuple[int, ...]], report: LoadReport
) -> list[tuple[Tensor, Tensor]]:
    """Pairs a network's tensors with the file's.

    Args:
        module: The network; its names are the file's.
        source: The file's entries.
        prefix: What precedes their names in the file, for report and errors.
        unused: Names and shapes of tensors to drop.
        report: Filled in.

    Returns:
        (destination, source) pairs.

    Raises:
        CheckpointError: On any disagreement, with all of them.
    """
    own = module.state_dict()
    mismatch = match_tensors(source, {**own, **unused}, _OPTIONAL)
    if mismatch:
        listed = ''.join(f'\n  {line}' for line in mismatch.lines(prefix))
        raise CheckpointError(
            f'the checkpoint does not fit {type(module).__name__}, nothing was loaded:{listed}\n'
            f'Check that the sizes in the config (arch, decoder_depth, img_size, tokenizer ...) are those '
            f'of the checkpoint'
        )
    report.loaded += [f'{prefix}{name}' for name in own]
    report.dropped.update({f'{prefix}{name}': _UNUSED_REASON for name in unused if name in source})
    return [(own[name], source[name]) for name in own]


def _drop_alias(alias: Mapping[str, Any], tokenizer: Mapping[str, Any], report: LoadReport) -> None:
    """Drops ``token_predictor.vqgan.*`` once it is clear that it is the tokenizer again.

    Raises:
        CheckpointError: If names, shapes or values differ.
    """
    names = alias.keys() ^ tokenizer.keys() if alias else ()
    if names:
        raise CheckpointError(
            f'token_predictor.vqgan.* and vqgan.* name the same tokenizer, but only one of them holds '
            f'{sorted(names)[:MAX_NAMES]}; nothing was loaded'
        )
    for name, value in alias.items():
        same = (
            isinstance(value, Tensor)
            and value.shape == tokenizer[name].shape
            and (value.is_meta or torch.equal(value, tokenizer[name]))
        )
        if not same:
            raise CheckpointError(
                f'token_predictor.vqgan.{name} differs from vqgan.{name}, though both name the same '
                f'tokenizer; nothing was loaded'
            )
        report.dropped[f'token_predictor.vqgan.{name}'] = _ALIAS_REASON


@torch.no_grad()
def _copy(pairs: list[tuple[Tensor, Tensor]]) -> None:
    for destination, source in pairs:
        destination.copy_(source)
