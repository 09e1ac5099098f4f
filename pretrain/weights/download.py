"""Fetches the released checkpoints (and the weights that FID needs) into the places where the configs look for them.

A file is moved to its place only after it was loaded into the network that it is for. ``tools/download_weights.py`` is
the command.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from addp_backbone.checkpoint.storage import CheckpointError, read_checkpoint
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
from pretrain.weights.resumable_download import DownloadError, Progress, check_content, fetch

INCEPTION = 'inception'
GROUPS = {
    'all': (*PUBLISHED_FILES, INCEPTION),
    'base': ('addp-vit-base-16', 'vqgan_jax_strongaug', 'mage-vitb-1600', INCEPTION),
    'large': ('addp-vit-large-16', 'vqgan_jax_strongaug', 'mage-vitl-1600', INCEPTION),
}
COMMAND = 'python tools/download_weights.py'


@dataclass(frozen=True)
class Remote:
    """A file of a server.

    Attributes:
        url: Where to fetch it.
        size: Bytes, if known.
        sha256: Its checksum, if known.
    """

    url: str
    size: int | None = None
    sha256: str | None = None


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


def place_of(name: str, root: Path = Path()) -> Path:
    """Where the configs look for a file, below the repository's root."""
    return root / (Path('exp/pretrained_model') / INCEPTION_FILE if name == INCEPTION else PUBLISHED_FILES[name].path)


def download(name: str, root: Path = Path(), progress: Progress | None = None, quiet: bool = False) -> str:
    """Fetches a file, checks it and puts it where the configs look for it; one that is there already is only checked.

    Args:
        name: One of ``GROUPS['all']``.
        root: The repository's root.
        progress: Called while bytes arrive.
        quiet: Whether gdown (Google Drive) says nothing.

    Returns:
        What the check found, in words.

    Raises:
        DownloadError: If it cannot be fetched (a part that has arrived stays and is gone on with), or is not what it
            should be (then nothing stays).
    """
    place = place_of(name, root)
    if place.is_file():
        return check(name, place)
    part = place.with_name(f'.{place.name}.part')
    part.parent.mkdir(parents=True, exist_ok=True)
    remote = None
    if name != INCEPTION and PUBLISHED_FILES[name].drive_id:
        _fetch_from_drive(PUBLISHED_FILES[name].drive_id, part, quiet)
    else:
        remote = Remote(URL_INCEPTION_V3) if name == INCEPTION else find_on_hub(PUBLISHED_FILES[name])
        fetch(remote.url, part, progress)
    try:
        if remote:
            check_content(part, remote.size, remote.sha256)
        found = check(name, part)
    except DownloadError as error:
        part.unlink()
        raise DownloadError(f'what was fetched as {name} is refused and removed: {error}') from error
    part.replace(place)
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
            check_content(path, sha256=Path(INCEPTION_FILE).stem.rpartition('-')[2])
            return f'{len(contents)} tensors, checksum as in its name'
        with torch.device('meta'):
            report = _LOADERS[name](contents)
    except CheckpointError as error:
        raise DownloadError(f'{path} is not {name}: {error}') from error
    absent = f', no {" and no ".join(report.absent)}' if report.absent else ''
    return f'{len(report.loaded)} tensors load, {len(report.dropped)} dropped for stated reasons{absent}'


def find_on_hub(published: PublishedFile) -> Remote:
    """Looks a released file up on Hugging Face (or the mirror ``HF_ENDPOINT``), in whatever folder of its repository it lies.

    Args:
        published: With ``hub_repo``.

    Raises:
        DownloadError: If huggingface_hub is missing, the hub cannot be reached, or it has no such file.
    """
    hub = _import('huggingface_hub')
    # The bases: of the HTTP library that this version is built on.
    failures: tuple[type[Exception], ...] = (
        OSError,
        *importlib.import_module('huggingface_hub.errors').HfHubHTTPError.__bases__,
    )
    endpoint = os.environ.get('HF_ENDPOINT')
    try:
        info = hub.HfApi(endpoint).model_info(published.hub_repo, files_metadata=True, timeout=30)
    except failures as error:
        raise DownloadError(f'{published.hub_repo} cannot be looked up on Hugging Face: {error}') from error
    for file in info.siblings or []:
        if Path(file.rfilename).name == published.path.name:
            checksum = file.lfs.sha256 if file.lfs else None
            return Remote(
                hub.hf_hub_url(published.hub_repo, file.rfilename, revision=info.sha, endpoint=endpoint),
                file.size,
                checksum,
            )
    raise DownloadError(
        f'{published.hub_repo} holds no {published.path.name}; it holds '
        f'{", ".join(file.rfilename for file in info.siblings or []) or "nothing"}'
    )


def instructions(names: Collection[str], root: Path = Path()) -> str:
    """How to get files by hand."""
    lines = ['By hand, with a browser on a machine that has network:']
    for name in names:
        page = URL_INCEPTION_V3 if name == INCEPTION else PUBLISHED_FILES[name].page
        lines.append(f'  {page}\n      file {place_of(name).name} -> {place_of(name, root)}')
    return '\n'.join([*lines, f'then: {COMMAND} --check'])


def _fetch_from_drive(drive_id: str, part: Path, quiet: bool) -> None:
    """Fetches from Google Drive, whose large files lie behind a page that gdown knows; gdown goes on with its own partial files."""
    gdown = _import('gdown')
    own = [kind for kind in vars(gdown.exceptions).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    failures: tuple[type[Exception], ...] = (OSError, *own)
    try:
        fetched = gdown.download(id=drive_id, output=str(part), quiet=quiet, resume=True, use_cookies=False)
    except failures as error:
        raise DownloadError(f'Google Drive, file id {drive_id}: {error}') from error
    if fetched is None:  # how older versions fail
        raise DownloadError(f'Google Drive, file id {drive_id}: gdown could not fetch it')


def _import(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DownloadError(f'{module} is not installed: pip install {module}') from error


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
