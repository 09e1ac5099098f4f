"""Fetches the released checkpoints (and the weights that FID needs) to where the configs look for them.

A file is moved there only after it was loaded into the network that it is for. ``tools/download_weights.py`` is
the command.
"""

from __future__ import annotations

import http.client
import os
import shutil
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import gdown
import huggingface_hub
import requests
import torch
from huggingface_hub.errors import HfHubHTTPError
from tqdm import tqdm

from addp_backbone.checkpoint.errors import CheckpointError
from addp_backbone.checkpoint.storage import read_checkpoint
from addp_backbone.files.atomic import sha256_of
from pretrain.evaluation.fidelity import INCEPTION_FILE, URL_INCEPTION_V3
from pretrain.networks.addp import ADDP
from pretrain.networks.token_predictor import TokenPredictor
from pretrain.networks.tokenizer import VQGANTokenizer
from pretrain.weights.published import (
    PUBLISHED_FILES,
    LoadReport,
    PublishedFile,
    load_published,
    load_published_token_predictor,
    load_published_tokenizer,
)

INCEPTION = 'inception'
GROUPS = {
    'all': (*PUBLISHED_FILES, INCEPTION),
    'base': ('addp-vit-base-16', 'vqgan_jax_strongaug', 'mage-vitb-1600', INCEPTION),
    'large': ('addp-vit-large-16', 'vqgan_jax_strongaug', 'mage-vitl-1600', INCEPTION),
}
COMMAND = 'python tools/download_weights.py'
_INCEPTION_SHA256 = Path(INCEPTION_FILE).stem.rpartition('-')[2]  # its first digits, which the file's name ends in
_TIMEOUT_S = 30.0
# OSError, and the error of whichever HTTP library this version of huggingface_hub is built on.
_HUB_ERRORS: tuple[type[Exception], ...] = (OSError, *HfHubHTTPError.__bases__)


class DownloadError(RuntimeError):
    """A file could not be fetched, or is not what it should be; the message says what to do."""


def names_of(words: Sequence[str]) -> list[str]:
    """The files that names and groups (keys of :data:`GROUPS`) stand for, each once.

    Raises:
        DownloadError: If one is unknown.
    """
    names: dict[str, None] = {}
    for word in words:
        if word not in GROUPS and word not in GROUPS['all']:
            raise DownloadError(f'unknown weights {word!r}: use {", ".join((*GROUPS, *GROUPS["all"]))}')
        names.update(dict.fromkeys(GROUPS.get(word, (word,))))
    return list(names)


def path_of(name: str, root: Path = Path()) -> Path:
    """Where the configs look for a file, below the repository's root."""
    return root / (Path('exp/pretrained_model') / INCEPTION_FILE if name == INCEPTION else PUBLISHED_FILES[name].path)


def download(name: str, root: Path = Path(), quiet: bool = False) -> str:
    """Fetches a file, checks it and puts it where the configs look for it; one that is there already is only checked.

    Args:
        name: One of ``GROUPS['all']``.
        root: The repository's root.
        quiet: Whether to show no progress.

    Returns:
        What the check found, in words.

    Raises:
        DownloadError: If the file cannot be fetched (what has arrived stays, and the next call goes on from there,
            except for Inception's 95 MB), or is not what it should be (then nothing stays).
    """
    target = path_of(name, root)
    if target.is_file():
        return check(name, target)
    folder = target.parent / f'.{target.name}.download'
    folder.mkdir(parents=True, exist_ok=True)
    fetched = _fetch(name, folder, quiet)
    try:
        found = check(name, fetched)
    except DownloadError as error:
        shutil.rmtree(folder)
        raise DownloadError(f'what was fetched as {name} is refused and removed: {error}') from error
    fetched.replace(target)
    shutil.rmtree(folder)
    return found


def check(name: str, path: Path) -> str:
    """Loads a file strictly into the network that it is for (without memory for it); nothing in the file is executed.

    Returns:
        What was found, in words.

    Raises:
        DownloadError: If it is not what its name says.
    """
    try:
        contents = read_checkpoint(path)
        if name == INCEPTION:
            found = sha256_of(path)
            if not found.startswith(_INCEPTION_SHA256):
                raise DownloadError(f'{path.name} has SHA-256 {found[:16]}..., wanted {_INCEPTION_SHA256}...')
            return f'{len(contents)} tensors, checksum as in its name'
        with torch.device('meta'):
            report = _LOADERS[name](contents)
    except CheckpointError as error:
        raise DownloadError(f'{path} is not {name}: {error}') from error
    absent = f', no {" and no ".join(report.absent)}' if report.absent else ''
    return f'{len(report.loaded)} tensors load, {len(report.dropped)} dropped for stated reasons{absent}'


