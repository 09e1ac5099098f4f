"""Which trained models a demo offers: found in folders by their configs, loaded when they are first asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from mmengine import Config

from addp_backbone.checkpoint.errors import CheckpointError
from addp_backbone.checkpoint.locate import find_checkpoint, find_latest_checkpoint
from addp_backbone.runtime.launch import load_config

PREDICTS, GENERATES = 'predicts', 'generates'
MAX_DEPTH = 4  # folders below one that is given; a quickstart's runs lie two below
MAX_LOADED = 2  # models of a kind in memory
_GENERATOR, _NOT_SHOWN = 'ADDPPretraining', ('TokenizerTraining', 'TokenPredictorTraining')
Model = TypeVar('Model')


@dataclass(frozen=True)
class TrainedModel:
    """A config with its checkpoint.

    Attributes:
        name: What the page calls it; unique.
        config: Config file.
        checkpoint: Checkpoint, or work dir.
        kind: :data:`PREDICTS` (detector, segmentor, classifier) or :data:`GENERATES` (ADDP).
    """

    name: str
    config: Path
    checkpoint: Path
    kind: str


def find_models(
    folders: Sequence[str | Path], pairs: Iterable[Sequence[str | Path]] = (), tokenizer: str | None = None
) -> list[TrainedModel]:
    """Finds trained models.

    Args:
        folders: Work dirs, or folders in which work dirs are looked for, up to four levels below. A work dir holds a
            checkpoint and the config that training wrote beside it.
        pairs: Config and checkpoint (or work dir) of further models.
        tokenizer: File or work dir of the tokenizer of all ADDP models, checked to exist.

    Returns:
        The models, those of the folders first. Runs of tokenizers and token predictors are left out.

    Raises:
        ValueError: If a folder or a pair holds no model that can be shown.
    """
    if tokenizer is not None:
        find_checkpoint(tokenizer, '--tokenizer')
    found: dict[Path, TrainedModel] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise ValueError(f'{folder} is no folder: give the work dir of a training run, or --model CONFIG CKPT')
        here = list(_models_of(folder))
        for model in here:
            found.setdefault(model.checkpoint.resolve(), model)
        if not here:
            raise ValueError(
                f'{folder} holds no work dir of a detector, segmentor, classifier or ADDP: one has a checkpoint '
                '(iter_*.pth or epoch_*.pth) and the config that training wrote beside it'
            )
    return _with_unique_names([*found.values(), *(_of_pair(config, checkpoint) for config, checkpoint in pairs)])


def _models_of(folder: Path) -> Iterator[TrainedModel]:
    for config, work_dir in _work_dirs(folder, MAX_DEPTH):
        kind = _kind(Config.fromfile(config))
        if kind is not None:
            name = Path(folder.resolve().name) / work_dir.relative_to(folder)
            yield TrainedModel(name.as_posix(), config, work_dir, kind)


def _of_pair(config: str | Path, checkpoint: str | Path) -> TrainedModel:
    cfg = load_config(str(config))
    kind = _kind(cfg)
    if kind is None:
        raise ValueError(
            f'{config} is the config of no detector, segmentor, classifier or ADDP; its model is '
            f'{(cfg.get("model") or {}).get("type")!r}'
        )
    file = Path(checkpoint)
    if kind == PREDICTS:
        find_checkpoint(checkpoint)
    elif not file.exists():
        raise CheckpointError(f'{checkpoint} does not exist: give a released ADDP file, a checkpoint, or a work dir')
    return TrainedModel(f'{Path(config).stem} ({file.name})', Path(cfg.filename), file, kind)


def _work_dirs(folder: Path, depth: int) -> Iterator[tuple[Path, Path]]:
    """Configs and work dirs in a folder; what lies in a work dir is not searched."""
    configs = sorted(folder.glob('*.py'), key=lambda path: path.stat().st_mtime_ns)
    if configs and find_latest_checkpoint(folder) is not None:
        yield configs[-1], folder  # the last run's, if the work dir was used with several
    elif depth:
        for child in sorted(folder.iterdir()):
            if child.is_dir() and not child.name.startswith('.'):
                yield from _work_dirs(child, depth - 1)


def _kind(cfg: Config) -> str | None:
    kind = (cfg.get('model') or {}).get('type')
    if kind == _GENERATOR:
        return GENERATES
    return PREDICTS if kind is not None and kind not in _NOT_SHOWN and cfg.get('test_dataloader') else None


def _with_unique_names(models: list[TrainedModel]) -> list[TrainedModel]:
    """Numbers names that occur again."""
    named: dict[str, TrainedModel] = {}
    for model in models:
        name, number = model.name, 2
        while name in named:
            name, number = f'{model.name} ({number})', number + 1
        named[name] = TrainedModel(name, model.config, model.checkpoint, model.kind)
    return list(named.values())


class Loaded(Generic[Model]):
    """Models in memory, the last :data:`MAX_LOADED` that were used.

    Args:
        models: What may be asked for, and others.
        kind: Only models of this kind may be.
        load: Makes one of config and checkpoint.
    """

    def __init__(self, models: Iterable[TrainedModel], kind: str, load: Callable[[Path, Path], Model]) -> None:
        self.models = {model.name: model for model in models if model.kind == kind}
        self._load, self._loaded = load, dict[str, Model]()

    @property
    def names(self) -> list[str]:
        """Names, in order."""
        return list(self.models)

    def get(self, name: Any) -> Model:
        """The model of a name.

        Raises:
            ValueError: If the name is none of :attr:`names`, or config and checkpoint do not fit.
        """
        if not isinstance(name, str) or name not in self.models:
            raise ValueError(f'there is no model {name!r}; choose one of {", ".join(self.models)}')
        model = self._loaded.pop(name, None)
        if model is None:
            while len(self._loaded) >= MAX_LOADED:
                del self._loaded[next(iter(self._loaded))]  # before the next one takes memory
            model = self._load(self.models[name].config, self.models[name].checkpoint)
        self._loaded[name] = model
        return model
