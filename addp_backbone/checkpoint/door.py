"""The one door through which mmengine, mmdet and mmseg read checkpoints: safely, from local files alone.

mmengine falls back to unrestricted unpickling when safe loading fails, and knows schemes (``openmmlab://``, ``s3://``
...) whose files it unpickles without restriction; both execute whatever the file says. :func:`close_unsafe_ways` is
called when ``addp_backbone`` is imported, so that it holds in our tools and in the stock tools of mmdet and mmseg that
import the project, for everything that goes through mmengine's ``CheckpointLoader``: ``load_from``, ``resume``,
``init_cfg``, ``load_checkpoint``. It does not reach code that calls ``torch.load`` or ``pickle`` itself.
"""

from __future__ import annotations

from typing import Any

from mmengine.runner import CheckpointLoader

from addp_backbone.checkpoint.frozen_base import complete_or_refuse
from addp_backbone.checkpoint.matching import unwrap_state_dict
from addp_backbone.checkpoint.storage import read_checkpoint


def close_unsafe_ways() -> None:
    """Replaces every loader of mmengine's ``CheckpointLoader`` by ours; may be called any number of times."""
    for scheme in list(CheckpointLoader._schemes):
        CheckpointLoader.register_scheme(scheme, load_from_local, force=True)


def load_from_local(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Reads a local checkpoint onto the CPU; loading copies each tensor to where it belongs.

    Args:
        filename: Path of a file.
        map_location: Not used; mmengine passes it.

    Returns:
        The checkpoint, with its state dict under ``state_dict`` also if the file has it under another name. ``config``
        is left out of ``meta``: mmengine executes it as Python when it resumes.

    Raises:
        CheckpointError: If ``filename`` is no local path (the message lists the safe ways), the file cannot be read
            safely, or it lacks its frozen base and no one completes it.
    """
    checkpoint = read_checkpoint(filename)
    if isinstance(checkpoint.get('meta'), dict):
        checkpoint['meta'].pop('config', None)
    if 'state_dict' not in checkpoint:
        tensors = unwrap_state_dict(checkpoint)
        if tensors is not checkpoint:
            checkpoint['state_dict'] = tensors
    complete_or_refuse(checkpoint, filename)
    return checkpoint
