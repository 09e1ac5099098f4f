"""Image classification on a pre-trained ViT: fine-tuning, or a linear probe on the frozen trunk.

Path of an image: patch embedding -> + positions, cls token first -> (tokenizer_norm) -> blocks -> (norm) -> mean of the
patch tokens -> LayerNorm or BatchNorm -> linear layer -> logits. The cls token takes part in attention but not in the
mean, as in the published fine-tuning.

Shapes: B images, N patch tokens, C width, K classes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn
from torch.nn import functional as F

from addp_backbone.checkpoint.convert import CheckpointError, convert_state_dict, read_checkpoint
from addp_backbone.checkpoint.matching import listed, match_tensors
from addp_backbone.layers.block import NORM_EPS
from addp_backbone.layers.transfer import to_device
from addp_backbone.networks.arch import Arch
from addp_backbone.networks.vit import INIT_STD, ADDPViT
from addp_backbone.tuning.lora import LORA_ENDINGS
from pretrain.classification import accuracy  # noqa: F401  (registers it)
from pretrain.data import image_folder, labelled  # noqa: F401  (registers them)
from pretrain.data.transforms import ImageSample
from pretrain.training import epoch_loop, hooks, optimizers  # noqa: F401  (registers them)

BATCH_NORM_EPS = 1e-6  # MAE's linear probe
_MAY_BE_LEFT_OUT = ('norm.', 'tokenizer_norm.')  # tensors of a file that the config may do without
FINE_TUNING_STD, LINEAR_PROBE_STD = 2e-5, 0.01  # of the initial weights of the last layer (MAE)


@MODELS.register_module()
class ClassifierViT(ADDPViT):
    """The pre-training encoder: global attention, absolute positions, with cls token.

    Args:
        arch: 'tiny', 'base', 'large' or ``dict(width=, depth=, num_heads=)``.
        img_size: Side of the images, in pixels; ``pos_embed`` has this grid. Position embeddings of a file are resized
            to it on loading, and in each forward pass for inputs of another size.
        patch_size: Side of a patch, in pixels.
        drop_path_rate: Stochastic depth rate of the last block; grows linearly from 0 at the first.
        tokenizer_norm: Whether to keep ADDP's LayerNorm before the blocks: probes keep it, the published fine-tuning
            does not.
        final_norm: Whether to keep the encoder's ``norm`` after the blocks, as in pre-training: probes keep it.
        out_index: Index of the block whose output is used; negative ones count from the end. Later blocks are not run.
        with_cp: Activation checkpointing, see :class:`ADDPViT`.
        frozen: See :class:`ADDPViT`; for a linear probe use ``linear_probe`` of :class:`ImageClassifier`.
        norms_only: See :class:`ADDPViT`; the final norm is trained, too.
        lora: See :class:`ADDPViT`.
        init_cfg: ``dict(type='Pretrained', checkpoint=FILE)``. FILE is a checkpoint of ADDP, MAE, MAGE or timm, or the
            output of ``tools/convert_checkpoint.py --for classifier``; nothing in it is executed.
    """

    def __init__(
        self,
        arch: str | Mapping[str, int] | Arch = 'base',
        img_size: int = 256,
        patch_size: int = 16,
        drop_path_rate: float = 0.0,
        tokenizer_norm: bool = False,
        final_norm: bool = False,
        out_index: int = -1,
        with_cp: bool | str = False,
        frozen: bool | int = False,
        norms_only: bool = False,
        lora: Mapping[str, Any] | None = None,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            arch,
            img_size,
            patch_size,
            pretrain_img_size=img_size,
            window_size=0,
            rel_pos=False,
            drop_path_rate=drop_path_rate,
            out_indices=(out_index,),
            tokenizer_norm=tokenizer_norm,
            with_cp=with_cp,
            frozen=frozen,
            norms_only=norms_only,
            lora=lora,
            init_cfg=init_cfg,
        )
        self.width = self.arch.width
        self.img_size = img_size
        num_tokens = 1 + self.pretrain_grid[0] * self.pretrain_grid[1]
        self.cls_token = nn.Parameter(torch.empty(1, 1, self.width))
        self.pos_embed = nn.Parameter(torch.empty(1, num_tokens, self.width))
        self.norm = nn.LayerNorm(self.width, eps=NORM_EPS) if final_norm else None
        for embedding in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(embedding, std=INIT_STD)
        self.freeze()

    def stem_parts(self) -> list[nn.Module | nn.Parameter]:
        """Those of :class:`ADDPViT`, and the cls token."""
        return [*super().stem_parts(), *([self.cls_token] if hasattr(self, 'cls_token') else [])]

    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]
        """Encodes images.

        Args:
            images: (B, 3, H, W) float, normalised; H and W multiples of the patch size.

        Returns:
            The tokens (B, 1 + N, C), cls first.
        """
        with torch.set_grad_enabled(self.has_gradients(-1)):
            x = self.patch_embed(images)  # (B, H, W, C)
            grid = x.shape[1], x.shape[2]
            pos_embed = resample_abs_pos_embed(self.pos_embed, [*grid], self.pretrain_grid, antialias=False)
            cls_token = self.cls_token.expand(len(x), -1, -1)
            x = torch.cat((cls_token, x.flatten(1, 2)), dim=1) + pos_embed  # (B, 1 + N, C)
            if self.tokenizer_norm is not None:
                x = self.tokenizer_norm(x)
        for i, block in enumerate(self.blocks[: self.out_indices[-1] + 1]):
            with torch.set_grad_enabled(self.has_gradients(i)):
                x = self.run_block(block, x)
        return x if self.norm is None else self.norm(x)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Like :meth:`ADDPViT.get_layer_depth`, with the cls token in layer 0."""
        if param_name == f'{prefix}cls_token':
            return 0, len(self.blocks) + 2
        return super().get_layer_depth(param_name, prefix)

    def init_weights(self) -> None:
        """Loads the file of ``init_cfg``; without one the random weights of the constructor stay.

        Raises:
            CheckpointError: If the file is missing or unreadable, has tensors of unknown purpose, or lacks a tensor of
                this network or its shape.
        """
        if self.init_cfg is None or self.init_cfg.get('type') != 'Pretrained':
            super().init_weights()
            return
        path = self.init_cfg['checkpoint']
        report = convert_state_dict(
            read_checkpoint(path), img_size=self.img_size, patch_size=self.patch_size, keep_cls=True
        )
        own = self.state_dict()
        mismatch = match_tensors(report.state_dict, own, [name for name in own if name.endswith(LORA_ENDINGS)])
        missing = sorted(mismatch.missing)
        if missing:
            raise CheckpointError(
                f'{path} (format {report.format}) lacks {len(missing)} tensors of this ViT: {listed(missing)}. '
                f'{_advice(missing)}'
            )
        surplus = sorted(mismatch.unexpected)
        if mismatch.shapes or mismatch.kinds or any(not name.startswith(_MAY_BE_LEFT_OUT) for name in surplus):
            raise CheckpointError(
                f'{path} (format {report.format}) does not fit this ViT. {mismatch}. Set model.backbone.arch to the '
                "file's size"
            )
        own = {name: tensor for name, tensor in own.items() if not name.endswith(LORA_ENDINGS)}
        self.load_state_dict({name: report.state_dict[name] for name in own}, strict=False)  # compared above
        notes = [*report.notes, *(f'{name} is left out, as the config says' for name in surplus)]
        print_log(
            f'{type(self).__name__}: all {len(own)} tensors from {path} (format {report.format}); '
            f'{len(report.dropped)} of the file are not used{"".join(f"; {note}" for note in notes)}',
            logger='current',
        )
        self._is_init = True


