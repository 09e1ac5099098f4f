"""Runs probes: features once, then a row for each backbone, blocks, protocol, label fraction and seed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from experiments.probes.attention import attention_maps
from experiments.probes.backbones import Source, backbone_digest, build
from experiments.probes.bench import Bench, Job
from experiments.probes.cost import FeatureCost, known_cost, measure_cost, write_costs
from experiments.probes.data import ProbeData, common_size
from experiments.probes.estimate import feature_seconds, row_seconds
from experiments.probes.features import Extraction, FeatureCache, FeatureKey, Features, missing_bytes
from experiments.probes.patches import choose_images
from experiments.probes.pictures import KINDS, Gallery, Pictures, shown_blocks
from experiments.probes.progress import Clock, Progress, minutes
from experiments.probes.results import Row, RowStore, write_results
from experiments.probes.settings import LINEAR, CacheSettings, ProbeSettings
from experiments.probes.targets import TrainingTargets

_POLL_SECONDS = 1.0  # between looks at rows that another run is making


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
        self._backbone_digests: dict[str, str] = {}
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
        clock = Clock(todo, self.report)
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
                for job, row in self._make_rows(source, pending, train, val):
                    rows[job.path] = row
                    self._write(jobs, rows)
                    clock.finish(job, row)
        self._write(jobs, rows)
        return ProbeRun(tuple(rows[job.path] for job in jobs), self.about(), tuple(galleries))

    def planned_lines(self) -> list[str]:
        """What is planned, what of it has finished, and about how long the rest takes on one CPU core."""
        train, val = self.data.train, self.data.val
        lines, total = [], 0.0
        for source in self.sources:
            grid = source.grid(self.size)
            patches = grid[0] * grid[1]
            jobs = [job for job in self._jobs() if job.source is source]
            todo = [job for job in jobs if self.store.read(job.path, source.text) is None]
            seconds = feature_seconds(len(train) + len(val), patches, source.width, source.depth) if todo else 0.0
            for job in todo:
                images = len(choose_images(len(train), job.fraction, job.seed))
                channels = source.width * len(job.blocks)
                seconds += row_seconds(
                    job.protocol,
                    self.settings,
                    channels,
                    len(self.data.classes),
                    images * patches,
                    len(val) * patches,
                    patches,
                )
            total += seconds
            lines.append(f'{source.text}: {len(jobs)} rows, {len(todo)} to do, about {minutes(seconds)}')
        return [*lines, f'about {minutes(total)} in all on one CPU core (an estimate from the arithmetic)']

    def costs(self) -> list[FeatureCost]:
        """What the features of each backbone cost; measured once for an output folder and written there."""
        costs = []
        for source in self.sources:
            digest, extraction = self.digest(source), self._extraction(source, (source.depth,))
            cost = known_cost(self.store.out, source.text, digest, extraction)
            costs.append(cost or measure_cost(source.text, digest, extraction, self.data.val.images))
        write_costs(self.store.out, costs)
        return costs

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
            digest = self.digest(source)
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

    def digest(self, source: Source) -> str:
        """Checksum of a backbone and its weights; computed once."""
        if source.text not in self._backbone_digests:
            self._backbone_digests[source.text] = backbone_digest(source)
        return self._backbone_digests[source.text]

    def _all_blocks(self, source: Source) -> tuple[int, ...]:
        return tuple(sorted({block for group in self.blocks[source.text] for block in group}))

    def _picture_key(self, source: Source, digest: str) -> str:
        width, height = source.fitted(self.size)
        return f'{digest[:10]}_{self.digests["val"][0][:10]}_{width}x{height}_{self.settings.precision}'

    def _gallery(self, source: Source, digest: str, pictures: Pictures) -> Gallery:
        key, blocks = self._picture_key(source, digest), shown_blocks(self._all_blocks(source))
        pca, similarity = ({block: pictures.files(kind, key, block) for block in blocks} for kind in KINDS)
        if not source.has_class_token:
            return Gallery(source.text, pca, similarity)
        make_maps = partial(attention_maps, self._extraction(source, (source.depth,)))
        return Gallery(source.text, pca, similarity, pictures.draw_attention(make_maps, key, source.depth))

    def _extraction(self, source: Source, blocks: tuple[int, ...]) -> Extraction:
        return Extraction(
            lambda wanted: build(source, wanted),
            blocks,
            source.mean,
            source.std,
            source.fitted(self.size),
            self.settings.precision,
            self.settings.device,
        )

    def _features(self, source: Source, digest: str, held: ExitStack) -> tuple[Features, Features]:
        """Features of both splits, held in the cache until the stack is closed."""
        blocks = self._all_blocks(source)
        extraction = self._extraction(source, blocks)
        size = extraction.size
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
            extraction.run(folder, split, Progress(f'{split.name} images', self.report))
            for folder, split in zip(folders, splits, strict=True)
        )

    def _make_rows(
        self, source: Source, pending: Sequence[Job], train: Features, val: Features
    ) -> Iterator[tuple[Job, Row]]:
        """Rows as they are written; those that another run is making are left to it and waited for at the end."""
        if not pending:
            return
        targets = TrainingTargets(
            self.data.train,
            self.data.void,
            len(self.data.classes),
            source.grid(self.size),
            with_points=any(job.protocol == LINEAR for job in pending),
            progress=Progress('training masks', self.report),
        )
        bench = Bench(self.settings, self.data, train, val, targets)
        while pending:
            left = []
            for job in pending:
                with self.store.claim(job.path) as is_ours:
                    row = self.store.read(job.path, source.text)  # another run may have made it meanwhile
                    if row is None and is_ours:
                        row = bench.row(job)
                        self.store.write(job.path, row)
                if row is None:
                    left.append(job)
                else:
                    yield job, row
            if left:
                time.sleep(_POLL_SECONDS)
            pending = left

    def _write(self, jobs: Sequence[Job], rows: Mapping[Path, Row]) -> None:
        write_results(self.store.out, [rows[job.path] for job in jobs if job.path in rows], self.about())