def instructions(names: Collection[str], root: Path = Path()) -> str:
    """How to get files by hand."""
    lines = ['By hand, with a browser on a machine that has network:']
    for name in names:
        page = URL_INCEPTION_V3 if name == INCEPTION else PUBLISHED_FILES[name].page
        lines.append(f'  {page}\n      file {path_of(name).name} -> {path_of(name, root)}')
    return '\n'.join([*lines, f'then: {COMMAND} --check'])


def _fetch(name: str, folder: Path, quiet: bool) -> Path:
    """Downloads a file into a folder of its own, which also keeps what is needed to go on after an interruption."""
    if name == INCEPTION:
        path = folder / INCEPTION_FILE
        try:
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), _INCEPTION_SHA256, progress=not quiet)
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            raise DownloadError(f'{URL_INCEPTION_V3}: {error}') from error
        return path
    published = PUBLISHED_FILES[name]
    if published.hub_repo:
        return _fetch_from_hub(published, folder, quiet)
    return _fetch_from_drive(published, folder, quiet)


def _fetch_from_hub(published: PublishedFile, folder: Path, quiet: bool) -> Path:
    """Downloads from Hugging Face (or the mirror ``HF_ENDPOINT``), whichever of its folders the file is in."""
    endpoint = os.environ.get('HF_ENDPOINT')
    try:
        info = huggingface_hub.HfApi(endpoint).model_info(published.hub_repo, files_metadata=True, timeout=_TIMEOUT_S)
        files = {file.rfilename: file for file in info.siblings or []}
        name = next((name for name in files if Path(name).name == published.path.name), None)
        if name is None:
            raise DownloadError(
                f'{published.hub_repo} holds no {published.path.name}; it holds {", ".join(files) or "nothing"}'
            )
        path = huggingface_hub.hf_hub_download(
            published.hub_repo,
            name,
            revision=info.sha,
            local_dir=folder,
            endpoint=endpoint,
            tqdm_class=_NoBar if quiet else None,
        )
    except _HUB_ERRORS as error:
        raise DownloadError(f'Hugging Face, {published.hub_repo}: {error}') from error
    large_file = files[name].lfs
    if large_file and sha256_of(path) != large_file.sha256:
        shutil.rmtree(folder)
        raise DownloadError(f'{name} was changed on its way: its SHA-256 is not the {large_file.sha256} of the hub')
    return Path(path)


def _fetch_from_drive(published: PublishedFile, folder: Path, quiet: bool) -> Path:
    """Downloads from Google Drive, whose large files lie behind a page that gdown knows."""
    path = folder / published.path.name
    try:
        gdown.download(id=published.drive_id, output=str(path), quiet=quiet, resume=True, use_cookies=False)
    except (OSError, gdown.exceptions.DownloadError, requests.RequestException) as error:
        raise DownloadError(f'{published.source}: {error}') from error
    return path


class _NoBar(tqdm):
    """A progress bar that is not shown."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, 'disable': True})


def _load_addp(arch: str, contents: dict[str, Any]) -> LoadReport:
    return load_published(ADDP(arch=arch, token_predictor=dict(arch=arch)), contents)


def _load_predictor(arch: str, contents: dict[str, Any]) -> LoadReport:
    return load_published_token_predictor(TokenPredictor(arch=arch), contents)


_LOADERS: dict[str, Callable[[dict[str, Any]], LoadReport]] = {
    'addp-vit-base-16': lambda contents: _load_addp('base', contents),
    'addp-vit-large-16': lambda contents: _load_addp('large', contents),
    'vqgan_jax_strongaug': lambda contents: load_published_tokenizer(VQGANTokenizer(), contents),
    'mage-vitb-1600': lambda contents: _load_predictor('base', contents),
    'mage-vitl-1600': lambda contents: _load_predictor('large', contents),
}