def _advice(missing: Sequence[str]) -> str:
    if any(name.startswith('blocks.') for name in missing):
        return "Set model.backbone.arch to the file's size"
    if all(name.startswith('tokenizer_norm.') for name in missing):
        return 'Only ADDP and MAGE have it: set model.backbone.tokenizer_norm=False'
    if all(name.startswith('norm.') for name in missing):
        return 'Set model.backbone.final_norm=False'
    return (
        'A file made for the detection backbone has neither cls token nor norm: give the pre-training checkpoint itself'
    )


@MODELS.register_module()
class ImageClassifier(BaseModel):
    """A ViT with a linear classifier.

    Args:
        backbone: Config of :class:`ClassifierViT`.
        num_classes: Number of classes, at least 2. The tools replace None by the number of the training data before the
            model is built.
        linear_probe: False: fine-tuning, everything is trained, with a new LayerNorm ``fc_norm`` after the mean. True:
            the backbone is frozen, in eval mode and run without gradients; a BatchNorm without weights follows the
            mean. MAE probes the cls token instead, whose output gets no gradient in ADDP's pre-training (the decoder
            replaces it); SI and MAGE probe the mean too.
        label_smoothing: Label smoothing of the loss, in [0, 1).
        data_preprocessor: Config of the preprocessor, see :class:`pretrain.data.labelled.ClassificationPreprocessor`.

    Raises:
        ValueError: If an option is out of range, or the output would not depend on all trained blocks.
    """

    def __init__(
        self,
        backbone: dict[str, Any],
        num_classes: int | None,
        linear_probe: bool = False,
        label_smoothing: float = 0.0,
        data_preprocessor: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(data_preprocessor)
        if num_classes is None or num_classes < 2:
            raise ValueError(
                f'num_classes is {num_classes}, wanted 2 or more; the tools replace None by the number of classes of '
                'the training data, elsewhere set model.num_classes'
            )
        if not 0 <= label_smoothing < 1:
            raise ValueError(f'label_smoothing must lie in [0, 1), got {label_smoothing}')
        if isinstance(self.data_preprocessor, labelled.ClassificationPreprocessor):
            self.data_preprocessor.num_classes = num_classes
        self.backbone: ClassifierViT = MODELS.build(backbone)
        self.num_classes = num_classes
        self.linear_probe = linear_probe
        self.label_smoothing = label_smoothing
        width = self.backbone.width
        fc = nn.Linear(width, num_classes)
        nn.init.trunc_normal_(fc.weight, std=LINEAR_PROBE_STD if linear_probe else FINE_TUNING_STD)
        nn.init.zeros_(fc.bias)
        if linear_probe and self.backbone.tuning.selects:
            raise ValueError('linear_probe=True trains the head alone: leave out norms_only and lora of the backbone')
        if linear_probe:
            self.backbone.requires_grad_(False)
            norm: dict[str, nn.Module] = dict(batch_norm=nn.BatchNorm1d(width, eps=BATCH_NORM_EPS, affine=False))
        elif self.backbone.out_indices[-1] != self.backbone.arch.depth - 1:
            raise ValueError(
                f'out_index={self.backbone.out_indices[-1]} is for linear_probe=True: in fine-tuning the blocks after '
                'it would never be trained. Give a shallower arch to fine-tune part of the network'
            )
        else:
            norm = dict(fc_norm=nn.LayerNorm(width, eps=NORM_EPS))
        self.head = nn.Sequential(OrderedDict(**norm, fc=fc))

    def train(self, mode: bool = True) -> ImageClassifier:
        """Sets train or eval mode; a probed backbone stays in eval mode."""
        super().train(mode)
        if self.linear_probe:
            self.backbone.eval()
        return self

    def forward(
        self, inputs: Tensor, data_samples: list[ImageSample] | None = None, mode: str = 'tensor'
    ) -> Tensor | dict[str, Tensor] | list[ImageSample]:
        """Computes logits, the loss or predictions.

        Args:
            inputs: (B, 3, H, W) float, normalised.
            data_samples: One per image, with metadata. 'loss' needs ``gt_label`` ((1,) int64) or, after mixing,
                ``gt_scores`` ((K,), sum 1).
            mode: 'tensor', 'loss' or 'predict'.

        Returns:
            'tensor': logits (B, K). 'loss': ``dict(loss=scalar)``. 'predict': the samples with ``pred_scores`` ((K,)
            float32), the probabilities of the classes.

        Raises:
            ValueError: If the mode is another one, or labels are missing or outside of the classes.
        """
        if mode not in ('tensor', 'loss', 'predict'):
            raise ValueError(f"mode is {mode!r}, wanted 'tensor', 'loss' or 'predict'")
        logits = self.classify(inputs)
        if mode == 'tensor':
            return logits
        if mode == 'loss':
            return dict(loss=self.compute_loss(logits, self._targets(data_samples, logits.device)))
        samples = data_samples if data_samples is not None else [ImageSample() for _ in inputs]
        for sample, scores in zip(samples, logits.float().softmax(dim=-1), strict=True):
            sample.set_field(scores, 'pred_scores')
        return samples

    def classify(self, images: Tensor) -> Tensor:
        """Computes logits (B, K) of normalised images (B, 3, H, W)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.linear_probe):
            tokens = self.backbone(images)  # (B, 1 + N, C)
            pooled = tokens[:, 1:].mean(dim=1)  # (B, C)
        return self.head(pooled)

    def compute_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy with label smoothing, in float32, as a scalar.

        Args:
            logits: (B, K) float.
            targets: Labels (B,) int64, or probabilities (B, K).
        """
        with torch.autocast(logits.device.type, enabled=False):
            return F.cross_entropy(logits.float(), targets, label_smoothing=self.label_smoothing)

    def _targets(self, data_samples: list[ImageSample] | None, device: torch.device) -> Tensor:
        if not data_samples or not all('gt_scores' in sample or 'gt_label' in sample for sample in data_samples):
            raise ValueError("images have no labels: set labels=True in the data set's config")
        if 'gt_scores' in data_samples[0]:
            return to_device(device, torch.stack([sample.gt_scores for sample in data_samples]))[0]
        labels = torch.cat([sample.gt_label for sample in data_samples])
        if int(labels.max()) >= self.num_classes:
            raise ValueError(
                f'a label is {int(labels.max())}, but the model has {self.num_classes} classes: set model.num_classes'
            )
        return to_device(device, labels)[0]
