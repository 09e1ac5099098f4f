"""Says what is wrong with an environment and how to mend it; ``python tools/doctor.py`` is the command.

:func:`find_problems` judges what :mod:`addp_backbone.runtime.environment` has seen, and does nothing else. Only the
standard library is imported, and no other file of this package, so that it works where the rest does not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHM_NEEDED_GIB = 1.0
# distributions that install the same Python package; the first is ours
FAMILIES = {
    'mmengine': ('onedl-mmengine', 'mmengine', 'mmengine-lite'),
    'mmcv': ('onedl-mmcv', 'mmcv', 'mmcv-full', 'mmcv-lite'),
    'mmdet': ('onedl-mmdetection', 'mmdet'),
    'mmseg': ('onedl-mmsegmentation', 'mmsegmentation'),
}
OPENCVS = ('opencv-python', 'opencv-python-headless', 'opencv-contrib-python', 'opencv-contrib-python-headless')
OTHERS = (
    'torch',
    'torchvision',
    'timm',
    'numpy',
    'pycocotools',
    'faster-coco-eval',
    'fairscale',
    'safetensors',
    'einops',
)
REQUIRED = ('torch', 'torchvision', 'timm', 'numpy', 'safetensors', 'fairscale', 'einops', 'faster-coco-eval')
Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Problem:
    """Something that does not work, and one line that mends it."""

    what: str
    mend: str


def version_tuple(version: str) -> tuple[int, ...]:
    """``'2.14.1+cu130'`` -> ``(2, 14, 1)``; stops at the first part that is no number."""
    found = re.match(r'\d+(\.\d+)*', version)
    return tuple(int(part) for part in found[0].split('.')) if found else ()


def find_problems(facts: Facts) -> list[Problem]:
    """Judges an environment.

    Args:
        facts: As :func:`addp_backbone.runtime.environment.collect_facts` returns them; a key that is absent is not
            judged.

    Returns:
        Problems, the most basic first; empty if all is well.
    """
    checks: tuple[Callable[[Facts], list[Problem]], ...] = (
        _python,
        _missing_packages,
        _duplicates,
        _pairs,
        _numpy,
        _import_errors,
        _ops,
        _paths,
        _cuda,
        _shared_memory,
    )
    return [problem for check in checks for problem in check(facts)]


def _python(facts: Facts) -> list[Problem]:
    if version_tuple(facts.get('python', '3.10')) < (3, 10):
        return [Problem(f'Python {facts["python"]} is too old, 3.10 is needed', 'make setup PYTHON=python3.11')]
    return []


def _missing_packages(facts: Facts) -> list[Problem]:
    packages = facts.get('packages', {})
    missing = [name for name in REQUIRED if name not in packages]
    missing += [family[0] for family in FAMILIES.values() if not any(name in packages for name in family)]
    if 'packages' in facts and missing:
        return [Problem(f'not installed: {", ".join(missing)}', 'make setup')]
    return []


def _duplicates(facts: Facts) -> list[Problem]:
    problems = []
    packages = facts.get('packages', {})
    for module, family in FAMILIES.items():
        present = [name for name in family if name in packages]
        if len(present) > 1:
            problems.append(
                Problem(
                    f'{" and ".join(present)} both install the package {module} and overwrite each other',
                    f'pip uninstall -y {" ".join(present)} && make setup',
                )
            )
        elif present == ['mmcv-lite']:
            problems.append(
                Problem('mmcv-lite has no mmcv.ops, which Mask R-CNN needs', 'pip uninstall -y mmcv-lite && make setup')
            )
    opencvs = {name: packages[name] for name in OPENCVS if name in packages}
    if len(set(opencvs.values())) > 1:
        listed = ', '.join(f'{name} {version}' for name, version in opencvs.items())
        problems.append(
            Problem(
                f'OpenCV is installed in several versions over each other: {listed}',
                f'pip uninstall -y {" ".join(opencvs)} && pip install "opencv-python-headless>=4.10"',
            )
        )
    return problems


def _pairs(facts: Facts) -> list[Problem]:
    """Versions that do not go together."""
    problems = []
    packages = facts.get('packages', {})
    torch, wanted = packages.get('torch'), facts.get('torchvision_requires_torch')
    if torch and wanted and version_tuple(torch) != version_tuple(wanted):
        problems.append(
            Problem(
                f'torchvision {packages.get("torchvision")} is built for torch {wanted}, '
                f'but torch {torch} is installed',
                f'pip install --upgrade "torch=={torch.split("+")[0]}" torchvision',
            )
        )
    mmcv = packages.get('mmcv') or packages.get('mmcv-full')
    for name in ('mmdet', 'mmsegmentation'):
        if mmcv and name in packages and version_tuple(mmcv) >= (2, 2):
            problems.append(
                Problem(
                    f'{name} {packages[name]} refuses mmcv {mmcv} (it wants mmcv < 2.2)',
                    f'pip uninstall -y mmcv {name} && make setup',
                )
            )
    if mmcv and torch and version_tuple(mmcv) < (2, 2) and version_tuple(torch) >= (2, 5):
        problems.append(
            Problem(
                f'mmcv {mmcv} is older than torch {torch} and has no build for it',
                'pip uninstall -y mmcv mmcv-full && make setup',
            )
        )
    ours = {family[0] for family in FAMILIES.values()}
    for name, wanted in facts.get('pins', {}).items():
        if name in ours and name in packages and packages[name] != wanted:
            problems.append(
                Problem(f'{name} {packages[name]} is installed, tested is {wanted}', f'pip install "{name}=={wanted}"')
            )
    return problems


def _numpy(facts: Facts) -> list[Problem]:
    packages = facts.get('packages', {})
    if 'numpy' not in packages:
        return []
    numpy, problems = packages['numpy'], []
    if version_tuple(numpy) >= (2,):
        first_for_numpy_2 = {**dict.fromkeys(OPENCVS, '4.10'), 'pycocotools': '2.0.8', 'torch': '2.3'}
        for name, minimum in first_for_numpy_2.items():
            if name in packages and version_tuple(packages[name]) < version_tuple(minimum):
                problems.append(
                    Problem(
                        f'{name} {packages[name]} was built for numpy 1, numpy {numpy} is installed',
                        f'pip install --upgrade "{name}>={minimum}"',
                    )
                )
    elif 'onedl-mmsegmentation' in packages:
        problems.append(
            Problem(
                f'onedl-mmsegmentation needs numpy 2, numpy {numpy} is installed',
                'pip install --upgrade "numpy>2" "opencv-python>=4.10" "opencv-python-headless>=4.10"',
            )
        )
    return problems


def _import_errors(facts: Facts) -> list[Problem]:
    mends = (
        (
            r'lib(GL|gthread|Xrender|SM|Xext)[^ ]*\.so',
            'pip uninstall -y opencv-python opencv-contrib-python && '
            'pip install --force-reinstall --no-deps opencv-python-headless',
        ),
        (r'pkg_resources', 'pip install "setuptools<81"'),
        (
            r'undefined symbol|symbol not found',
            'pip install --force-reinstall --no-deps --no-cache-dir onedl-mmcv torchvision '
            '(they were compiled for another torch)',
        ),
        (
            r'numpy.*(multiarray|_ARRAY_API|dtype size changed|NumPy 1\.x)|_ARRAY_API',
            'pip install --upgrade "opencv-python>=4.10" pycocotools',
        ),
        (r'mmcv\._ext', 'pip install --no-deps --no-build-isolation -e . (from the repository: it brings the ops)'),
        (r"No module named 'addp_backbone'", 'pip install --no-deps --no-build-isolation -e . (from the repository)'),
        (r'MMCV==.* is used but incompatible', 'pip uninstall -y mmcv mmdet mmsegmentation && make setup'),
        (r'No module named', 'make setup'),
    )
    failures: dict[str, list[tuple[str, str]]] = {}  # one cause is often seen through several modules
    for module, message in facts.get('import_errors', {}).items():
        mend = next(
            (mend for pattern, mend in mends if re.search(pattern, message)),
            'make setup in a new environment (rm -rf .venv)',
        )
        failures.setdefault(mend, []).append((module, message))
    return [
        Problem(f'import of {", ".join(module for module, _ in found)} fails: {found[0][1]}', mend)
        for mend, found in failures.items()
    ]


def _ops(facts: Facts) -> list[Problem]:
    reinstall = 'pip install --no-deps --no-build-isolation -e . (from the repository)'
    if facts.get('mmcv_ops') == 'none':
        return [Problem('mmcv has no compiled ops and the stand-in is not in force', reinstall)]
    if facts.get('ops_error'):
        mend = (
            'pip install --force-reinstall --no-deps onedl-mmcv (the compiled ops do not fit this torch)'
            if facts.get('mmcv_ops') == 'compiled'
            else 'pip install --upgrade torch torchvision'
        )
        return [Problem(f'mmcv ops ({facts.get("mmcv_ops")}) give wrong results or fail: {facts["ops_error"]}', mend)]
    return []


def _paths(facts: Facts) -> list[Problem]:
    """Packages that come from somewhere else than this environment."""
    problems = []
    for module, origin in facts.get('foreign_modules', {}).items():
        problems.append(
            Problem(
                f'{module} is imported from {origin}, not from this environment',
                'unset PYTHONPATH; export PYTHONNOUSERSITE=1; and start from the repository root',
            )
        )
    expected, found = facts.get('repository'), facts.get('project_origin')
    if expected and found and Path(found) != Path(expected):
        problems.append(
            Problem(
                f'addp_backbone is imported from {found}, this repository is {expected}',
                'pip install --no-deps --no-build-isolation -e . (from this repository)',
            )
        )
    if facts.get('finder_installed') is False and facts.get('mmcv_ops') != 'compiled' and facts.get('packages'):
        problems.append(
            Problem(
                "the stand-in for mmcv's ops is not installed: stock mmdet and mmseg tools will not find it",
                'pip install --no-deps --no-build-isolation -e . (from the repository)',
            )
        )
    return problems


def _cuda(facts: Facts) -> list[Problem]:
    problems = []
    if facts.get('nvidia_driver') and not facts.get('cuda_available'):
        if facts.get('torch_cuda') is None:
            problems.append(
                Problem(
                    'there is an NVIDIA driver, but torch is a CPU build',
                    'pip install --force-reinstall torch torchvision (the default index has CUDA builds)',
                )
            )
        else:
            problems.append(
                Problem(
                    f'torch (CUDA {facts["torch_cuda"]}) cannot use the NVIDIA driver {facts["nvidia_driver"]}: '
                    'it is too old, or the GPUs are hidden',
                    'update the driver, or install a torch for an older CUDA; check CUDA_VISIBLE_DEVICES',
                )
            )
    for gpu in facts.get('gpus', []):
        if facts.get('torch_archs') and not gpu['supported']:
            problems.append(
                Problem(
                    f'{gpu["name"]} (compute capability {gpu["capability"]}) is not among the architectures '
                    'of this torch',
                    'install a torch build for it: https://pytorch.org/get-started/previous-versions',
                )
            )
    return problems


def _shared_memory(facts: Facts) -> list[Problem]:
    size = facts.get('shm_gib')
    if size is not None and size < SHM_NEEDED_GIB:
        return [
            Problem(
                f'/dev/shm has {size:.2f} GiB: data loader workers will die with a bus error',
                'docker run --shm-size=8g ..., or --cfg-options train_dataloader.num_workers=0 '
                'train_dataloader.persistent_workers=False',
            )
        ]
    return []


def describe(facts: Facts) -> list[str]:
    """Lines about versions, devices and ops, for people and for bug reports."""
    families = [name for family in FAMILIES.values() for name in family]
    packages = {name: facts['packages'][name] for name in [*families, *OPENCVS, *OTHERS] if name in facts['packages']}
    lines = [
        f'python {facts["python"]} ({facts["executable"]}), {facts["platform"]}',
        'packages  ' + ', '.join(f'{name} {version}' for name, version in packages.items()),
    ]
    bf16 = 'bf16 (in hardware)' if facts.get('cpu_bf16') else 'bf16 (emulated, slower than fp32)'
    lines.append(
        f'CPU       {facts["cpu_threads"]} threads (torch uses {facts.get("torch_threads", "?")}), AMP: {bf16}'
    )
    for gpu in facts.get('gpus', []):
        lines.append(
            f'GPU       {gpu["name"]}, {gpu["memory_gib"]:.0f} GiB, compute capability {gpu["capability"]}, AMP: fp16'
            + (', bf16' if gpu['bf16'] else '')
        )
    if not facts.get('gpus'):
        lines.append(
            'GPU       none' + (f' (torch is built for CUDA {facts["torch_cuda"]})' if facts.get('torch_cuda') else '')
        )
    checked = '' if facts.get('ops_error') or facts.get('mmcv_ops') in (None, 'none') else ', nms and roi_align checked'
    lines.append(f'mmcv ops  {facts.get("mmcv_ops", "unknown")}{checked}')
    if facts.get('shm_gib') is not None:
        lines.append(f'/dev/shm  {facts["shm_gib"]:.1f} GiB')
    return lines
