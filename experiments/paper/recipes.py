"""With which config each row is measured, at which global batch, and about what that costs.

Costs are estimates from other people's published times, or assumptions; each says which. Nothing here was measured.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mmengine.config import Config

from experiments.paper.rows import DETECTION, FINE_TUNING, GENERATION, LINEAR, SEGMENTATION
from experiments.stages import FREE, REPOSITORY, Cost
from pretrain.evaluation.feature_extractors import RANDOM_CONVOLUTIONS
from pretrain.evaluation.fidelity import INCEPTION
from pretrain.evaluation.image_sets import NUM_IMAGES, SIZE_PX


@dataclass(frozen=True)
class Training:
    """How one task is trained and tested.

    Attributes:
        config: From the repository's root.
        protocol: What a reader has to know to compare the number.
        cost: Of training.
        global_batch: Images an optimizer step, on any number of GPUs; 0: whatever the config gives on that number.
        images_per_gpu: At most; what the config says.
        options: More of tools/train.py.
        intervals: Options that count iterations and do not follow gradient accumulation by themselves, with the
            config's values.
        timm_config: As ``config``, for backbones of timm; '' for tasks that they do not serve.
    """

    config: str
    protocol: str
    cost: Cost = FREE
    global_batch: int = 0
    images_per_gpu: int = 0
    options: tuple[str, ...] = ()
    intervals: dict[str, int] = field(default_factory=dict)
    timm_config: str = ''


@dataclass(frozen=True)
class Recipe:
    """All that belongs to a size of model.

    Attributes:
        generator: Pre-training config, for generation.
        training: By task.
        released: Name of the released checkpoint; '' if there is none.
        num_images: Generated for FID and IS.
        extractor: Of the features that FID and IS compare.
        generation_cost: Of the images.
        shapes: Whether all data come from tools/make_shapes.py instead of ImageNet, COCO and ADE20K.
    """

    generator: str
    training: dict[str, Training]
    released: str = ''
    num_images: int = NUM_IMAGES
    extractor: str = INCEPTION
    generation_cost: Cost = FREE
    shapes: bool = False

    @property
    def image_px(self) -> int:
        """Side of the generated images, and of those that they are compared with."""
        return Config.fromfile(REPOSITORY / self.generator).model.network.get('img_size', SIZE_PX)

    def protocol(self, task: str) -> str:
        """What a reader has to know to compare a number of this task."""
        if task != GENERATION:
            return self.training[task].protocol
        reference = f'{"plain generated shapes" if self.shapes else "ImageNet val"}, {self.image_px} px PNG'
        return (
            f'{self.num_images} images, 20 steps, cosine, temperature 6, against {reference}; '
            f'torch-fidelity, {self.extractor}'
        )


VITDET_BASIS = "ViTDet's published seconds an iteration on 64 A100, x 184375 x 64"
MAE_BASIS = "MAE's published time on 32 V100 at 224 px, x (256/224)^2"
_DETECTION = "Mask R-CNN, recipe ViTDet (the paper's is unpublished): 100 epochs, batch 64, 1024 px; val2017, one size"
_SEGMENTATION = (
    "UperNet, recipe MAE (the paper's is unpublished): 160k iterations, batch 16; validation, 512 px slide, one size"
)
_FINE_TUNING = 'published recipe: {} epochs, 256 px, batch 1024; last checkpoint, val, crop ratio 1.0'
_LINEAR = "MAE's recipe: 90 epochs, 256 px, batch 16384; last checkpoint, val, crop ratio 1.0"
_EPOCH_INTERVALS = {'train_cfg.val_interval': 1252, 'default_hooks.checkpoint.interval': 1252}
_LINEAR_INTERVALS = {'train_cfg.val_interval': 395, 'default_hooks.checkpoint.interval': 1252}
_SCALED = ('--amp', '--auto-scale-lr')  # float16; iterations follow gradient accumulation


def _recipe(model: str, epochs: int, hours: dict[str, Cost], segmentation_note: str = '') -> Recipe:
    finetune = f'pretrain/configs/finetune_{model}_{epochs}e.py'
    return Recipe(
        generator=f'pretrain/configs/addp_{model}_{1600 if model == "base" else 800}e.py',
        released=f'addp-vit-{model}-16',
        generation_cost=hours[GENERATION],
        training={
            FINE_TUNING: Training(
                finetune, _FINE_TUNING.format(epochs), hours[FINE_TUNING], 1024, 128, intervals=_EPOCH_INTERVALS
            ),
            LINEAR: Training(
                f'pretrain/configs/linear_{model}.py', _LINEAR, hours[LINEAR], 16384, 512, intervals=_LINEAR_INTERVALS
            ),
            DETECTION: Training(
                f'det_configs/addp_{model}_maskrcnn.py',
                _DETECTION,
                hours[DETECTION],
                64,
                8,
                _SCALED,
                timm_config='det_configs/timm_maskrcnn.py',
            ),
            SEGMENTATION: Training(
                f'seg_configs/addp_{model}_upernet.py',
                _SEGMENTATION + segmentation_note,
                hours[SEGMENTATION],
                16,
                2,
                _SCALED,
                timm_config='seg_configs/timm_upernet.py',
            ),
        },
    )


RECIPES = {
    'base': _recipe(
        'base',
        100,
        {
            GENERATION: Cost(12, 6, 'assumption, A100'),
            FINE_TUNING: Cost(300, 4, MAE_BASIS),
            LINEAR: Cost(100, 2, MAE_BASIS),
            DETECTION: Cost(1030, 6, VITDET_BASIS),
            SEGMENTATION: Cost(160, 8, 'assumption, A100'),
        },
    ),
    'large': _recipe(
        'large',
        50,
        {
            GENERATION: Cost(25, 6, 'assumption, A100'),
            FINE_TUNING: Cost(370, 12, MAE_BASIS),
            LINEAR: Cost(350, 5, "assumption: 3.5 times ViT-Base's"),
            DETECTION: Cost(1980, 17, VITDET_BASIS),
            SEGMENTATION: Cost(350, 22, 'assumption, A100'),
        },
        "; learning rate and layer decay are BEiT's for ViT-L",
    ),
    'tiny': Recipe(
        generator='pretrain/configs/addp_tiny.py',
        num_images=64,
        extractor=RANDOM_CONVOLUTIONS,
        shapes=True,
        training={
            FINE_TUNING: Training('pretrain/configs/finetune_tiny.py', 'tiny, generated shapes; last checkpoint'),
            LINEAR: Training('pretrain/configs/linear_tiny.py', 'tiny, generated shapes; last checkpoint'),
            DETECTION: Training(
                'det_configs/addp_tiny_maskrcnn.py',
                'tiny, generated shapes',
                timm_config='det_configs/timm_tiny_maskrcnn.py',
            ),
            SEGMENTATION: Training(
                'seg_configs/addp_tiny_upernet.py',
                'tiny, generated shapes',
                timm_config='seg_configs/timm_tiny_upernet.py',
            ),
        },
    ),
}


def batch_options(training: Training, num_gpus: int) -> list[str]:
    """The ``--cfg-options`` that keep the global batch on any number of GPUs.

    Each GPU takes fewer images, or gradients are accumulated.

    Raises:
        ValueError: If the number of GPUs does not divide the batch.
    """
    total = training.global_batch
    if not total:
        return []
    if total % num_gpus:
        raise ValueError(
            f'{num_gpus} GPUs do not divide the global batch of {total} of {training.config}: take a number that does'
        )
    images, accumulation = total // num_gpus, 1
    while images > training.images_per_gpu or total % (num_gpus * accumulation):
        accumulation += 1
        images = total // (num_gpus * accumulation)
    options = [f'train_dataloader.batch_size={images}'] if images != training.images_per_gpu else []
    if accumulation > 1:
        options.append(f'optim_wrapper.accumulative_counts={accumulation}')
        options += [f'{name}={accumulation * interval}' for name, interval in training.intervals.items()]
    return options
