"""Writing small files so that they are whole or not there at all; checksums of files of any size."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import time
from collections.abc import Iterable
from pathlib import Path

_CHUNK_BYTES = 1 << 20
_ABANDONED_S = 7 * 24 * 3600.0  # of another host, whose processes cannot be seen
_PART = re.compile(r'\..+\.(?P<pid>[0-9]+)\.part')


def replace_file(path: str | Path, content: bytes | str | Iterable[bytes | memoryview]) -> None:
    """Writes a file beside the one it replaces and renames it; folders are made.

    Args:
        path: The file.
        content: All of it, or all of it in pieces, which may be made as they are written; text is encoded as UTF-8.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.{_host()}.{os.getpid()}.part')
    try:
        if isinstance(content, str):
            content = content.encode('utf-8')
        with temporary.open('wb') as file:
            file.writelines([content] if isinstance(content, bytes) else content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_abandoned_parts(folder: str | Path) -> list[str]:
    """Removes what killed processes left half written by :func:`replace_file`.

    A file of a process of this host goes when that process is gone. Of another host (a shared file system) nobody here
    can tell; its files go after a week.

    Args:
        folder: Looked through without its sub-folders.

    Returns:
        Names of the removed files.
    """
    removed = []
    for part in sorted(Path(folder).glob('.*.part')):
        found = _PART.fullmatch(part.name)
        if found is None:
            continue
        here = part.name.endswith(f'.{_host()}.{found["pid"]}.part')
        try:
            if _is_running(int(found['pid'])) if here else time.time() - part.stat().st_mtime < _ABANDONED_S:
                continue
            part.unlink()
        except OSError:  # removed by another process meanwhile, or not ours to remove
            continue
        removed.append(part.name)
    return removed


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file, as hexadecimal digits; reads it in pieces."""
    digest = hashlib.sha256()
    with Path(path).open('rb') as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _host() -> str:
    return re.sub(r'[^\w-]+', '-', socket.gethostname())


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # of another user, or no process id at all
        return True
    return True
