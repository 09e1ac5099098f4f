"""From trainings to the commands that make them, each in a folder of its own, with about how long they take."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmengine.config import Config

from addp_backbone.files.shipped import find_config, shipped_folder
from addp_backbone.networks.arch import get_arch
from addp_backbone.runtime.config_checks import check_data
from addp_backbone.runtime.launch import load_config
from addp_backbone.runtime.option_names import check_names
from addp_backbone.runtime.option_parsing import config_option, parse_options
from addp_backbone.runtime.option_values import check_values
from experiments.probes.estimate import feature_seconds
from experiments.stages import Stage
from experiments.trained.protocols import (
    METRICS_FILE,
    PER_IMAGE_FILE,
    TRAININGS_FOLDER,
    TrainedJob,
    Training,
)

if TYPE_CHECKING:
    from experiments.probes.backbones import Source
    from experiments.probes.run import Prober

_PASSES = 3  # of a training iteration in forward passes: one forward, two backward
_HEADS = 2  # pyramid and heads take about as long as the backbone: a guess
_TEST_SECONDS = 60


def plan_trainings(
    trainings: Sequence[Training], sources: Mapping[str, Source], digests: Mapping[str, str], out: Path
) -> list[TrainedJob]:
    """Checks configs and data, and lists the trainings.

    Args:
        trainings: What is trained.
        sources: Name of a backbone -> what is known of it.
        digests: Name of a backbone -> checksum of it and its weights.
        out: Folder of the comparison.

    Returns:
        The jobs in the order in which they run.

    Raises:
        ValueError: If a config cannot be loaded, does not fit a backbone, or its data are missing.
    """
    jobs = []
    for training in trainings:
        config = find_config(training.config).absolute()
        cfg = load_config(str(config), training.parsed_options())
        for check in (check_values, check_names):
            check(cfg)
        for split in ('train', 'test'):
            check_data(cfg, split)
        identity = hashlib.sha256(json.dumps(cfg.to_dict(), sort_keys=True, default=str).encode()).hexdigest()
        for name in training.backbones:
            options = backbone_options(training.name, cfg, sources[name])
            load_config(str(config), parse_options(options))  # refuses what the config has no place for
            for seed in training.seeds:
                inputs = [identity, digests[name], name, seed, training.amp]
                seconds = training_seconds(cfg, sources[name])
                jobs.append(_job(training, str(config), name, seed, options, inputs, seconds, out))
    return jobs


def plan_probed_trainings(trainings: Sequence[Training], prober: Prober, out: Path) -> list[TrainedJob]:
    """As :func:`plan_trainings`, of the backbones of a probe; their weights are read only if there are trainings."""
    sources = {source.text: source for source in prober.sources}
    digests = {text: prober.digest(source) for text, source in sources.items()} if trainings else {}
    return plan_trainings(trainings, sources, digests, out)


def backbone_options(name: str, cfg: Config, source: Source) -> list[str]:
    """``--cfg-options`` that put a backbone into a config, for training and testing.

    A test reads the weights again, as the checkpoint of low-rank differences holds these alone.

    Args:
        name: Of the training, for errors.
        cfg: The config.
        source: The backbone.

    Returns:
        The options.

    Raises:
        ValueError: If the config is for another kind or size of backbone.
    """
    backbone = cfg.model.backbone
    kind = str(backbone.type).rpartition('.')[2]
    prefix, options = 'model.backbone', source.options
    if (kind == 'TimmViT') != source.is_timm:
        wanted = 'a ViT of timm' if source.is_timm else 'an ADDPViT'
        raise ValueError(
            f'training {name!r}: its config has a {kind}, but {source.text} is {wanted}: give a second entry of this '
            'name with a config for it, and say in `backbones` which entry trains which'
        )
    file = (options.get('init_cfg') or {}).get('checkpoint')
    found = [f'{prefix}.init_cfg=None']
    if file is not None:
        found = [
            f'{prefix}.init_cfg.type=Pretrained',
            config_option(f'{prefix}.init_cfg.checkpoint', Path(file).absolute()),
        ]
    if source.is_timm:
        if options.get('pretrained'):
            found.append(f'{prefix}.pretrained=True')
        return [f'{prefix}.model={options["model"]}', *found]
    size = get_arch(backbone.arch)
    patch_size = source.patch_size if file else backbone.patch_size  # random weights take any
    if (size.width, size.depth, backbone.patch_size) != (source.width, source.depth, patch_size):
        raise ValueError(
            f'training {name!r}: its config has an ADDPViT of width {size.width}, {size.depth} blocks and patches of '
            f'{backbone.patch_size} px, but {source.text} has width {source.width}, {source.depth} blocks and patches '
            f'of {source.patch_size} px'
        )
    return found


def training_seconds(cfg: Config, source: Source) -> float:
    """About how long a training takes on one CPU core, from the arithmetic: heads as much as the backbone.

    A frozen backbone has no backward pass, and heads are taken to cost as much as its forward pass.

    Args:
        cfg: The config; its backbone tells the size of images.
        source: The backbone.
    """
    side = cfg.model.backbone.get('img_size', 512)
    stride = cfg.model.backbone.get('stride') or source.patch_size
    patches = (max(side) if isinstance(side, (tuple, list)) else side) ** 2 // stride**2
    loop, batch = cfg.train_cfg, cfg.train_dataloader.batch_size
    iters = loop.get('max_iters') or loop.get('max_epochs', 1) * 1000 / batch  # epochs: of a thousand images, a guess
    passes = 1 if cfg.model.backbone.get('frozen') is True else _PASSES
    return passes * _HEADS * feature_seconds(round(iters * batch), patches, source.width, source.depth)


def _job(
    training: Training,
    config: str,
    backbone: str,
    seed: int,
    options: Sequence[str],
    inputs: Sequence[Any],
    seconds: float,
    out: Path,
) -> TrainedJob:
    checksum = hashlib.sha256(json.dumps(list(inputs)).encode()).hexdigest()[:10]
    folder = out.absolute() / TRAININGS_FOLDER / f'{_slug(training.name)}_{_slug(backbone)}_seed{seed}-{checksum}'
    tools, test_folder = shipped_folder('tools'), folder / 'test'
    common = [f'randomness.seed={seed}', *training.options, *options]
    amp = ['--amp'] if training.amp else []
    title = f'{training.name}, {backbone}, seed {seed}'
    train_words = [config, '--work-dir', str(folder), '--resume', *amp, '--cfg-options', *common]
    train = Stage(title, seconds, (str(tools / 'train.py'), *train_words), folder=folder)
    results = [f'--out={test_folder / METRICS_FILE}', f'--per-image={test_folder / PER_IMAGE_FILE}']
    test_words = [config, str(folder), f'--work-dir={test_folder}', *results, '--cfg-options', *common]
    test = Stage(
        f'{title}, test',
        _TEST_SECONDS,
        (str(tools / 'test.py'), *test_words),
        outputs=(test_folder / PER_IMAGE_FILE,),
        needs=(train,),
        folder=test_folder,
    )
    return TrainedJob(training.name, backbone, seed, train, test)


def _slug(text: str) -> str:
    """A short name for a folder."""
    return ''.join(c if c.isalnum() else '_' for c in text.rpartition('/')[2])[:40].strip('_') or 'run'
