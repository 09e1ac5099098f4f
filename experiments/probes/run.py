"""Runs probes: features once, then a row for each backbone, blocks, protocol, label fraction and seed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from experiments.probes.backbones import Source, backbone_digest, build
from experiments.probes.data import ProbeData, common_size, read_labels
from experiments.probes.features import Extraction, FeatureCache, FeatureKey, Features, missing_bytes
from experiments.probes.linear import fit_linear
from experiments.probes.logistic import fit_logistic
from experiments.probes.patches import choose_images
from experiments.probes.pictures import KINDS, Gallery, Pictures, shown_blocks
from experiments.probes.results import Row, RowStore, write_results
from experiments.probes.retrieval import PatchMemory
from experiments.probes.scores import count_areas, upsampled_classes
from experiments.probes.settings import KNN, LINEAR, LOGISTIC, CacheSettings, ProbeSettings, block_label
from experiments.probes.targets import TrainingTargets

_SECONDS_BETWEEN_LINES = 10
NOT_CONVERGED = 'L-BFGS stopped before it converged'


@dataclass(frozen=True)
class Job:
    """A row that is to be made.

    Attributes:
        source: The backbone.
        digest: Of the backbone and its weights.
        blocks: Whose tokens are put together.
        protocol: Which one.
        fraction: Of the training images.
        seed: Of their choice.
        path: The row's file.
    """

    source: Source
    digest: str
    blocks: tuple[int, ...]
    protocol: str
    fraction: float
    seed: int
    path: Path

    def __str__(self) -> str:
        return (
            f'{self.source.text} block {block_label(self.blocks)} {self.protocol}, {self.fraction:.0%} of the labels, '
            f'seed {self.seed}'
        )


@dataclass(frozen=True)
class ProbeRun:
    """A finished run.

    Attributes:
        rows: All rows in the order in which they were asked for.
        about: How they were made, by word.
        galleries: Pictures of each backbone.
    """

    rows: tuple[Row, ...]
    about: Mapping[str, Any]
    galleries: tuple[Gallery, ...]


class Prober:
    """Probes of several backbones on one data set.

    Args:
        sources: The backbones.
        data: The data set, checked.
        settings: What is asked for.
        cache: Where features are kept.
        out: Folder of the results.
        report: Gets lines for people.

    Raises:
        ValueError: If two backbones have the same name, or one lacks a block that is asked for.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        data: ProbeData,
        settings: ProbeSettings,
        cache: CacheSettings,
        out: Path,
        report: Callable[[str], None] = print,
    ) -> None:
        texts = [source.text for source in sources]
        if len(set(texts)) != len(texts):
            raise ValueError(f'backbones must differ, got {" ".join(texts)}')
        self.blocks = {source.text: settings.chosen_blocks(source) for source in sources}
        self.sources, self.data, self.settings, self.report = tuple(sources), data, settings, report
        self.cache = FeatureCache(cache.folder, cache.max_bytes)
        self.size = settings.size or common_size(data)
        self.store = RowStore(out)
        self.digests = {split.name: (split.digest(), split.labels_digest()) for split in (data.train, data.val)}

    def run(self, pictures: Pictures) -> ProbeRun:
        """Makes the rows and pictures that are not there yet, and writes ``results.json`` after each row.

        Args:
            pictures: Which pictures are drawn.

        Returns:
            All rows.

        Raises:
            CheckpointError: If weights cannot be loaded; before anything is computed.
        """
        jobs = list(self._jobs())
        rows = {job.path: row for job in jobs if (row := self.store.read(job.path, job.source.text))}
        todo = [job for job in jobs if job.path not in rows]
        self.report(f'{len(jobs)} rows, {len(jobs) - len(todo)} of them finished before')
        clock = _Clock(todo, self.report)
        galleries = []
        for source in self.sources:
            pending = [job for job in todo if job.source is source]
            digest = next(job.digest for job in jobs if job.source is source)
            gallery = self._gallery(source, digest, pictures)
            galleries.append(gallery)
            if not pending and pictures.is_drawn(self._picture_key(source, digest), list(gallery.pca)):
                continue
            with ExitStack() as held:
                train, val = self._features(source, digest, held)
                pictures.draw(val, self._picture_key(source, digest), list(gallery.pca))
                bench = (
                    _Bench(self, source, train, val, any(job.protocol == LINEAR for job in pending))
                    if pending
                    else None
                )
                for job in pending:
                    assert bench is not None
                    row = bench.row(job)
                    self.store.write(job.path, row)
                    rows[job.path] = row
                    self._write(jobs, rows)
                    clock.finish(job, row)
        self._write(jobs, rows)
        return ProbeRun(tuple(rows[job.path] for job in jobs), self.about(), tuple(galleries))

    def about(self) -> dict[str, Any]:
        """How the rows are made, for people and for ``results.json``."""
        settings = self.settings
        return dict(
            classes=list(self.data.classes),
            train_images=len(self.data.train),
            val_images=len(self.data.val),
            size={source.text: list(source.fitted(self.size)) for source in self.sources},
            void=self.data.void,
            precision=settings.precision,
            tokens='LayerNorm without weights, kept in float16',
            settings={protocol: settings.of_protocol(protocol) for protocol in settings.protocols},
        )

    def _jobs(self) -> Iterator[Job]:
        for source in self.sources:
            digest = backbone_digest(source)
            for blocks in self.blocks[source.text]:
                for protocol in self.settings.protocols:
                    for fraction in self.settings.fractions:
                        for seed in self.settings.seeds:
                            inputs = dict(
                                backbone=digest,
                                blocks=blocks,
                                protocol=protocol,
                                numbers=self.settings.of_protocol(protocol),
                                fraction=fraction,
                                seed=seed,
                                size=source.fitted(self.size),
                                precision=self.settings.precision,
                                data=self.digests,
                                classes=len(self.data.classes),
                                void=self.data.void,
                            )
                            path = self.store.path(inputs)
                            yield Job(source, digest, blocks, protocol, fraction, seed, path)

    def _all_blocks(self, source: Source) -> tuple[int, ...]:
        return tuple(sorted({block for group in self.blocks[source.text] for block in group}))

    def _picture_key(self, source: Source, digest: str) -> str:
        width, height = source.fitted(self.size)
        return f'{digest[:10]}_{self.digests["val"][0][:10]}_{width}x{height}_{self.settings.precision}'

    def _gallery(self, source: Source, digest: str, pictures: Pictures) -> Gallery:
        key, blocks = self._picture_key(source, digest), shown_blocks(self._all_blocks(source))
        pca, similarity = ({block: pictures.files(kind, key, block) for block in blocks} for kind in KINDS)
        return Gallery(source.text, pca, similarity)

    def _features(self, source: Source, digest: str, held: ExitStack) -> tuple[Features, Features]:
        """Features of both splits, held in the cache until the stack is closed."""
        blocks = self._all_blocks(source)
        size = source.fitted(self.size)
        extraction = Extraction(
            lambda wanted: build(source, wanted),
            blocks,
            source.mean,
            source.std,
            size,
            self.settings.precision,
            self.settings.device,
        )
        splits = (self.data.train, self.data.val)
        keys = [FeatureKey(digest, self.digests[split.name][0], size, self.settings.precision) for split in splits]
        folders = [held.enter_context(self.cache.hold(key)) for key in keys]
        grid = source.grid(self.size)
        wanted = [
            missing_bytes(folder.path, len(split), blocks, grid, source.width)
            for folder, split in zip(folders, splits, strict=True)
        ]
        self.cache.make_room(sum(wanted))
        if any(wanted):
            self.report(f'{source.text}: features of {size[0]} x {size[1]} px, {grid[1]} x {grid[0]} patches')
        return tuple(  # type: ignore[return-value]
            extraction.run(folder, split, _Progress(f'{split.name} images', self.report))
            for folder, split in zip(folders, splits, strict=True)
        )

    def _write(self, jobs: Sequence[Job], rows: Mapping[Path, Row]) -> None:
        write_results(self.store.out, [rows[job.path] for job in jobs if job.path in rows], self.about())


