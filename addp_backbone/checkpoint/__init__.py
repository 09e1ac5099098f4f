"""Checkpoints: read without executing anything, converted to backbone weights, loaded without silence."""

from addp_backbone.checkpoint.convert import ConversionReport, convert_state_dict
from addp_backbone.checkpoint.storage import CheckpointError, read_checkpoint, write_atomically

__all__ = ['CheckpointError', 'ConversionReport', 'convert_state_dict', 'read_checkpoint', 'write_atomically']
