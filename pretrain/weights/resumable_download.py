"""Fetching one large file over HTTP so that an interruption costs nothing: what has arrived stays and the rest is asked for (Range)."""

from __future__ import annotations

import http
import http.client
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from addp_backbone.files.atomic import replace_file, sha256_of

Progress = Callable[[int, int | None], None]  # bytes so far, bytes in all if the server says

ATTEMPTS = 5  # in a row that bring no new byte
TIMEOUT_S = 30.0
_CHUNK_BYTES = 1 << 20
_RETRIED_STATUS = (408, 429, 500, 502, 503, 504)


class DownloadError(RuntimeError):
    """A file could not be fetched, or is not what it should be; the message says what to do."""


def fetch(
    url: str, part: Path, progress: Progress | None = None, attempts: int = ATTEMPTS, wait_s: float = 1.0
) -> None:
    """Downloads into a partial file, going on where it ends.

    A server's file that has changed since (another ETag or modification time) is fetched anew; two files are never
    stitched together.

    Args:
        url: http or https.
        part: The partial file; complete on return. Its server's ETag lies beside it as ``NAME.etag`` until then.
        progress: Called while bytes arrive.
        attempts: Connections in a row that may fail without a new byte.
        wait_s: Pause after the first failure in a row, doubled after each.

    Raises:
        DownloadError: If the server refuses, or the connection keeps failing. What has arrived stays.
    """
    part.parent.mkdir(parents=True, exist_ok=True)
    failures = 0
    while True:
        before = _size(part)
        try:
            _transfer(url, part, progress)
        except urllib.error.HTTPError as error:
            if error.code not in _RETRIED_STATUS:
                raise DownloadError(f'{url}: the server answers {error.code} {error.reason}') from error
            reason: Exception = error
        except (OSError, http.client.HTTPException) as error:
            reason = error
        else:
            _tag_file(part).unlink(missing_ok=True)
            return
        failures = 1 if _size(part) > before else failures + 1
        if failures >= attempts:
            raise DownloadError(
                f'{url}: {reason} ({failures} attempts in a row; {_size(part)} bytes have arrived and stay)'
            ) from reason
        time.sleep(wait_s * 2 ** (failures - 1))


def check_content(path: Path, size: int | None = None, sha256: str | None = None) -> None:
    """Compares a file with what is known about it.

    Args:
        path: The file.
        size: In bytes; None if not known.
        sha256: Its first digits or all; None if not known.

    Raises:
        DownloadError: If it is another file.
    """
    if size is not None and _size(path) != size:
        raise DownloadError(f'{path.name} has {_size(path)} bytes, wanted {size}')
    if sha256 is not None:
        found = sha256_of(path)
        if not found.startswith(sha256):
            raise DownloadError(f'{path.name} has SHA-256 {found[:16]}..., wanted {sha256[:16]}')


def _transfer(url: str, part: Path, progress: Progress | None) -> None:
    """One connection.

    Raises:
        OSError: If it ended early.
    """
    have = _size(part)
    tag = _tag_file(part).read_text(encoding='utf-8') if _tag_file(part).is_file() else ''
    headers = {'User-Agent': 'addp-transfer', 'Accept-Encoding': 'identity'}
    if have and tag:  # without a tag nobody could tell whether the rest belongs to it
        headers |= {'Range': f'bytes={have}-', 'If-Range': tag}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            if error.headers.get('Content-Range') == f'bytes */{have}':
                return  # it was complete
            part.unlink()
            raise OSError('the partial file is longer than the whole; starting anew') from error
        raise
    with response:
        resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
        total = _total(response.headers, have if resumed else 0)
        if not resumed:
            have = 0
            replace_file(_tag_file(part), _validator(response.headers))
        with part.open('ab' if resumed else 'wb') as file:
            while chunk := response.read(_CHUNK_BYTES):
                file.write(chunk)
                have += len(chunk)
                if progress:
                    progress(have, total)
    if total is not None and have != total:
        raise OSError(f'the connection ended after {have} of {total} bytes')


def _total(headers: http.client.HTTPMessage, have: int) -> int | None:
    """The whole file's bytes by the headers of an answer that starts at ``have``."""
    if have:
        found = re.fullmatch(r'bytes (\d+)-\d+/(\d+|\*)', headers.get('Content-Range', ''))
        if found is None or int(found[1]) != have:
            raise OSError(f'asked for the bytes from {have}, the server sends {headers.get("Content-Range")!r}')
        return None if found[2] == '*' else int(found[2])
    length = headers.get('Content-Length')
    return int(length) if length else None


def _validator(headers: http.client.HTTPMessage) -> str:
    """What If-Range may say of this file: a strong ETag, else its date, else nothing."""
    tag = headers.get('ETag') or ''
    return tag if tag.startswith('"') else headers.get('Last-Modified') or ''


def _tag_file(part: Path) -> Path:
    return part.with_name(f'{part.name}.etag')


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