class _Bench:
    """Features and targets of one backbone; makes its rows."""

    def __init__(self, prober: Prober, source: Source, train: Features, val: Features, with_points: bool) -> None:
        self.settings, self.data = prober.settings, prober.data
        self.train, self.val = train, val
        self.device = prober.settings.device
        self.num_classes = len(prober.data.classes)
        self.targets = TrainingTargets(
            prober.data.train,
            prober.data.void,
            self.num_classes,
            source.grid(prober.size),
            with_points,
            _Progress('training masks', prober.report),
        )

    def row(self, job: Job) -> Row:
        """Fits one probe and scores it."""
        started = time.monotonic()
        images = choose_images(len(self.data.train), job.fraction, job.seed)
        logits_of, note = self._fit(job, images)
        areas = np.stack([self._areas(image, job.blocks, logits_of) for image in range(len(self.data.val))])
        return Row(
            job.source.text,
            job.protocol,
            block_label(job.blocks),
            job.fraction,
            job.seed,
            len(images),
            time.monotonic() - started,
            note,
            areas,
        )

    def _fit(self, job: Job, images: NDArray[np.int64]) -> tuple[Callable[[Tensor], Tensor], str]:
        if job.protocol == LINEAR:
            labels = [self.targets.points(image) for image in images]

            def tokens_of(index: int) -> Tensor:
                return self._tokens(self.train, int(images[index]), job.blocks)

            return fit_linear(tokens_of, labels, self.num_classes, job.seed, self.settings.linear_iters), ''
        count = self.settings.memory_size if job.protocol == KNN else self.settings.num_patches
        sample = self.targets.sample(self.train, job.blocks, images.tolist(), count, job.seed)
        tokens, targets = (part.to(self.device) for part in sample)
        if job.protocol == KNN:
            return PatchMemory(tokens, targets), ''
        assert job.protocol == LOGISTIC
        linear, converged = fit_logistic(tokens, targets, self.settings.l2)
        return linear, '' if converged else NOT_CONVERGED

    def _tokens(self, features: Features, image: int, blocks: Sequence[int]) -> Tensor:
        return torch.from_numpy(features.map(image, blocks).astype(np.float32)).to(self.device)

    @torch.inference_mode()
    def _areas(self, image: int, blocks: Sequence[int], logits_of: Callable[[Tensor], Tensor]) -> NDArray[np.int64]:
        labels = read_labels(self.data.val.masks[image], self.data.void, self.num_classes)
        logits = logits_of(self._tokens(self.val, image, blocks)).permute(2, 0, 1)
        return count_areas(upsampled_classes(logits, (labels.shape[0], labels.shape[1])), labels, self.num_classes)


