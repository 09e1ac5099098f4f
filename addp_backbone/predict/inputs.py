"""What a prediction is asked for, as frames: image files, URLs, frames of videos and streams."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from addp_backbone.files.images import DECODING_ERRORS, reading_error
from addp_backbone.predict.reading import UnreadableImageError, read_source
from addp_backbone.predict.sources import find_sources
from addp_backbone.predict.videos import VideoFrame, count_frames, is_stream, read_frames, without_password


@dataclass(frozen=True)
class Frame:
    """One image to predict for.

    Attributes:
        source: The image file, the URL, or the video.
        name: Name of its results, without ending; unique.
        read: Returns (H, W, 3) uint8 BGR; raises :class:`UnreadableImageError`.
        number: Of a video's frame, counted from 0; None for other images.
        time_s: When a video shows it.
    """

    source: str
    name: str
    read: Callable[[], NDArray[np.uint8]]
    number: int | None = None
    time_s: float | None = None

    @property
    def file(self) -> Path | None:
        """The image file; None for a URL and for a video's frame."""
        return Path(self.source) if self.number is None and Path(self.source).is_file() else None

    def fields(self) -> dict[str, Any]:
        """What identifies it in a record: ``file_name``, of a video also ``frame`` and ``time_s``."""
        place = {} if self.number is None else {'frame': self.number, 'time_s': self.time_s}
        return {'file_name': self.source, **place}


def record_key(record: Mapping[str, Any]) -> str:
    """What tells the record of an image from all others: its source, and the number of a video's frame."""
    return f'{record["file_name"]}#{record["frame"]}' if 'frame' in record else str(record['file_name'])


@dataclass(frozen=True)
class Inputs:
    """All that was found for the sources of a prediction.

    Attributes:
        names: Source -> name of its results; of a video their folder.
        videos: Those of them that are videos or streams.
        every: Every which frame of a video is taken.
        max_frames: Most frames of each video; None for all.
    """

    names: Mapping[str, str]
    videos: Collection[str]
    every: int = 1
    max_frames: int | None = None

    def count(self, done: Collection[str] = ()) -> int:
        """How many frames :meth:`frames` gives; of videos as many as the files declare, of streams none."""
        images = sum(source not in self.videos and source not in done for source in self.names)
        return images + sum(map(self._declared, self.videos))

    def frames(self, done: Collection[str] = ()) -> Iterator[Frame]:
        """The frames, one after the other; a video that cannot be read gives one whose ``read`` raises.

        Args:
            done: Keys (:func:`record_key`) of images that are left out.
        """
        for source, name in self.names.items():
            if source in self.videos:
                yield from self._video(source, name, done)
            elif source not in done:
                yield Frame(source, name, partial(read_source, source, allow_urls=True))

    def _declared(self, video: str) -> int:
        count = -(-count_frames(video) // self.every)
        return count if self.max_frames is None else min(count, self.max_frames)

    def _video(self, source: str, name: str, done: Collection[str]) -> Iterator[Frame]:
        numbers = (key.removeprefix(f'{source}#') for key in done if key.startswith(f'{source}#'))
        skipped = {int(number) for number in numbers if number.isdecimal()}
        frames = read_frames(source, self.every, self.max_frames, skipped)
        shown = without_password(source)
        while True:
            try:
                found: VideoFrame | None = next(frames, None)
            except DECODING_ERRORS as error:
                yield Frame(shown, name, partial(_fail, f'{shown}: {reading_error(error)}'))
                return
            if found is None:
                return
            number, time_s, pixels = found
            yield Frame(shown, f'{name}/{number:06d}', partial(_given, pixels), number, round(time_s, 6))
            del found, pixels  # or two frames would be in memory


def find_inputs(
    sources: Sequence[str | Path],
    out: str | Path | None = None,
    done: Mapping[str, str] | None = None,
    *,
    allow_urls: bool = False,
    every: int = 1,
    max_frames: int | None = None,
) -> Inputs:
    """Finds what a prediction is asked for; nothing is fetched or decoded.

    Args:
        sources: Image files, videos, folders (of images), glob patterns, URLs, ``camera:N``, streams.
        out: Folder that the results are written to.
        done: Key -> name of images that have results already.
        allow_urls: Whether URLs and streams of the network may be opened.
        every: Every which frame of a video is taken.
        max_frames: Most frames of each video; None for all.

    Raises:
        ValueError: If a source has no image, is a URL that is not allowed, or a number is less than 1.
    """
    for option, value in (('every', every), ('max_frames', max_frames)):
        if value is not None and value < 1:
            raise ValueError(f'{option} is {value}, wanted 1 or more')
    names, videos = find_sources(sources, out, done or {}, allow_urls)
    streams = [source for source in videos if is_stream(source)]
    if streams and done:
        raise ValueError(f'{without_password(streams[0])}: a stream cannot be gone on with; leave --resume out')
    return Inputs(names, videos, every, max_frames)


def _given(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return pixels


def _fail(message: str) -> NDArray[np.uint8]:
    raise UnreadableImageError(message)
