"""One BatchNorm for all processes: evaluation uses what the checkpoint will hold."""

from __future__ import annotations

from mmengine.dist import broadcast
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module()
class ShareBuffersHook(Hook):
    """Gives every process the first one's buffers (running mean and variance) before validation.

    Checkpoints hold the first process' buffers. mmengine's ``SyncBuffersHook`` averages them after a checkpoint is
    written, so that a test of the checkpoint would not repeat the validation's accuracy.
    """

    def before_val_epoch(self, runner: Runner) -> None:
        """Broadcasts; does nothing in a run of one process."""
        for buffer in runner.model.buffers():
            broadcast(buffer, src=0)
