"""Long: 200 damaged image files through the readers, the checker of masks and the predictor, in their own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from mmengine import Config
from mmengine.registry import MODELS, init_default_scope
from mutated_images import mutated_files

NUM_FILES = 200
MAX_PIXELS = 4_000_000
MAX_GROWTH_MB = 300.0  # 24 bytes a declared pixel, and the model's own

SCRIPT = """
import json, resource, sys, time
from pathlib import Path
from addp_backbone.files.images import DECODING_ERRORS, read_image, read_mask, read_pixels
from addp_backbone.predict import Predictor
from addp_backbone.predict.run import iterate_predictions

config, checkpoint, folder, out, good = sys.argv[1:]
predictor = Predictor(config, checkpoint, score_thr=0.0, device='cpu')
list(iterate_predictions(predictor, [good]))
before, slowest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0.0
for path in sorted(Path(folder).iterdir()):
    start = time.process_time()
    for read in (read_image, read_pixels, read_mask):
        try:
            read(path)
        except DECODING_ERRORS as error:
            assert str(error), path
    slowest = max(slowest, time.process_time() - start)
records = list(iterate_predictions(predictor, [folder], Path(out)))
growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
print(json.dumps(dict(growth_mb=growth, slowest_s=slowest, errors=[r.get('error') for r in records])))
"""


def test_200_damaged_files_end_in_results_or_errors_within_a_bound_on_memory(
    tiny_det_config: Path, tiny_coco: Path, tmp_path: Path
) -> None:
    folder = tmp_path / 'damaged'
    folder.mkdir()
    for name, content in mutated_files(NUM_FILES, seed=1):
        ending = '.png' if name.endswith('.gif') else ''  # found by its ending, read by its content
        (folder / f'{name}{ending}').write_bytes(content)
    cfg = Config.fromfile(tiny_det_config)
    init_default_scope(cfg.default_scope)
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), tmp_path / 'random.pth')
    good = next((tiny_coco / 'val2017').iterdir())
    words = [tiny_det_config, tmp_path / 'random.pth', folder, tmp_path / 'out', good]
    done = subprocess.run(
        [sys.executable, '-c', SCRIPT, *map(str, words)],
        env=dict(os.environ, ADDP_MAX_IMAGE_PIXELS=str(MAX_PIXELS)),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert len(figures['errors']) == NUM_FILES
    assert 20 <= sum(error is None for error in figures['errors']) < NUM_FILES
    assert not [error for error in figures['errors'] if error and 'prediction failed' in error]
    assert figures['growth_mb'] < MAX_GROWTH_MB and figures['slowest_s'] < 5
    summary = json.loads((tmp_path / 'out' / 'predictions.json').read_text())
    assert [image.get('error') for image in summary['images']] == figures['errors']
