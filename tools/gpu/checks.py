"""The list of checks: number, name, where it is, what it needs, how long it may take.

A check is a function of the device and a :class:`tools.gpu.report.Report`. It is imported by name in a process of its
own, so that this list, and the command's help, need neither torch nor OpenMMLab.
"""

from __future__ import annotations

from dataclasses import dataclass

# What ``import addp_backbone`` and building by name need beyond a bare machine's torch, torchvision, timm and OpenCV.
OPENMMLAB = ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'pycocotools', 'faster_coco_eval', 'fairscale', 'einops')
DATA = (*OPENMMLAB, 'imgaug', 'skimage')  # which mmdet's data sets import


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        number: As in the documents.
        name: In a few words.
        function: ``module:function`` within ``tools.gpu``.
        seconds: Expected on a card, assumed and not measured.
        cpu_seconds: Expected of the small version on a CPU of two busy cores.
        packages: Packages it imports; without any it runs on a bare machine.
        whole_project: Whether it imports the whole project where OpenMMLab is installed, though it can do without.
        cuda_only: Why there is no version for a CPU; empty if there is one.
    """

    number: int
    name: str
    function: str
    seconds: float
    cpu_seconds: float = 8
    packages: tuple[str, ...] = ()
    whole_project: bool = False
    cuda_only: str = ''


CHECKS = {
    check.number: check
    for check in (
        Check(0, 'versions, imports, card', 'environment:versions', 25, whole_project=True),
        Check(1, 'which fused kernel serves', 'kernels:fused_kernels', 20),
        Check(2, 'attention against float64', 'kernels:values_and_gradients', 30),
        Check(3, 'memory of a global block', 'kernels:memory_of_a_global_block', 15),
        Check(4, 'time of global attention', 'kernels:time_of_global_attention', 25),
        Check(5, 'backbone against the CPU', 'networks:backbone', 30, packages=OPENMMLAB),
        Check(6, 'activation checkpointing', 'networks:checkpointing', 20, packages=OPENMMLAB),
        Check(7, 'NMS, RoIAlign, mask targets', 'boxes:boxes', 20, packages=OPENMMLAB),
        Check(8, 'tokens against the CPU', 'networks:tokens', 25),
        Check(9, 'adaptive weight in float16', 'networks:adaptive_weight_in_half', 15),
        Check(10, 'generation against the CPU', 'networks:generation', 50),
        Check(11, '20 iterations of every stage', 'training:trainings', 100, 25, DATA),
        Check(12, 'resume in float16', 'training:resume', 40, 15, OPENMMLAB),
        Check(14, 'throughput and memory', 'throughput:throughput', 110, 15, DATA),
        Check(15, 'torchrun: DDP, FSDP', 'several:torchrun', 60, 20, OPENMMLAB),
        Check(16, 'data pipelines', 'pipelines:pipelines', 20, 12, DATA),
        Check(13, 'host syncs an iteration', 'syncs:host_syncs', 15),
        Check(17, 'torch.compile', 'compiled:compiled', 60),
    )
}
# The order of a run: what is worth most first, should the time not suffice for all.
ORDER = (0, 1, 2, 3, 4, 5, 6, 8, 9, 7, 10, 14, 13, 17, 11, 12, 15, 16)
