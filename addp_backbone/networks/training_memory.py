"""GPU memory of training a Mask R-CNN on a ViT, by formula: an estimate before a card is asked, not a measurement.

Counted are weights, gradients, AdamW's state and what the forward pass keeps for the backward pass, as the project's
layers keep it on CUDA with the Triton kernel. A test compares backbone and pyramid with what torch saves when the same
code runs on fake tensors, and weights, gradients and optimizer state with a real training step on a CPU. The share of
the heads is an upper bound (every sampled mask is positive) that nothing was compared with. ``RESERVED_GIB`` is
assumed.

Shapes: N tokens of an image, C width, h heads, D head width, S side of a window or of the grid in tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from addp_backbone.networks.arch import Arch, get_arch

GIB = 2**30
FPN_CHANNELS = 256
NUM_CLASSES = 80
BOX_SAMPLES, MASK_SAMPLES = 512, 128  # RoIs of an image; a quarter is positive at most
LEVELS = (16, 4, 1, 0.25)  # positions of P2 to P5 for each token; P6 has a sixteenth
RESERVED_GIB = 4.0  # assumed: CUDA context, workspaces, NCCL's buffers, temporary tensors, fragmentation
FLOAT = 4  # bytes


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes on one card.

    Attributes:
        parameters: Weights in float32.
        gradients: Gradients in float32.
        optimizer: AdamW's two moments in float32.
        gathered: Weights that a step holds beside the shards or in 16 bits, and whole gradients beside the shards.
        activations: What the forward passes of the card's images keep.
    """

    parameters: float
    gradients: float
    optimizer: float
    gathered: float
    activations: float

    @property
    def total_gib(self) -> float:
        """All together and ``RESERVED_GIB``, in GiB."""
        parts = self.parameters + self.gradients + self.optimizer + self.gathered + self.activations
        return parts / GIB + RESERVED_GIB


def estimate(
    arch: str | Mapping[str, int] | Arch,
    images: int,
    img_size: int = 1024,
    amp: bool = True,
    with_cp: bool = False,
    shards: int = 1,
) -> TrainingMemory:
    """Estimates the memory of training Mask R-CNN as ``det_configs`` have it.

    Args:
        arch: Size of the backbone.
        images: Of one card in one step.
        img_size: Side in pixels.
        amp: Mixed precision of 16 bits; False for float32.
        with_cp: Activation checkpointing of the blocks.
        shards: Cards that share weights, gradients and optimizer state by FSDP; 1 for DDP.

    Returns:
        Bytes on each card.
    """
    size = get_arch(arch)
    number = vit_parameters(size, img_size) + pyramid_parameters(size.width) + head_parameters()
    blocks = size.depth * block_parameters(size.width)
    gathered: float = 0  # DDP's gradients lie in its buckets
    if shards > 1:  # weights and gradients of two blocks at a time, and of all that is no block, which stays gathered
        gathered = 2 * FLOAT * (number - blocks + 2 * blocks / size.depth)
    if amp:
        gathered += 2 * number  # autocast's copies of the weights
    activations = images * (
        vit_activations(size, img_size, amp, with_cp)
        + pyramid_activations(size.width, img_size, amp)
        + head_activations(img_size, amp)
    )
    return TrainingMemory(
        number * FLOAT / shards, number * FLOAT / shards, 2 * number * FLOAT / shards, gathered, activations
    )


def block_parameters(width: int) -> int:
    """Number of parameters of a block without relative positions."""
    return 12 * width**2 + 13 * width


