"""The error that everything about checkpoints raises, and what is refused everywhere: remote files, parts of files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

FROZEN_BASE = 'frozen_base'  # key of checkpoints that leave out what a frozen backbone's file gives
MERGE_COMMAND = 'python tools/merge_checkpoint.py CONFIG CHECKPOINT DST'
SAFE_WAYS = (
    'the path of a local file (.pth, .pt, .safetensors, detectron2 .pkl), and for tools/test.py, predict.py, '
    'generate.py, edit.py and model.init_cfg also the work dir of a run; download anything else first'
)
_SCHEME = re.compile(r'\s*[A-Za-z][\w+.-]+:(/|[\w+.-]+:/)')  # also open-mmlab:s3://, and http:/ as Path writes it


class CheckpointError(ValueError):
    """A checkpoint is missing, unreadable, damaged, unsafe to read, or does not fit."""


def refuse_remote(source: object) -> None:
    """Refuses everything with a scheme: ``https://``, ``openmmlab://``, ``s3://``, ``torchvision://``, known or not.

    Args:
        source: What a user, a config or a library names as a checkpoint.

    Raises:
        CheckpointError: If it has a scheme; lists what is safe.
    """
    if _SCHEME.match(str(source)):
        raise CheckpointError(
            f'checkpoint {source} is refused: what lies behind a web address or another scheme would be unpickled '
            f'without restriction, which executes whatever the file says. Safe ways: {SAFE_WAYS}'
        )


def refuse_partial(checkpoint: Mapping[str, Any], path: str) -> None:
    """Refuses a checkpoint without its frozen base where a whole one is needed.

    Raises:
        CheckpointError: With the command that makes it whole.
    """
    note = checkpoint.get(FROZEN_BASE)
    if note is not None:
        raise CheckpointError(
            f'{path} holds only what was trained, without its frozen base {note["source"]}: make it whole first: '
            f'{MERGE_COMMAND}'
        )
