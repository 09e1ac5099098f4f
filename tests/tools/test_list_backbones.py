"""tools/list_backbones.py: the list, its filter, the check of one model, and what the formulas say."""

from __future__ import annotations

import pytest
import torch
from running import ROOT, load_tool

from addp_backbone.networks.timm_vit.catalogue import build_model, supported_models
from addp_backbone.networks.timm_vit.facts import TOLERANCE, check, collect, describe_versions
from addp_backbone.networks.timm_vit.trunks import PlainTrunk

TOOL = load_tool('list_backbones')


NAMES = ['vit_small_patch14_dinov2', 'vit_small_patch14_reg4_dinov2', 'vit_base_patch14_reg4_dinov2']


def test_words_filter_by_name_family_and_features(capsys, monkeypatch):
    monkeypatch.setattr(TOOL, 'supported_models', lambda: NAMES)
    assert TOOL.main(['dinov2', 'registers', 'small']) == 0
    printed = capsys.readouterr().out
    assert 'vit_small_patch14_reg4_dinov2' in printed and 'vit_small_patch14_dinov2 ' not in printed
    assert TOOL.main(['no_such_word']) == 1
    assert "error: no supported model holds all of ['no_such_word']" in capsys.readouterr().err


def test_the_check_of_one_model_builds_it_and_says_what_a_config_needs(capsys):
    assert TOOL.main(['--check', 'test_vit_relpos']) == 0
    printed = capsys.readouterr().out
    assert 'largest relative difference' in printed and 'model.backbone.model=test_vit_relpos' in printed
    assert 'img_size' in printed
    assert TOOL.main(['--check', 'resnet50']) == 1
    assert 'it is no plain ViT' in capsys.readouterr().err


def test_a_check_of_all_that_was_cut_off_goes_on_where_it_was(tmp_path, monkeypatch):
    page, checked = tmp_path / 'models.md', []

    def check_or_stop(name):
        if len(checked) == 2:
            raise KeyboardInterrupt
        checked.append(name)
        return 1e-7

    monkeypatch.setattr(TOOL, 'supported_models', lambda: NAMES)
    monkeypatch.setattr(TOOL, 'check', check_or_stop)
    with pytest.raises(KeyboardInterrupt):
        TOOL.run(TOOL.parse_args(['--check-all', '--markdown', str(page)]))
    assert not page.exists()
    monkeypatch.setattr(TOOL, 'check', lambda name: checked.append(name) or 1.0)
    assert TOOL.run(TOOL.parse_args(['--check-all', '--markdown', str(page)])) == 1
    assert checked == NAMES
    assert page.read_text().count('| yes, 1e-07 |') == 2 and page.read_text().count('| NO: differs by 1e+00 |') == 1
    assert [path.name for path in tmp_path.iterdir()] == ['models.md']


def test_the_page_of_all_models_lists_each_supported_one_as_equal_to_timm():
    page = (ROOT / 'docs/timm_models.md').read_text(encoding='utf-8')
    if describe_versions() not in page:
        pytest.skip(f'the page was made with another version than {describe_versions()}')
    rows = [line.strip('| ').split(' | ') for line in page.splitlines() if line.startswith('| ')][1:]
    assert [row[0] for row in rows] == supported_models()
    assert {row[-1].partition(',')[0] for row in rows} == {'yes'}


def test_the_check_sees_a_difference(monkeypatch):
    assert check('test_vit3') <= TOLERANCE
    embed = PlainTrunk.embed

    def off_by_a_thousandth(self, images):
        embedded = embed(self, images)
        return embedded._replace(patches=embedded.patches * 1.001)

    monkeypatch.setattr(PlainTrunk, 'embed', off_by_a_thousandth)
    assert check('test_vit3') > TOLERANCE


def test_features_are_those_of_the_model():
    assert 'rotary' in collect('eva02_tiny_patch14_224').features
    assert {'LayerScale', '4 registers'} <= set(collect('vit_small_patch14_reg4_dinov2').features)
    assert {'relative bias', 'own windows'} <= set(collect('samvit_base_patch16').features)
    assert 'no class token' in collect('vit_base_patch16_siglip_224').features


@pytest.mark.parametrize('name', ['vit_tiny_patch16_224', 'eva02_tiny_patch14_224'])
def test_the_formula_of_arithmetic_is_what_torch_counts(name):
    from torch.utils.flop_counter import FlopCounterMode

    fact = collect(name)
    side = 20 * fact.patch_size
    with torch.device('meta'):
        model = build_model(name)
        images = torch.randn(1, 3, side, side)
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model.eval().forward_features(images)
    assert fact.giga_flops(side) == pytest.approx(counter.get_total_flops() / 1e9, rel=0.02)
