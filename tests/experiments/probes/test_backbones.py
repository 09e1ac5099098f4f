"""What BACKBONE may be, and that it is computed as it was pre-trained."""

import pytest
import torch

from addp_backbone.checkpoint.convert import CheckpointError
from addp_backbone.checkpoint.storage import write_atomically
from addp_backbone.networks.vit import ADDPViT
from experiments.probes.backbones import backbone_digest, build, find_source


@pytest.fixture(scope='module')
def converted(tmp_path_factory):
    """A converted tiny ADDP of 128 px images with patches of 8 px and its tokenizer_norm."""
    torch.manual_seed(0)
    vit = ADDPViT('tiny', patch_size=8, pretrain_img_size=128, window_size=0, rel_pos=False, tokenizer_norm=True)
    torch.nn.init.normal_(vit.tokenizer_norm.weight)
    path = tmp_path_factory.mktemp('backbone') / 'backbone.safetensors'
    write_atomically(vit.state_dict(), path)
    return vit.eval(), path


def test_a_converted_file_tells_its_size_and_keeps_its_tokenizer_norm(converted):
    vit, path = converted
    source = find_source(str(path))
    assert (source.depth, source.width, source.patch_size) == (4, 192, 8)
    images = torch.randn(1, 3, 32, 48)
    (found,) = build(source, (4,))(images)
    torch.testing.assert_close(found, vit(images)[0])


def test_random_weights_of_a_files_size_have_its_patches_and_norms_but_not_its_weights(converted):
    _, path = converted
    source, random = find_source(str(path)), find_source(f'random/{path}')
    assert (random.depth, random.width, random.patch_size) == (4, 192, 8)
    images = torch.randn(1, 3, 32, 48)
    (found,), (trained,) = build(random, (4,))(images), build(source, (4,))(images)
    assert found.shape == trained.shape and not torch.allclose(found, trained)
    assert {name for name, _ in build(random, (4,)).named_parameters()} == {
        name for name, _ in build(source, (4,)).named_parameters()
    }


def test_windows_and_relative_positions_of_a_detector_follow_from_its_tables(tmp_path):
    vit = ADDPViT('tiny', img_size=256, window_size=4)
    for block in vit.blocks:
        torch.nn.init.normal_(block.attn.rel_pos_h)
    write_atomically(vit.state_dict(), tmp_path / 'vitdet.pth')
    images = torch.randn(1, 3, 96, 128)
    (found,) = build(find_source(str(tmp_path / 'vitdet.pth')), (3,))(images)
    vit.out_indices = (2,)
    torch.testing.assert_close(found, vit.eval()(images)[0])


def test_random_weights_of_a_block_do_not_depend_on_which_blocks_are_asked_for():
    for name in ('random/tiny', 'random/test_vit'):
        source = find_source(name)
        images = torch.randn(1, 3, 32, 32)
        first, several = build(source, (1,))(images), build(source, (1, 2))(images)
        assert torch.equal(first[0], several[0])
        assert torch.equal(build(source, (2,))(images)[0], several[1])


def test_the_digest_is_of_the_weights_and_not_of_the_file(converted, tmp_path):
    vit, path = converted
    copy = tmp_path / 'copy.pth'
    write_atomically(vit.state_dict(), copy)
    assert backbone_digest(find_source(str(copy))) == backbone_digest(find_source(str(path)))
    assert backbone_digest(find_source('random/tiny')) != backbone_digest(find_source(str(path)))


def test_a_timm_model_is_normalised_as_timm_says_and_ours_as_imagenet():
    assert find_source('random/vit_small_patch16_siglip_256'.replace('small', 'base')).mean == (127.5,) * 3
    assert find_source('random/tiny').mean == pytest.approx((123.675, 116.28, 103.53))


def test_the_size_of_images_is_the_nearest_of_whole_patches(converted):
    source = find_source(str(converted[1]))
    assert source.fitted((392, 308)) == (392, 304) and source.grid((392, 308)) == (38, 49)
    assert source.fitted((3, 3)) == (8, 8)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('no/such.pth', 'there is no such file'),
        ('timm/vit_no_such', 'has no model'),
        ('timm/test_vit=no/such.pth', "the file 'no/such.pth' does not exist"),
        ('random/resnet50', 'cannot be a TimmViT'),
    ],
)
def test_what_is_no_backbone_is_refused_with_the_reason(text, message):
    with pytest.raises(ValueError, match=message):
        find_source(text)


def test_a_file_that_is_not_converted_is_refused(tmp_path):
    write_atomically({'encoder.blocks.0.attn.qkv.weight': torch.zeros(3, 3)}, tmp_path / 'raw.pth')
    with pytest.raises(CheckpointError, match='is no converted backbone, it lacks'):
        find_source(str(tmp_path / 'raw.pth'))


def test_a_file_of_a_size_that_tells_no_heads_is_pointed_to_timm(tmp_path):
    tensors = {'patch_embed.proj.weight': torch.zeros(384, 3, 16, 16), 'pos_embed': torch.zeros(1, 4, 384)}
    write_atomically({**tensors, 'blocks.0.attn.qkv.weight': torch.zeros(3, 3)}, tmp_path / 'small.pth')
    with pytest.raises(CheckpointError, match=r'no known size .*number of heads: give the file .*timm/NAME=FILE'):
        find_source(str(tmp_path / 'small.pth'))
