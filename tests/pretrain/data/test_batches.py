"""A batch is stacked where it is loaded and copied once; the numbers are those of images prepared one by one."""

from __future__ import annotations

import pytest
import torch
from mmengine.model import ImgDataPreprocessor
from mmengine.structures import BaseDataElement

from pretrain.classification.classifier import ImageClassifier
from pretrain.data.batches import ImageBatchPreprocessor, stack_images
from pretrain.data.labelled import ClassificationPreprocessor
from pretrain.data.transforms import ImageSample
from tools.benchmark.device_ops import DeviceOps

MEAN, STD = [123.0, 116.0, 103.0], [58.0, 57.0, 56.0]


def samples(count: int, sizes: tuple[int, ...] = (32,)) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    result = []
    for i in range(count):
        sample = ImageSample()
        sample.set_field(torch.tensor([i % 3]), 'gt_label')
        side = sizes[i % len(sizes)]
        pixels = torch.randint(0, 256, (3, side, side), generator=generator, dtype=torch.uint8)
        result.append(dict(inputs=pixels, data_samples=sample))
    return result


def test_a_stacked_batch_is_normalised_to_the_same_bits_as_its_images_one_by_one() -> None:
    batch = samples(4)
    theirs = ImgDataPreprocessor(mean=MEAN, std=STD)(
        dict(inputs=[sample['inputs'] for sample in batch], data_samples=[None] * 4)
    )
    collated = stack_images(batch)
    assert collated['inputs'].shape == (4, 3, 32, 32) and collated['inputs'].dtype == torch.uint8
    assert torch.equal(ImageBatchPreprocessor(MEAN, STD)(collated)['inputs'], theirs['inputs'])


def test_images_of_different_sizes_stay_a_list_and_are_padded() -> None:
    collated = stack_images(samples(4, sizes=(32, 24)))
    assert [image.shape[-1] for image in collated['inputs']] == [32, 24, 32, 24]
    assert ImageBatchPreprocessor(MEAN, STD)(collated)['inputs'].shape == (4, 3, 32, 32)


@pytest.mark.parametrize('mixup', [0.0, 0.8], ids=['labels', 'mixed labels'])
def test_copies_to_the_gpu_do_not_grow_with_the_batch_and_none_blocks(mixup: float) -> None:
    counts = []
    for batch_size in (2, 8):
        torch.manual_seed(0)
        backbone = dict(type='ClassifierViT', arch=dict(width=32, depth=1, num_heads=2), img_size=32, patch_size=16)
        model = ImageClassifier(backbone, 3, data_preprocessor=ClassificationPreprocessor(mixup=mixup)).train()
        ops = DeviceOps([*model.parameters(), *model.buffers()])
        with ops:
            data = model.data_preprocessor(stack_images(samples(batch_size)), training=True)
            model(**data, mode='loss')['loss'].backward()
        assert ops.num_waits == 0, ops.waits
        counts.append((ops.num_ops, ops.num_copies))
    assert counts[0] == counts[1] and counts[0][1] == 2  # images and labels


def test_labels_stay_on_the_cpu_until_the_loss_asks_for_all_of_them() -> None:
    sample = BaseDataElement(label=torch.zeros(1))
    batch = ImageBatchPreprocessor(MEAN, STD).cast_data(dict(inputs=torch.zeros(1, 3, 4, 4), data_samples=[sample]))
    assert batch['data_samples'][0] is sample
