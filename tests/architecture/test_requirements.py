"""requirements.txt pins what requirements.in asks for, and leaves CUDA to torch."""

import re
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]


def requirements(name):
    lines = [line.split('#')[0].strip() for line in (ROOT / name).read_text(encoding='utf-8').splitlines()]
    return [Requirement(line) for line in lines if line]


def pins_here():
    """The pins that hold for this Python and platform, by name."""
    return {
        canonicalize_name(pin.name): next(iter(pin.specifier))
        for pin in requirements('requirements.txt')
        if pin.marker is None or pin.marker.evaluate()
    }


def test_every_requirement_is_pinned_within_its_range():
    pins = pins_here()
    for wanted in requirements('requirements.in'):
        pin = pins.get(canonicalize_name(wanted.name))
        assert pin is not None, f'requirements.txt lacks {wanted.name}; run `make pins`'
        assert pin.operator == '==' and wanted.specifier.contains(pin.version), f'{wanted}: pinned to {pin}'


def test_every_pin_is_exact():
    for pin in requirements('requirements.txt'):
        assert [specifier.operator for specifier in pin.specifier] == ['=='], pin


def test_cuda_packages_are_left_to_torch():
    names = [canonicalize_name(pin.name) for pin in requirements('requirements.txt')]
    assert not [name for name in names if re.match(r'nvidia-|cuda-|triton', name)]


@pytest.mark.parametrize('name', ['pillow', 'onedl-mmdetection', 'onedl-mmsegmentation', 'timm'])
def test_what_runs_here_is_what_is_pinned(name):
    assert version(name) == pins_here()[name].version


def test_torch_may_be_another_within_the_range():
    wanted = {wanted.name: wanted.specifier for wanted in requirements('requirements.in')}['torch']
    assert wanted.contains(version('torch').split('+')[0])
