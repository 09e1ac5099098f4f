"""Training goes on without single samples that cannot be read; too many of them end it, with a checkpoint.

:class:`SubstituteBadSamples` replaces a sample whose loading or augmentation fails by another one, drawn from the seed
that the sampler gave it. So the stream of samples stays a function of the run's seed and of the position in it, and a
resumed run sees what the unbroken one saw. Each bad sample is named once in the log and in a file of the work dir.
:class:`LimitBadSamples` ends the run where there are too many. Runs of ``tools/train.py`` have both; the limits are
``bad_samples = dict(max_count=..., max_share=...)`` in the config. Validation and tests replace nothing.
"""

from __future__ import annotations

import fcntl
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import DATASETS, HOOKS
from mmengine.runner import Runner
from torch.utils.data import Dataset

from addp_backbone.runtime.config_checks import LaunchError
from addp_backbone.runtime.preemption import request_end
from addp_backbone.runtime.seeding import substitute_index

MAX_COUNT, MAX_SHARE = 100, 0.01  # ours: bad files of a large data set, and of a small one
MAX_ATTEMPTS = 50  # substitutes in a row that fail too: then the data are gone, not single samples
RECORD_FILE = 'bad_samples_rank{}.jsonl'  # in the work dir, a file for each process
# These say that the config or the code is wrong, whatever the sample.
_NOT_OF_A_SAMPLE = (LaunchError, ImportError, NameError, NotImplementedError)


class BadSamplesError(LaunchError):
    """Too many samples of the training set cannot be used."""


class NoSampleError(BadSamplesError):
    """None of many samples in a row could be read."""


class BadSamples:
    """The samples of a data set that could not be used, known to all data workers of a process.

    Args:
        size: Number of samples of the data set.
        limit: Number of bad samples with which training goes on.
        setting: The option that sets the limit, for messages.

    Attributes:
        record: File that gets a line for each bad sample; None writes none. To be set before data workers start.
    """

    def __init__(self, size: int, limit: int, setting: str) -> None:
        self.size, self.limit, self.setting = size, limit, setting
        self.record: Path | None = None
        # One byte for each sample, and one that says that no substitute was found; in shared memory.
        self._flags = torch.zeros(size + 1, dtype=torch.uint8).share_memory_()

    def __len__(self) -> int:
        return int(self._flags[:-1].sum())

    @property
    def too_many(self) -> bool:
        """Whether training has to end."""
        return len(self) > self.limit or bool(self._flags[-1])

    def give_up(self) -> None:
        """Notes that a worker found no sample that can be read."""
        self._flags[-1] = 1

    def add(self, index: int, name: str, reason: str) -> bool:
        """Notes a bad sample.

        Args:
            index: Its index in the data set.
            name: Its file, for people.
            reason: The error.

        Returns:
            Whether it is new, so that somebody should be told.
        """
        if self._flags[index]:
            return False
        try:
            with _locked(self.record) as file:
                is_new = not self._flags[index]
                self._flags[index] = 1
                if is_new and file is not None:
                    _write_once(file, dict(sample=name, error=reason, index=index))
        except OSError as error:
            is_new = not self._flags[index]
            self._flags[index] = 1
            print_log(f'{self.record} cannot be written ({error}); training goes on', 'current', logging.WARNING)
        return is_new

    def explain(self) -> str:
        """The message of the error that ends a run."""
        named = f'{self.record} and the log name them' if self.record else 'the log names them'
        return (
            f'{len(self)} of the {self.size} training samples cannot be used'
            f'{f", and no substitute was found in {MAX_ATTEMPTS} attempts" if self._flags[-1] else ""}; '
            f'allowed are {self.limit} ({self.setting}). {named}: repair or remove them, or raise the limit, and go on '
            'with --resume'
        )


