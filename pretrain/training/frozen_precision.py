"""``frozen_dtype='auto'`` in a training: the precision is chosen by the first batch and stays that of the run."""

from __future__ import annotations

import torch
from mmengine.dist import all_reduce
from mmengine.logging import MessageHub, print_log
from torch import Tensor

from addp_backbone.runtime.tf32 import exact_float32
from pretrain.networks.addp import ADDP
from pretrain.networks.frozen import MIN_EQUAL_TOKENS, PRECISIONS, choose_precision, resolve_dtype

INFO_KEY = 'frozen_dtype'  # in the message hub, which checkpoints hold
_NAMES = {dtype: name for name, dtype in PRECISIONS.items()}


def has_half_precision(device: torch.device) -> bool:
    """Whether frozen networks gain by 16 bits on a device, which was decided for CUDA."""
    return device.type == 'cuda'


def settle_frozen_dtype(addp: ADDP, images: Tensor) -> None:
    """Chooses the precision of the frozen networks, the same on all processes, and says so in the log.

    A resumed run keeps the choice that its checkpoint holds.

    Args:
        addp: Built with ``frozen_dtype='auto'``, with the weights of the frozen networks.
        images: The first batch, (B, 3, H, W) in [0, 1].
    """
    hub = MessageHub.get_current_instance()
    known = hub.runtime_info.get(INFO_KEY)
    if known is not None:
        addp.set_frozen_dtype(resolve_dtype(known))
        print_log(f'frozen networks in {known}, as the checkpoint says', logger='current')
        return
    with exact_float32():
        choice = choose_precision(addp.tokenizer, images)
    # Processes see other images: all take the most exact precision that one of them needs.
    order = [torch.float16, torch.bfloat16, torch.float32]
    rank = torch.tensor([order.index(choice.dtype)], device=images.device)
    all_reduce(rank, 'max')
    dtype = order[int(rank)]
    addp.set_frozen_dtype(dtype)
    hub.update_info(INFO_KEY, _NAMES[dtype])
    shares = ', '.join(f'{_NAMES[tried]} {100 * share:.2f} %' for tried, share in choice.shares.items())
    print_log(
        f'frozen networks in {_NAMES[dtype]}; tokens of the first batch that equal those of fp32: {shares} (wanted: '
        f'{100 * MIN_EQUAL_TOKENS:g} %). model.network.frozen_dtype=fp32, bf16 or fp16 chooses otherwise',
        logger='current',
    )