def vit_parameters(
    size: Arch, img_size: int, patch_size: int = 16, window_size: int = 14, pretrain_img_size: int = 256
) -> int:
    """Number of parameters of ``ADDPViT`` with windows and relative positions."""
    embedding = (3 * patch_size**2 + 1) * size.width + (pretrain_img_size // patch_size) ** 2 * size.width
    head_width = size.width // size.num_heads
    sides = [_region(size, i, img_size // patch_size, window_size) for i in range(size.depth)]
    positions = sum(2 * (2 * side - 1) * head_width for side in sides)
    return embedding + size.depth * block_parameters(size.width) + positions


def pyramid_parameters(width: int, channels: int = FPN_CHANNELS) -> int:
    """Number of parameters of ``SimpleFeaturePyramid`` with its four levels."""
    half, quarter = width // 2, width // 4
    resampling = (4 * width * half + half) + 2 * half + (4 * half * quarter + quarter) + (4 * width * half + half)
    first = (quarter + half + width + width) * channels
    return resampling + first + 4 * (9 * channels**2 + 4 * channels)


def head_parameters(classes: int = NUM_CLASSES, channels: int = FPN_CHANNELS) -> int:
    """Number of parameters of RPN, box head and mask head of ``det_configs/_base_/maskrcnn.py``."""
    convolution, norm = 9 * channels**2, 2 * channels
    rpn = 2 * (convolution + channels) + 15 * channels + 15  # 3 anchors: a score and 4 offsets each
    box = 4 * (convolution + norm) + (49 * channels + 1) * 1024 + 1025 * (classes + 1 + 4 * classes)
    mask = 4 * (convolution + norm) + 4 * channels**2 + channels + (channels + 1) * classes
    return rpn + box + mask


def vit_activations(
    size: Arch, img_size: int, amp: bool, with_cp: bool = False, patch_size: int = 16, window_size: int = 14
) -> float:
    """Bytes that the backbone keeps of one image, without copies of weights."""
    grid = img_size // patch_size
    blocks = [block_activations(size, grid, _region(size, i, grid, window_size), amp) for i in range(size.depth)]
    images = 3 * img_size**2 * (2 if amp else FLOAT)
    if with_cp:  # the blocks' inputs, and one block as it is computed again
        return images + size.depth * FLOAT * grid**2 * size.width + max(blocks)
    return images + sum(blocks)


def block_activations(size: Arch, grid: int, side: int, amp: bool) -> float:
    """Bytes that a block keeps of one image.

    Args:
        size: Of the network.
        grid: Tokens along a side of the image.
        side: Tokens along a side of a window, or ``grid``.
        amp: Whether layers compute in 16 bits; the tokens between blocks, inputs of the norms, stay float32.
    """
    element = 2 if amp else FLOAT
    tokens, padded = grid**2, (-(-grid // side) * side) ** 2
    windowed = side != grid
    norms = 2 * tokens * (FLOAT * size.width + 2 * FLOAT)  # inputs, mean and deviation
    linears = (
        (2 + windowed + 4) * tokens * size.width * element
    )  # of qkv, fc1, (the merged windows') proj; GELU's input
    attention = (3 + 1) * padded * size.width * element  # q, k, v, output
    denominators = size.num_heads * padded * FLOAT
    return norms + linears + attention + denominators


def pyramid_activations(
    width: int, img_size: int, amp: bool, channels: int = FPN_CHANNELS, patch_size: int = 16
) -> float:
    """Bytes that the pyramid keeps of one image, without copies of weights."""
    tokens = (img_size // patch_size) ** 2
    element = 2 if amp else FLOAT
    cast = element if amp else 0  # a copy in 16 bits of what is float32
    positions = sum(LEVELS) * tokens
    # Each level's 1 x 1 and 3 x 3 convolution: two norms' inputs in float32, the 3 x 3's input, means and deviations.
    convolutions = positions * (channels * (2 * FLOAT + element) + 4 * FLOAT)
    pooled = tokens / 4 * channels * FLOAT + tokens / 16 * channels * 8  # P6: its input, and indices
    finest = 2 * tokens * width * (2 * FLOAT + element) + 2 * 4 * tokens * FLOAT + 4 * tokens * width * element
    others = 2 * tokens * width * element + tokens / 4 * width * (
        element + 8
    )  # second level; the pooled map and indices
    return convolutions + pooled + finest + others + tokens * width * (FLOAT + 3 * cast)


def head_activations(img_size: int, amp: bool, classes: int = NUM_CLASSES, patch_size: int = 16) -> float:
    """Bytes that RPN, box head and mask head keep of one image, if all mask samples are positive."""
    tokens = (img_size // patch_size) ** 2
    element = 2 if amp else FLOAT
    rpn = (sum(LEVELS) + 1 / 16) * tokens * FPN_CHANNELS * 3 * element  # input, and output of two convolutions
    convolutions = 4 * (2 * FLOAT + element)  # of four: input, input of the norm and output of ReLU in float32
    boxes = BOX_SAMPLES * FPN_CHANNELS * 49 * (convolutions + element)
    masks = MASK_SAMPLES * FPN_CHANNELS * 196 * (convolutions + element)
    enlarged = MASK_SAMPLES * 784 * (FPN_CHANNELS * element + classes * (element + FLOAT))
    return rpn + boxes + masks + enlarged


def _region(size: Arch, block: int, grid: int, window_size: int) -> int:
    """Side of what a block's tokens attend within."""
    return grid if not window_size or block in size.global_attn_indices else window_size