@DATASETS.register_module()
class SubstituteBadSamples(Dataset):
    """A training set whose bad samples are replaced by others.

    The substitute and its augmentation are drawn from the seed that ``SeededInfiniteSampler`` gave the bad sample
    (without that sampler, from the index): they depend neither on workers nor on what was bad before. A sample is tried
    each time that it is drawn, so that a file which is repaired is used again.

    Args:
        dataset: The data set or its config; one that has ``bad_samples`` (``ImageFolderDataset``) replaces its own, and
            its limit holds.
        max_count: Number of bad samples with which training goes on, for each process.
        max_share: The same as share of the data set, in [0, 1]; the smaller limit counts, but one bad sample is
            allowed unless ``max_count`` or ``max_share`` is 0.

    Raises:
        ValueError: If a limit is out of range.
    """

    def __init__(
        self, dataset: Dataset | Mapping[str, Any], max_count: int = MAX_COUNT, max_share: float = MAX_SHARE
    ) -> None:
        if max_count < 0 or not 0 <= max_share <= 1:
            raise LaunchError(
                f'bad_samples has max_count={max_count} and max_share={max_share}, wanted 0 or more, and 0 to 1'
            )
        inner: Any = DATASETS.build(dataset) if isinstance(dataset, Mapping) else dataset
        self.dataset = inner
        self.full_init()
        size = len(inner)
        limit = min(max_count, max(int(max_share * size), int(max_share > 0)))
        found = getattr(inner, 'bad_samples', None)
        self.bad_samples: BadSamples = (
            BadSamples(size, limit, f'bad_samples.max_count={max_count}, bad_samples.max_share={max_share}')
            if found is None
            else found
        )

    @property
    def metainfo(self) -> dict[str, Any]:
        """What the data set says about itself, as its classes."""
        return getattr(self.dataset, 'metainfo', {})

    def full_init(self) -> None:
        """Loads annotations that the data set has not loaded yet."""
        if hasattr(self.dataset, 'full_init'):
            self.dataset.full_init()

    def get_data_info(self, idx: int) -> dict[str, Any]:
        """A sample's annotation, before the pipeline."""
        return self.dataset.get_data_info(idx)

    def get_cat_ids(self, idx: int) -> list[int]:
        """Labels of a sample's objects."""
        return self.dataset.get_cat_ids(idx)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        """Loads a sample, or its substitute.

        Raises:
            NoSampleError: If :data:`MAX_ATTEMPTS` substitutes in a row fail too.
        """
        for attempt in range(MAX_ATTEMPTS + 1):
            candidate = substitute_index(index, attempt, len(self)) if attempt else index
            try:
                return self.dataset[candidate]
            except _NOT_OF_A_SAMPLE:
                raise
            except Exception as error:  # decoders and transforms raise what they like
                self._report(int(candidate), error)
        self.bad_samples.give_up()
        raise NoSampleError(self.bad_samples.explain())

    def _report(self, index: int, error: Exception) -> None:
        name, reason = _name(self.dataset, index), describe(error)
        if self.bad_samples.add(index, name, reason):
            # As an error, because loggers of all processes show errors.
            print_log(
                f'training sample {index}, {name}, cannot be used ({reason}); another replaces it '
                f'({len(self.bad_samples)} so far, at most {self.bad_samples.limit} are replaced)',
                logger='current',
                level=logging.ERROR,
            )


@HOOKS.register_module()
class LimitBadSamples(Hook):
    """Ends training after the iteration in which too many bad samples were found, on all processes, with a checkpoint.

    The limit holds for each process: in a few passes over the data every process meets every bad sample.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        """Says where bad samples are recorded, before data workers start."""
        found = _bad_samples(runner)
        if found is not None:
            found.record = Path(runner.work_dir) / RECORD_FILE.format(get_rank())

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Asks for the end of the run if there are too many."""
        found = _bad_samples(runner)
        if found is not None and found.too_many:
            request_end(BadSamplesError(found.explain()))

    def after_train(self, runner: Runner) -> None:
        """Reminds of bad samples."""
        found = _bad_samples(runner)
        if found:
            print_log(
                f'{len(found)} training samples could not be used and were replaced; {found.record} names them',
                logger='current',
                level=logging.WARNING,
            )


def substituting(dataloader: Any, settings: Mapping[str, Any] | None) -> Any:
    """A training data loader's config whose data set is wrapped in :class:`SubstituteBadSamples`.

    Args:
        dataloader: The config; it is not changed. Anything else is returned as it is.
        settings: ``bad_samples`` of the config: ``max_count`` and ``max_share``; None for the defaults.

    Raises:
        LaunchError: If ``settings`` has other keys.
    """
    if not isinstance(dataloader, Mapping) or not isinstance(dataloader.get('dataset'), Mapping):
        return dataloader
    unknown = set(settings or {}) - {'max_count', 'max_share'}
    if unknown:
        raise LaunchError(f'bad_samples has {", ".join(sorted(unknown))}, wanted max_count and max_share')
    dataset = dict(type=SubstituteBadSamples, dataset=dataloader['dataset'], **(settings or {}))
    return dict(dataloader, dataset=dataset)


def describe(error: Exception) -> str:
    """Kind and message of an error, in one line of at most 300 letters."""
    return f'{type(error).__name__}: {" ".join(str(error).split())}'[:300] if str(error) else type(error).__name__


def _bad_samples(runner: Runner) -> BadSamples | None:
    return getattr(runner.train_dataloader.dataset, 'bad_samples', None)


def _name(dataset: Any, index: int) -> str:
    """The files of a sample, as far as the data set tells."""
    try:
        info = dataset.get_data_info(index)
        return ', '.join(str(info[key]) for key in ('img_path', 'seg_map_path') if info.get(key)) or f'number {index}'
    except (AttributeError, LookupError, TypeError):
        return f'number {index}'


@contextmanager
def _locked(path: Path | None) -> Iterator[TextIO | None]:
    """Opens a file for reading and appending, one process after the other."""
    if path is None:
        yield None
        return
    with path.open('a+', encoding='utf-8') as file:
        with suppress(OSError):  # some network file systems have no locks; a line may come twice there
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _write_once(file: TextIO, line: Mapping[str, Any]) -> None:
    """Appends a line unless an earlier start of the run has written one about this sample."""
    file.seek(0)
    if not any(f'"sample": {json.dumps(line["sample"])},' in known for known in file):
        file.write(json.dumps(line) + '\n')
