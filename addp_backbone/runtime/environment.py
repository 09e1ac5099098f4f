"""Looks at the running environment: versions, devices, imports, ops.

:mod:`addp_backbone.runtime.doctor` judges what is found. Imports nothing but the standard library until it looks, and
no other file of this package, so that it works where the rest does not.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
from pathlib import Path
from typing import Any

MODULES = (
    'numpy',
    'cv2',
    'torch',
    'torchvision',
    'mmengine',
    'addp_backbone',
    'mmcv',
    'mmcv.ops',
    'mmdet.models',
    'mmseg.models',
)


def num_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def collect_facts(repository: Path) -> dict[str, Any]:
    """Looks at the running environment.

    Args:
        repository: Root of the repository whose environment this should be.

    Returns:
        What :mod:`addp_backbone.runtime.doctor` judges and describes.
    """
    facts: dict[str, Any] = {
        'python': platform.python_version(),
        'executable': sys.executable,
        'platform': platform.platform(),
        'repository': str(repository),
        'pins': _read_pins(repository / 'requirements.txt'),
        'packages': _installed_packages(),
        'torchvision_requires_torch': _torch_of_torchvision(),
        'cpu_threads': num_cores(),
        'nvidia_driver': _nvidia_driver(),
        'shm_gib': _shm_gib(),
        'finder_installed': False,
    }
    errors: dict[str, str] = {}
    for module in MODULES:
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever a broken package raises is the finding
            errors[module] = ' '.join(str(error).split())[:200] or type(error).__name__
    facts['import_errors'] = errors
    facts['finder_installed'] = importlib.util.find_spec('addp_mmcv_finder') is not None
    facts['foreign_modules'] = _foreign_modules()
    if 'addp_backbone' not in errors:
        import addp_backbone

        facts['project_origin'] = str(Path(addp_backbone.__file__).resolve().parents[1])
        facts.update(_ops_facts())
    if 'torch' not in errors:
        facts.update(_device_facts())
    return facts


def _installed_packages() -> dict[str, str]:
    """Normalised name and version of every distribution."""
    return {
        re.sub(r'[-_.]+', '-', str(found.metadata['Name'])).lower(): found.version
        for found in importlib.metadata.distributions()
    }


def _read_pins(path: Path) -> dict[str, str]:
    text = path.read_text(encoding='utf-8') if path.exists() else ''
    return dict(re.findall(r'^([\w-]+)==([\w.]+)', text, re.MULTILINE))


def _torch_of_torchvision() -> str | None:
    try:
        requirements = importlib.metadata.requires('torchvision') or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((found[1] for line in requirements if (found := re.match(r'torch ?\(?==([\d.]+)', line))), None)


def _nvidia_driver() -> str | None:
    path = Path('/proc/driver/nvidia/version')
    if path.exists():
        found = re.search(r'\d{3,}\.\d+(\.\d+)?', path.read_text(encoding='utf-8'))
        return found[0] if found else 'unknown'
    return 'unknown' if os.name == 'nt' and shutil.which('nvidia-smi') else None


def _shm_gib() -> float | None:
    path = Path('/dev/shm')
    return shutil.disk_usage(path).total / 2**30 if path.is_dir() else None


def _foreign_modules() -> dict[str, str]:
    """Our dependencies that lie outside this environment's folders."""
    homes = [Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()]
    foreign = {}
    for name in ('torch', 'numpy', 'mmengine', 'mmcv', 'mmdet', 'mmseg'):
        spec = importlib.util.find_spec(name)
        if spec and spec.origin and not any(home in Path(spec.origin).resolve().parents for home in homes):
            foreign[name] = str(Path(spec.origin).parent)
    return foreign


def _ops_facts() -> dict[str, Any]:
    """Which ops mmcv uses, and whether NMS and RoIAlign give the right result on a case done by hand."""
    import torch

    from addp_backbone.mmcv_standin.ops import ops_in_use

    facts: dict[str, Any] = {'mmcv_ops': ops_in_use(), 'ops_error': None}
    if facts['mmcv_ops'] == 'none':
        return facts
    try:
        from mmcv.ops import nms, roi_align

        boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [20, 20, 30, 30]])
        kept = nms(boxes, torch.tensor([0.5, 0.9, 0.3]), iou_threshold=0.5)[1].tolist()
        ramp = torch.arange(8.0).expand(1, 1, 8, 8).contiguous()  # a pixel's value is its column
        pooled = roi_align(ramp, torch.tensor([[0.0, 2, 2, 4, 4]]), (1, 1), 1.0, 2, 'avg', True).item()
        if kept != [1, 2] or abs(pooled - 2.5) > 1e-5:  # the box 2..4 covers columns 2 and 3
            facts['ops_error'] = f'nms keeps {kept}, wanted [1, 2]; roi_align gives {pooled}, wanted 2.5'
    except Exception as error:  # whatever a broken op raises is the finding
        facts['ops_error'] = ' '.join(str(error).split())[:200]
    return facts


def _device_facts() -> dict[str, Any]:
    import torch

    available = torch.cuda.is_available()
    archs = torch.cuda.get_arch_list() if available else []
    gpus = []
    for i in range(torch.cuda.device_count() if available else 0):
        properties = torch.cuda.get_device_properties(i)
        capability = (properties.major, properties.minor)
        gpus.append(
            {
                'name': properties.name,
                'capability': '{}.{}'.format(*capability),
                'bf16': capability >= (8, 0),
                'memory_gib': properties.total_memory / 2**30,
                'supported': any(_arch_serves(arch, capability) for arch in archs),
            }
        )
    cpuinfo = Path('/proc/cpuinfo')
    flags = cpuinfo.read_text(encoding='utf-8') if cpuinfo.exists() else ''
    return {
        'cuda_available': available,
        'torch_cuda': torch.version.cuda,
        'torch_archs': archs,
        'gpus': gpus,
        'torch_threads': torch.get_num_threads(),
        'cpu_bf16': 'avx512_bf16' in flags or 'amx_bf16' in flags,
    }


def _arch_serves(arch: str, capability: tuple[int, int]) -> bool:
    """Whether code for ``'sm_80'`` (same major version, no newer) or ``'compute_80'`` (any later one) runs on a GPU."""
    found = re.match(r'(sm|compute)_(\d+)(\d)', arch)
    if not found:
        return False
    built = (int(found[2]), int(found[3]))
    return built <= capability and (found[1] == 'compute' or built[0] == capability[0])
