"""The classifier: equal to timm's ViT, loading from every format, probing, losses, augmentation, LARS."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from mmengine.config import Config
from mmengine.registry import TRANSFORMS
from PIL import Image
from timm.data.mixup import Mixup
from timm.layers import resample_abs_pos_embed
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from tiny_classes import ROOT
from torch import Tensor, nn

from addp_backbone.checkpoint.convert import CheckpointError, convert_state_dict
from addp_backbone.runtime.config_checks import LaunchError
from pretrain import ADDP
from pretrain.classification.classifier import ClassifierViT, ImageClassifier
from pretrain.data.labelled import (
    PIXEL_MEAN,
    PIXEL_STD,
    ClassificationPreprocessor,
    choose_few,
)
from pretrain.data.transforms import ImageSample, RandAugmentImage, posterize
from pretrain.training.optimizers import LARS

WIDTH, DEPTH, NUM_HEADS, NUM_CLASSES = 24, 2, 3, 7
ARCH = dict(width=WIDTH, depth=DEPTH, num_heads=NUM_HEADS)


def make_timm_vit(img_size: int = 64, **sizes: Any) -> nn.Module:
    """A ViT of timm with mean pooling and ``fc_norm`` of the published eps; random weights in every tensor."""
    options = sizes or dict(embed_dim=WIDTH, depth=DEPTH, num_heads=NUM_HEADS)
    torch.manual_seed(0)
    vit = timm.create_model(
        'vit_base_patch16_224', img_size=img_size, num_classes=NUM_CLASSES, global_pool='avg', fc_norm=True, **options
    )
    assert vit.fc_norm.eps == 1e-6
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return vit.eval()


def make_classifier(img_size: int = 64, arch: Any = ARCH, **options: Any) -> ImageClassifier:
    backbone = dict(type='ClassifierViT', arch=arch, img_size=img_size, **options.pop('backbone', {}))
    return ImageClassifier(backbone, NUM_CLASSES, **options).eval()


def copy_head(vit: nn.Module, classifier: ImageClassifier) -> None:
    classifier.head.fc_norm.load_state_dict(vit.fc_norm.state_dict())
    classifier.head.fc.load_state_dict(vit.head.state_dict())


def labelled(labels: list[int]) -> list[ImageSample]:
    samples = []
    for label in labels:
        sample = ImageSample()
        sample.set_field(torch.tensor([label]), 'gt_label')
        samples.append(sample)
    return samples


def pretraining_addp() -> ADDP:
    torch.manual_seed(0)
    return ADDP(
        ARCH,
        decoder_depth=1,
        decoder_num_heads=3,
        img_size=64,
        tokenizer=dict(base_channels=32, channel_multipliers=(1, 1, 1, 1, 1), num_res_blocks=1, latent_channels=8),
        token_predictor=dict(arch=ARCH, decoder_depth=1, decoder_num_heads=3),
    ).eval()


def test_base_equals_timms_vit_base_after_positions_are_resized_from_256_to_224() -> None:
    vit = make_timm_vit(256, depth=12)
    classifier = make_classifier(224, 'base')
    classifier.backbone.load_state_dict(
        {
            name: tensor
            for name, tensor in convert_state_dict(vit.state_dict(), img_size=224, keep_cls=True).state_dict.items()
            if not name.startswith('norm.')
        }
    )
    copy_head(vit, classifier)
    source = vit.pos_embed.detach().clone()
    vit.set_input_size((224, 224))
    # timm's own resizing is antialiased; MAE's, and so the published one, is not
    vit.pos_embed.data = resample_abs_pos_embed(source, [14, 14], antialias=False)
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(classifier(images), vit(images), rtol=1e-4, atol=1e-5)


def test_logits_losses_and_gradients_equal_timms_when_initialised_from_its_file(tmp_path: Path) -> None:
    vit = make_timm_vit()
    torch.save(vit.state_dict(), tmp_path / 'timm.pth')
    classifier = make_classifier(
        backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'timm.pth'))), label_smoothing=0.1
    )
    classifier.init_weights()
    copy_head(vit, classifier)
    images = torch.randn(3, 3, 64, 64)
    torch.testing.assert_close(classifier(images), vit(images))
    loss = classifier(images, labelled([0, 3, 6]), mode='loss')['loss']
    expected = LabelSmoothingCrossEntropy(0.1)(vit(images), torch.tensor([0, 3, 6]))
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(classifier.backbone.pos_embed.grad, vit.pos_embed.grad)
    torch.testing.assert_close(classifier.backbone.cls_token.grad, vit.cls_token.grad)


def test_the_loss_of_mixed_images_equals_timms() -> None:
    preprocessor = ClassificationPreprocessor(mixup=0.8, cutmix=1.0)
    classifier = make_classifier(label_smoothing=0.1, data_preprocessor=preprocessor)
    logits = torch.randn(4, NUM_CLASSES)
    images = list(torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8))
    np.random.seed(3)
    batch = classifier.data_preprocessor(dict(inputs=images, data_samples=labelled([0, 1, 2, 6])), training=True)
    np.random.seed(3)
    mean, std = torch.tensor(PIXEL_MEAN).view(3, 1, 1), torch.tensor(PIXEL_STD).view(3, 1, 1)
    mixed, scores = Mixup(0.8, 1.0, label_smoothing=0.1, num_classes=NUM_CLASSES)(
        (torch.stack(images) - mean) / std, torch.tensor([0, 1, 2, 6])
    )
    torch.testing.assert_close(batch['inputs'], mixed)
    loss = classifier.compute_loss(logits, torch.stack([sample.gt_scores for sample in batch['data_samples']]))
    torch.testing.assert_close(loss, SoftTargetCrossEntropy()(logits, scores))


def test_a_probes_trunk_computes_what_addps_encoder_computed_in_pre_training(tmp_path: Path) -> None:
    addp = pretraining_addp()
    torch.save(
        {'state_dict': {f'addp.{name}': tensor for name, tensor in addp.state_dict().items()}}, tmp_path / 'iter_1.pth'
    )
    trunk = ClassifierViT(
        ARCH,
        64,
        tokenizer_norm=True,
        final_norm=True,
        init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'iter_1.pth')),
    ).eval()
    trunk.init_weights()
    pixels = torch.rand(2, 3, 64, 64)
    normalised = (pixels * 255 - torch.tensor(PIXEL_MEAN).view(3, 1, 1)) / torch.tensor(PIXEL_STD).view(3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(trunk(normalised), addp.encode_pixels(pixels), rtol=1e-4, atol=1e-5)


def test_mages_fake_class_token_becomes_the_cls_token() -> None:
    predictor = pretraining_addp().token_predictor
    weights = {name: tensor for name, tensor in predictor.state_dict().items() if not name.startswith('vqgan')}
    weights['patch_embed.proj.weight'], weights['patch_embed.proj.bias'] = (
        torch.randn(WIDTH, 3, 16, 16),
        torch.zeros(WIDTH),
    )
    report = convert_state_dict(weights, img_size=64, keep_cls=True)
    words = predictor.state_dict()['token_emb.word_embeddings.weight']
    assert report.format == 'mage' and report.missing == [] and len(words) == 2025
    torch.testing.assert_close(report.state_dict['cls_token'][0, 0], words[1100])
    torch.testing.assert_close(
        report.state_dict['pos_embed'][0], predictor.state_dict()['token_emb.position_embeddings.weight']
    )


@pytest.mark.parametrize('size', ['base', 'large'])
@pytest.mark.parametrize('kind', ['addp', 'mage'])
def test_every_published_file_fills_a_probe_of_its_size(kind: str, size: str) -> None:
    keys = json.loads(
        (Path(__file__).parents[3] / 'tests' / 'golden' / f'{kind}_vit_{size}_patch16.keys.json').read_text(
            encoding='utf-8'
        )
    )
    report = convert_state_dict({name: torch.zeros(()).expand(shape) for name, shape in keys.items()}, keep_cls=True)
    with torch.device('meta'):
        trunk = ClassifierViT(size, tokenizer_norm=True, final_norm=True)
    assert report.format == kind and report.missing == []
    assert {name: tensor.shape for name, tensor in report.state_dict.items()} == {
        name: tensor.shape for name, tensor in trunk.state_dict().items()
    }


def test_a_converted_file_initialises_as_its_source_does(tmp_path: Path) -> None:
    vit = make_timm_vit().state_dict() | {
        'mask_token': torch.zeros(1, 1, WIDTH),
        'decoder_pos_embed': torch.zeros(1, 17, WIDTH),
        'norm.weight': torch.rand(WIDTH),
        'norm.bias': torch.rand(WIDTH),
    }
    weights = {name: tensor for name, tensor in vit.items() if not name.startswith(('fc_norm', 'head'))}
    report = convert_state_dict(weights, img_size=None, keep_cls=True)
    assert report.format == 'mae' and report.missing == []
    torch.save(report.state_dict, tmp_path / 'converted.pth')
    trunk = ClassifierViT(
        ARCH, 64, final_norm=True, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'converted.pth'))
    )
    trunk.init_weights()
    for name, tensor in trunk.state_dict().items():
        torch.testing.assert_close(tensor, weights[name], msg=name)


@pytest.mark.parametrize(
    ('source', 'options', 'message'),
    [
        ('timm', dict(tokenizer_norm=True), r'lacks 2 tensors.*tokenizer_norm=False'),
        ('timm', dict(final_norm=True), r'lacks 2 tensors.*final_norm=False'),
        ('timm', dict(arch=dict(ARCH, depth=3)), r'lacks 12 tensors.*arch'),
        ('timm', dict(arch=dict(ARCH, depth=1)), r'does not fit.*blocks\.1'),
        ('timm', dict(arch=dict(width=36, depth=2, num_heads=3)), r'does not fit.*instead of'),
        ('backbone', dict(), r'lacks 1 tensors.*cls_token.*give the pre-training checkpoint'),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    source: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    weights = make_timm_vit().state_dict()
    torch.save(
        convert_state_dict(weights, img_size=64).state_dict if source == 'backbone' else weights, tmp_path / 'file.pth'
    )
    trunk = ClassifierViT(
        **{
            'arch': ARCH,
            'img_size': 64,
            'init_cfg': dict(type='Pretrained', checkpoint=str(tmp_path / 'file.pth')),
            **options,
        }
    )
    with pytest.raises(CheckpointError, match=message):
        trunk.init_weights()


def test_another_image_size_interpolates_positions_and_equals_a_model_made_for_it() -> None:
    small = ClassifierViT(ARCH, 64).eval()
    large = ClassifierViT(ARCH, 96).eval()
    large.load_state_dict(convert_state_dict(small.state_dict(), img_size=96, keep_cls=True).state_dict)
    images = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(small(images), large(images))
    assert small(torch.randn(1, 3, 48, 80)).shape == (1, 1 + 3 * 5, WIDTH)


def test_probing_trains_the_last_layer_and_nothing_else() -> None:
    classifier = make_classifier(
        linear_probe=True, backbone=dict(tokenizer_norm=True, final_norm=True, drop_path_rate=0.5)
    ).train()
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    classifier(torch.randn(4, 3, 64, 64), labelled([0, 1, 2, 3]), mode='loss')['loss'].backward()
    trained = {name for name, parameter in classifier.named_parameters() if parameter.grad is not None}
    assert trained == {'head.fc.weight', 'head.fc.bias'}
    assert not any(module.training for module in classifier.backbone.modules())
    changed = {name for name, tensor in classifier.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {f'head.batch_norm.{name}' for name in ('running_mean', 'running_var', 'num_batches_tracked')}


def test_probing_can_take_an_earlier_block() -> None:
    trunk = ClassifierViT(dict(ARCH, depth=3), 64, out_index=0).eval()
    images = torch.randn(1, 3, 64, 64)
    seen: list[Tensor] = []
    trunk.blocks[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    trunk.blocks[1].register_forward_hook(lambda module, inputs, output: pytest.fail('a later block ran'))
    torch.testing.assert_close(trunk(images), seen[0])
    with pytest.raises(ValueError, match=r'out_index=0 is for linear_probe=True'):
        make_classifier(backbone=dict(out_index=0))


def test_the_cls_token_is_not_in_the_mean() -> None:
    classifier = make_classifier()
    tokens = torch.randn(2, 17, WIDTH)
    expected = classifier.head(tokens[:, 1:].mean(1))
    classifier.backbone.register_forward_hook(lambda module, inputs, output: tokens)
    torch.testing.assert_close(classifier(torch.randn(2, 3, 64, 64)), expected)


@pytest.mark.parametrize(
    ('samples', 'message'),
    [
        (None, 'set labels=True'),
        ([ImageSample()], 'set labels=True'),
        (labelled([NUM_CLASSES]), r'a label is 7, but the model has 7 classes'),
    ],
)
def test_labels_that_are_missing_or_out_of_range_are_refused(samples: list[ImageSample] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_classifier()(torch.randn(1, 3, 64, 64), samples, mode='loss')


def test_the_loss_is_float32_and_finite_under_bfloat16_with_extreme_pixels() -> None:
    classifier = make_classifier()
    with torch.autocast('cpu', torch.bfloat16):
        loss = classifier(1e4 * torch.randn(2, 3, 64, 64), labelled([0, 1]), mode='loss')['loss']
    assert loss.dtype == torch.float32 and torch.isfinite(loss)


def test_images_are_mixed_and_erased_in_training_only() -> None:
    preprocessor = ClassificationPreprocessor(erasing_prob=1.0, mixup=0.8)
    preprocessor.num_classes = NUM_CLASSES
    images = [torch.full((3, 64, 64), 128, dtype=torch.uint8)] * 2
    plain = preprocessor(dict(inputs=images, data_samples=labelled([0, 1])))
    assert (
        all((channel == channel[0, 0]).all() for channel in plain['inputs'][0])
        and 'gt_scores' not in plain['data_samples'][0]
    )
    mixed = preprocessor(dict(inputs=images, data_samples=labelled([0, 1])), training=True)
    assert not torch.equal(mixed['inputs'], plain['inputs'])
    torch.testing.assert_close(mixed['data_samples'][0].gt_scores.sum(), torch.tensor(1.0))


def test_an_odd_batch_cannot_be_mixed() -> None:
    preprocessor = ClassificationPreprocessor(mixup=0.8)
    preprocessor.num_classes = NUM_CLASSES
    with pytest.raises(ValueError, match=r'batch_size must be even, got 3'):
        preprocessor(
            dict(inputs=[torch.zeros(3, 8, 8, dtype=torch.uint8)] * 3, data_samples=labelled([0, 1, 2])), training=True
        )


def test_rand_augment_follows_from_the_seed_and_keeps_the_size() -> None:
    augment = RandAugmentImage()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8))

    def draw(seed: int) -> np.ndarray:
        random.seed(seed)
        np.random.seed(seed)
        return np.array(augment(dict(img=image))['img'])

    assert draw(0).shape == (40, 40, 3)
    assert np.array_equal(draw(1), draw(1))
    assert len({draw(seed).tobytes() for seed in range(5)}) > 2


def test_rand_augment_of_the_fine_tuning_configs_survives_5000_seeds() -> None:
    config = Config.fromfile(ROOT / 'pretrain/configs/finetune_base_100e.py')
    (step,) = (step for step in config.train_dataloader.dataset.pipeline if step.type == 'RandAugmentImage')
    augment = TRANSFORMS.build(step)
    image = Image.fromarray(np.random.default_rng(0).integers(1, 256, (16, 16, 3), dtype=np.uint8))
    num_black = 0
    for seed in range(5000):
        random.seed(seed)
        np.random.seed(seed)
        result = augment(dict(img=image))['img']
        assert result.size == (16, 16) and result.mode == 'RGB', seed
        num_black += result.getextrema() == ((0, 0),) * 3
    assert num_black  # some seeds posterize to 0 bits, which Pillow 13 refuses


@pytest.mark.parametrize('bits', range(9))
def test_posterize_masks_the_low_bits_of_every_channel(bits: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    found = np.array(posterize(Image.fromarray(pixels), bits))
    assert np.array_equal(found, pixels & (0xFF00 >> bits & 0xFF))


def test_lars_steps_as_maes_does() -> None:
    torch.manual_seed(0)
    layer, frozen = nn.Linear(5, 4), nn.Parameter(torch.ones(2), requires_grad=False)
    expected = [parameter.detach().clone() for parameter in layer.parameters()]
    momenta = [torch.zeros_like(parameter) for parameter in expected]
    optimizer = LARS([*layer.parameters(), frozen], lr=2.0, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.randn(6, 5)).square().sum().backward()
        for i, parameter in enumerate(layer.parameters()):
            step = parameter.grad
            if parameter.ndim > 1:
                step = step * 0.001 * expected[i].norm() / step.norm()
            momenta[i] = 0.9 * momenta[i] + step
            expected[i] = expected[i] - 2.0 * momenta[i]
        optimizer.step()
    for parameter, wanted in zip(layer.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.detach(), wanted)
    assert sum(len(group['params']) for group in optimizer.param_groups) == 2


def test_a_few_shot_subset_has_as_many_images_of_each_class_and_follows_from_the_seed() -> None:
    labels = np.repeat(np.arange(3), (5, 9, 7))
    chosen = choose_few(labels, 'abc', 4, seed=1)
    assert np.bincount(labels[chosen]).tolist() == [4, 4, 4] and len(set(chosen)) == 12
    assert np.array_equal(chosen, choose_few(labels, 'abc', 4, seed=1)) and not np.array_equal(
        chosen, choose_few(labels, 'abc', 4, seed=2)
    )
    with pytest.raises(LaunchError, match=r'images_per_class=6.*a has 5'):
        choose_few(labels, 'abc', 6, seed=0)
