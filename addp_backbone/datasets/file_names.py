"""Names of image files in annotation files: which are refused, and which file is meant by one that does not exist."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

MAX_NAME_BYTES, MAX_PATH_BYTES = 255, 2000  # of Linux: of a file or folder, and about half of a path


def file_name_problem(name: Any) -> str | None:
    """Why a name is refused, as the end of a sentence; None if it is a path below the image folder."""
    if not isinstance(name, str) or not name:
        return 'is no text'
    if '\0' in name:
        return 'holds a NUL character'
    if re.match(r'[A-Za-z][A-Za-z0-9+.-]+://', name):
        return 'is a web address: download the images and name the files'
    path = PurePosixPath(name.replace('\\', '/'))
    if '..' in path.parts or path.is_absolute() or re.match(r'[A-Za-z]:', name):
        return 'leaves the image folder'
    try:
        sizes = [len(os.fsencode(part)) for part in path.parts]
    except UnicodeEncodeError:
        return 'holds half a character (a lone surrogate)'
    if sum(sizes) > MAX_PATH_BYTES or max(sizes, default=0) > MAX_NAME_BYTES:
        return f'is longer than file systems take ({MAX_NAME_BYTES} bytes a name)'
    return None


class FolderIndex:
    """Finds the file that a name means, although it is written in another way.

    Args:
        folder: The folder of images; it is listed once, when a name does not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._by_form: dict[str, set[str]] | None = None

    def find(self, name: str) -> str | None:
        """The name of the file that is meant, relative to the folder.

        Backslashes, percent codes, decomposed umlauts, other case and leading folders are seen through, as long as one
        file alone fits.

        Returns:
            The name itself if it exists; None if no file, or several, can be meant.
        """
        if file_name_problem(name) is None and (self.folder / name).is_file():
            return name
        if '\0' in name:
            return None
        forms = list(dict.fromkeys((name, name.replace('\\', '/'), unquote(name), unquote(name).replace('\\', '/'))))
        for form in forms:
            candidates = self._index().get(_key(form), set())
            if len(candidates) == 1:
                return next(iter(candidates))
        for form in forms:  # an exporter's own folders before the name
            parts = PurePosixPath(form).parts
            for start in range(1, len(parts)):
                candidates = self._index().get(_key('/'.join(parts[start:])), set())
                if len(candidates) == 1:
                    return next(iter(candidates))
        return None

    def _index(self) -> dict[str, set[str]]:
        if self._by_form is None:
            self._by_form = {}
            for path in self.folder.rglob('*') if self.folder.is_dir() else []:
                name = path.relative_to(self.folder).as_posix()
                self._by_form.setdefault(_key(name), set()).add(name)
        return self._by_form


def _key(name: str) -> str:
    return unicodedata.normalize('NFC', name).casefold()
