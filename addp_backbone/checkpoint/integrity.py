"""Checkpoints that prove themselves: a digest in the file, its verification, and limits on what a file declares.

A torch file is a zip archive; the digest is the archive's comment, which torch and every zip tool pass over. A
safetensors file has it in its metadata. Both are part of the file, so that it cannot be there without its digest. Files
of other programs have none: of a zip archive the checksums (CRC-32) of its entries are compared instead. This module
imports nothing of the project, so that everything that trusts a file can ask it first.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

DIGEST_KEY = 'addp-sha256'
ZIP_START = b'PK\x03\x04'  # by which torch tells an archive from its older format
LEGACY_START = b'\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.'  # the magic number of torch files before 1.6, pickled
MAX_COMPRESSION = 10  # weights hardly compress; torch itself never does
MAX_HEADER_BYTES = 100_000_000  # of a safetensors file, the library's own limit
CHECKPOINT_ENDINGS = ('.pth', '.pt', '.ckpt', '.pkl', '.safetensors')
SIGNED, CHECKSUMS, UNCHECKED, DAMAGED = 'verified', 'checksums match', 'cannot be checked', 'damaged'

_PREFIX = f'{DIGEST_KEY}:'.encode()
_NO_DIGEST = b'0' * 64  # stands for the digest in a safetensors file while it is computed
_CHUNK_BYTES = 1 << 20


class OversizeError(ValueError):
    """A file declares more than it can hold, or than fits into memory."""


@dataclass(frozen=True)
class Verdict:
    """Whether a checkpoint file is what was written.

    Attributes:
        state: :data:`SIGNED` (its digest matches), :data:`CHECKSUMS` (it has no digest, the archive's checksums match),
            :data:`UNCHECKED` (its format has neither) or :data:`DAMAGED`.
        reason: What is wrong with it, or why it cannot be checked; empty otherwise.
    """

    state: str
    reason: str = ''

    def __bool__(self) -> bool:
        """Whether nothing speaks against the file."""
        return self.state != DAMAGED

    def __str__(self) -> str:
        return f'{self.state}: {self.reason}' if self.reason else self.state


def sign_archive(content: bytes) -> list[bytes | memoryview]:
    """Adds the digest to what ``torch.save`` wrote.

    Args:
        content: The file; anything but a zip archive without a comment is passed on as it is.

    Returns:
        The signed file in pieces, without a copy of ``content``.
    """
    end = b'PK\x05\x06'
    if not content.startswith(ZIP_START) or content[-22:-18] != end or content[-2:] != b'\0\0':
        return [content]
    comment = _PREFIX + hashlib.sha256(content).hexdigest().encode()
    return [memoryview(content)[:-2], struct.pack('<H', len(comment)) + comment]


def sign_safetensors(content: bytes) -> list[bytes | memoryview]:
    """Fills in the digest of a safetensors file whose metadata have :data:`DIGEST_KEY` with 64 zeros.

    Returns:
        The signed file in pieces, as :func:`sign_archive`.
    """
    digest = hashlib.sha256(content).hexdigest().encode()
    header_end = 8 + struct.unpack('<Q', content[:8])[0]
    return [content[:header_end].replace(_NO_DIGEST, digest, 1), memoryview(content)[header_end:]]


def unsigned_metadata() -> dict[str, str]:
    """The metadata to save a safetensors file with, for :func:`sign_safetensors`."""
    return {DIGEST_KEY: _NO_DIGEST.decode()}


def verify(path: Path) -> Verdict:
    """Compares a checkpoint file with its digest, or with the archive's checksums where it has none. Reads all of it.

    Args:
        path: An existing file.

    Raises:
        OversizeError: If the file declares more than it can hold.
        OSError: If it cannot be read.
    """
    with path.open('rb') as file:
        start = file.read(max(len(LEGACY_START), 8))
    if not start:
        return Verdict(DAMAGED, 'it is empty')
    if path.suffix == '.safetensors':
        return _verify_safetensors(path)
    if path.suffix == '.pkl':
        return Verdict(UNCHECKED, 'pickles have no checksum')
    if start.startswith(ZIP_START):
        return _verify_archive(path)
    if start.startswith(LEGACY_START):
        return Verdict(UNCHECKED, 'torch files from before 1.6 have no checksum')
    if start[:1] == b'\x80':
        return Verdict(UNCHECKED, 'pickles have no checksum')
    return Verdict(DAMAGED, 'it is no torch file, it begins with other bytes')


def examine(path: Path) -> Verdict:
    """As :func:`verify`, but never raises: what cannot be read is damaged."""
    try:
        return verify(path)
    except (OversizeError, OSError) as error:
        return Verdict(DAMAGED, str(error))


def report(path: Path) -> tuple[list[str], int]:
    """What ``tools/doctor.py checkpoint`` prints.

    Args:
        path: A checkpoint file, or a folder, whose files with one of :data:`CHECKPOINT_ENDINGS` are looked at.

    Returns:
        A line for each file, and how many of them are damaged; no file at all counts as one.
    """
    files = [path]
    if path.is_dir():
        files = sorted((file for file in path.iterdir() if file.suffix in CHECKPOINT_ENDINGS), key=_by_number)
    if not files or not files[0].exists():
        return [f'{path}: no checkpoint there'], 1
    verdicts = {file: examine(file) for file in files}
    lines = [f'{file.name}  {format_bytes(file.stat().st_size)}  {verdict}' for file, verdict in verdicts.items()]
    whole = [file for file, verdict in verdicts.items() if verdict and _by_number(file)[0] >= 0]
    if path.is_dir() and whole:
        lines.append(f'the newest whole checkpoint of the run is {whole[-1].name}')
    return lines, sum(not verdict for verdict in verdicts.values())


def _by_number(path: Path) -> tuple[int, str]:
    found = re.fullmatch(r'(?:iter|epoch)_([0-9]+)\.pth', path.name)
    return int(found[1]) if found else -1, path.name


def check_archive(archive: zipfile.ZipFile, file_bytes: int) -> None:
    """Refuses archives that would unpack to more than they can honestly hold.

    Args:
        archive: The opened archive.
        file_bytes: Size of the file.

    Raises:
        OversizeError: If entries overlap, are compressed beyond what weights are, or exceed the free memory.
    """
    entries = archive.infolist()
    stored, declared = sum(entry.compress_size for entry in entries), sum(entry.file_size for entry in entries)
    if stored > file_bytes or declared > MAX_COMPRESSION * file_bytes:
        raise OversizeError(
            f'its entries declare {format_bytes(declared)}, but the file has {format_bytes(file_bytes)}: it is made to '
            'exhaust memory'
        )
    check_memory(declared)


def check_memory(wanted_bytes: int) -> None:
    """Refuses what does not fit into memory.

    Raises:
        OversizeError: With both figures.
    """
    free = available_memory()
    if free is not None and wanted_bytes > free:
        raise OversizeError(
            f'reading it takes {format_bytes(wanted_bytes)} of memory, and {format_bytes(free)} are free on this '
            'machine'
        )


def available_memory() -> int | None:
    """Bytes that this process may still take, by the kernel and by the control group; None where they do not tell."""
    figures = []
    try:
        lines = Path('/proc/meminfo').read_text(encoding='ascii').splitlines()
        figures += [int(line.split()[1]) * 1024 for line in lines if line.startswith('MemAvailable:')]
        group = Path('/sys/fs/cgroup')
        statistics = dict(line.split() for line in (group / 'memory.stat').read_text(encoding='ascii').splitlines())
        cache = int(statistics.get('inactive_file', 0)) + int(statistics.get('active_file', 0))
        used = int((group / 'memory.current').read_text(encoding='ascii')) - cache
        figures.append(int((group / 'memory.max').read_text(encoding='ascii')) - used)
    except (OSError, ValueError):  # another system, another control group version, or no limit ("max")
        pass
    return min(figures, default=None)


def format_bytes(count: int) -> str:
    """A number of bytes for people."""
    for unit, size in (('TB', 10**12), ('GB', 10**9), ('MB', 10**6), ('kB', 10**3)):
        if count >= size:
            return f'{count / size:.1f} {unit}'
    return f'{count} bytes'


def _verify_archive(path: Path) -> Verdict:
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            check_archive(archive, size)
            comment = archive.comment
            if comment.startswith(_PREFIX):
                return _compare(comment.removeprefix(_PREFIX), _digest_before(path, size - 2 - len(comment)))
            if not any(entry.CRC for entry in archive.infolist()):
                return Verdict(UNCHECKED, 'it was written without checksums (set_crc32_options)')
            bad = archive.testzip()
    except OversizeError:
        raise
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, struct.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        return Verdict(DAMAGED, f'the archive is truncated or overwritten ({error})')
    return Verdict(DAMAGED, f'the checksum of {bad} does not match') if bad else Verdict(CHECKSUMS)


def _digest_before(path: Path, end: int) -> str:
    """The digest of what ``torch.save`` wrote: the file up to its comment's length, which was 0."""
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while end > 0 and (chunk := file.read(min(end, _CHUNK_BYTES))):
            digest.update(chunk)
            end -= len(chunk)
    digest.update(b'\0\0')
    return digest.hexdigest()


def _verify_safetensors(path: Path) -> Verdict:
    size = path.stat().st_size
    digest = hashlib.sha256()
    with path.open('rb') as file:
        length = file.read(8)
        header_bytes = struct.unpack('<Q', length)[0] if len(length) == 8 else size
        if header_bytes > size - 8:
            return Verdict(
                DAMAGED, f'its header would have {format_bytes(header_bytes)}, the file has {format_bytes(size)}'
            )
        if header_bytes > MAX_HEADER_BYTES:
            raise OversizeError(f'its header has {format_bytes(header_bytes)}, at most 100 MB are allowed')
        check_memory(size)
        header = file.read(header_bytes)
        try:
            metadata = json.loads(header).get('__metadata__') or {}
        except (ValueError, AttributeError, RecursionError) as error:
            return Verdict(DAMAGED, f'its header is no JSON object ({type(error).__name__})')
        written = str(metadata.get(DIGEST_KEY, '')) if isinstance(metadata, dict) else ''
        if not written:
            return Verdict(UNCHECKED, 'it was written without a digest, and safetensors files have no checksum')
        digest.update(length + header.replace(written.encode(), _NO_DIGEST, 1))
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return _compare(written.encode(), digest.hexdigest())


def _compare(written: bytes, found: str) -> Verdict:
    if written == found.encode():
        return Verdict(SIGNED)
    return Verdict(DAMAGED, f'its SHA-256 is {found[:16]}..., written was {written[:16].decode("ascii", "replace")}...')