class _Clock:
    """Tells every finished row and how long the others take, by the mean time of each protocol so far."""

    def __init__(self, todo: Sequence[Job], report: Callable[[str], None]) -> None:
        self.left = list(todo)
        self.total, self.report = len(todo), report
        self.seconds: dict[str, list[float]] = {}

    def finish(self, job: Job, row: Row) -> None:
        self.left.remove(job)
        self.seconds.setdefault(job.protocol, []).append(row.seconds)
        every = [one for values in self.seconds.values() for one in values]
        left = sum(float(np.mean(self.seconds.get(other.protocol, every))) for other in self.left)
        done = self.total - len(self.left)
        self.report(
            f'[{done}/{self.total}] {job}: mIoU {row.miou:.1f} ({row.seconds:.0f} s; about {_minutes(left)} left'
            + (
                ' and the features of further backbones'
                if any(one.source is not job.source for one in self.left)
                else ''
            )
            + ')'
        )


class _Progress:
    """Lines with counts and remaining time, at most one in some seconds."""

    def __init__(self, what: str, report: Callable[[str], None]) -> None:
        self.what, self.report = what, report
        self.started = self.shown = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self.shown >= _SECONDS_BETWEEN_LINES:
            self.shown = now
            self.report(f'  {done}/{total} {self.what}, {_minutes((now - self.started) * (total - done) / done)} left')


def _minutes(seconds: float) -> str:
    return f'{int(seconds) // 60}:{int(seconds) % 60:02} min'
