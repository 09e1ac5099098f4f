"""Frames of video files, cameras and streams, read by OpenCV: one frame in memory at a time."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from mmengine.logging import print_log
from numpy.typing import NDArray

from addp_backbone.files.image_limits import check_image_size

VIDEO_ENDINGS = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.webm')
STREAM_TIMEOUT_MS = 20_000
_CAMERA = re.compile(r'camera:([0-9]+)')
_STREAM = re.compile(r'(rtsp|rtsps|rtmp)://', re.IGNORECASE)
_PLAYLISTS = (b'#EXTM3U', b'ffconcat')  # lists of other files or addresses, which FFmpeg would open
_MISSING_SHARE = 0.02  # of the frames that a container declares; some declare an estimate


class VideoError(OSError):
    """A video cannot be opened, or has no frame."""


class VideoFrame(NamedTuple):
    """A frame of a video.

    Attributes:
        number: Counted from 0 in the file, whether frames are left out or not.
        time_s: Its presentation time in the file, or since the stream was opened; in seconds.
        pixels: (H, W, 3) uint8 BGR, turned as a player shows it.
    """

    number: int
    time_s: float
    pixels: NDArray[np.uint8]


def is_video_name(name: str) -> bool:
    """Whether a file name ends as those of videos do (:data:`VIDEO_ENDINGS`), in upper or lower case."""
    return name.lower().endswith(VIDEO_ENDINGS)


def is_stream(source: str) -> bool:
    """Whether a source is a camera (``camera:0``) or a stream of the network (``rtsp://``, ``rtmp://``)."""
    return _CAMERA.fullmatch(source) is not None or is_network_stream(source)


def is_network_stream(source: str) -> bool:
    """Whether a source is a stream of the network."""
    return _STREAM.match(source) is not None


def without_password(source: str) -> str:
    """A stream's URL without user name and password, for results and messages; other sources as they are."""
    scheme, found, rest = source.partition('://')
    server, slash, path = rest.partition('/')
    return f'{scheme}{found}{server.rpartition("@")[2]}{slash}{path}' if is_network_stream(source) else source


def count_frames(source: str) -> int:
    """How many frames a file declares; 0 of streams, and where it cannot be told."""
    if is_stream(source):
        return 0
    try:
        capture = _open(source)
    except OSError:  # the frames are asked for later, and the error is reported then
        return 0
    try:
        return max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
    finally:
        capture.release()


def read_frames(
    source: str, every: int = 1, max_frames: int | None = None, skipped: Collection[int] = ()
) -> Iterator[VideoFrame]:
    """Reads the frames 0, ``every``, 2 * ``every`` ... of a video; those between are passed over without conversion.

    Args:
        source: A file, ``camera:N``, or a stream's URL.
        every: Distance of the frames, 1 or more.
        max_frames: End after this many frames; None reads to the end (of a stream, until it breaks off).
        skipped: Numbers of frames to leave out, which count for ``max_frames``.

    Yields:
        Frames in the order of the file.

    Raises:
        VideoError: If the source cannot be opened or has no frame.
        ImageSizeError: If its frames are beyond the limits on sizes.
    """
    capture = _open(source)
    try:
        check_image_size(int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)))
        number, taken = 0, 0
        while (max_frames is None or taken < max_frames) and capture.grab():
            if number % every == 0:
                taken += 1
                if number not in skipped:
                    decoded, pixels = capture.retrieve()
                    if not decoded:
                        raise VideoError(f'frame {number} cannot be decoded')
                    yield VideoFrame(number, capture.get(cv2.CAP_PROP_POS_MSEC) / 1000, pixels.astype(np.uint8))
                    del pixels
            number += 1
        if number == 0:
            raise VideoError('has no frame that OpenCV can decode')
        if max_frames is None or taken < max_frames:
            _warn_if_cut(source, number, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
    finally:
        capture.release()


def _open(source: str) -> cv2.VideoCapture:
    camera = _CAMERA.fullmatch(source)
    if camera is not None:
        capture = cv2.VideoCapture(int(camera[1]), cv2.CAP_ANY)
    elif is_network_stream(source):
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, STREAM_TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, STREAM_TIMEOUT_MS]
        capture = cv2.VideoCapture(source, cv2.CAP_FFMPEG, limits)
    else:
        with Path(source).open('rb') as file:  # says what is wrong, which OpenCV does not
            if file.read(16).startswith(_PLAYLISTS):
                raise VideoError('is a list of other videos: give those')
        capture = cv2.VideoCapture(source, cv2.CAP_FFMPEG)
    if not capture.isOpened():
        raise VideoError('cannot be opened as a video' if camera is None else 'no such camera')
    return capture


def _warn_if_cut(source: str, found: int, declared: int) -> None:
    """Says where a file ended before the number of frames that it declares."""
    if found < declared * (1 - _MISSING_SHARE) - 1:
        print_log(
            f'{source}: ended after {found} of the {declared} frames that it declares; is the file cut off?',
            logger='current',
            level=logging.WARNING,
        )
