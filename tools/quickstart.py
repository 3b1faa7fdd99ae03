"""Draw shapes, train a small GC ViT Mask R-CNN on them, evaluate it and plot the results.

tools/quickstart.sh calls this script after it has set up the environment. Steps that are complete
are skipped; --fresh starts over.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from mmengine.fileio import load

from mmgcvit.datasets import draw_shapes
from mmgcvit.engine import build_runner, find_checkpoint, load_config, run_tool
from mmgcvit.errors import UserError
from mmgcvit.files import write_atomically
from mmgcvit.visualization import draw_predictions, plot_training_curves

CONFIG = Path('configs/detection/mask_rcnn_gcvit_shapes.py')
DATA = Path('data/shapes')
WORK_DIR = Path('work_dirs/quickstart')
RUNNER = 'mmgcvit.BriefRunner'  # progress on the screen, details in the log file


def main() -> None:
    parser = argparse.ArgumentParser(
        prog='tools/quickstart.sh', description=__doc__.partition('\n')[0]
    )
    parser.add_argument('--fresh', action='store_true', help=f'delete {WORK_DIR} and start over')
    args = parser.parse_args()
    if args.fresh and WORK_DIR.exists():
        print(f'--fresh: deleting {WORK_DIR}')
        shutil.rmtree(WORK_DIR)

    heading(1, f'data: drawn shapes in the layouts of COCO and ADE20K, {DATA}')
    draw_data(fresh=args.fresh)
    heading(2, f'training: {CONFIG}, a few minutes; "eta" is the time left')
    checkpoint = train()
    heading(3, 'evaluation on the validation images with COCO metrics')
    metrics = evaluate(checkpoint)
    heading(4, 'pictures')
    plot_training_curves([WORK_DIR], WORK_DIR / 'curves.png')
    report(checkpoint, metrics)


def draw_data(fresh: bool) -> None:
    """Draw the dataset; ``fresh`` replaces an old or damaged one."""
    try:
        draw_shapes(DATA, overwrite=fresh)
    except (ValueError, OSError) as error:
        raise UserError(f'{error}; tools/quickstart.sh --fresh does so') from error


def heading(step: int, text: str) -> None:
    print(f'\n[{step}/4] {text}', flush=True)


def final_checkpoint() -> Path:
    """Return the path of the last epoch's checkpoint, which need not exist yet."""
    return WORK_DIR / f'epoch_{load_config(CONFIG).train_cfg.max_epochs}.pth'


def train() -> Path:
    """Train with tools/train.py, unless that is complete, and return the last checkpoint."""
    checkpoint = final_checkpoint()
    latest = find_checkpoint(WORK_DIR)
    if latest and latest.name == checkpoint.name:
        print(f'done before: {checkpoint} is used (--fresh starts over)')
        return checkpoint
    if latest:
        print(f'a training was interrupted: going on from {latest} (--fresh starts over)')
    command = [sys.executable, 'tools/train.py', CONFIG, '--work-dir', WORK_DIR, '--resume']
    command += ['--cfg-options', f'runner_type={RUNNER}']
    training = subprocess.Popen([str(part) for part in command])
    try:
        code = training.wait()
    except KeyboardInterrupt:
        # the terminal has interrupted the training too: let it end, as it may write a checkpoint
        training.wait()
        raise
    if code:
        raise UserError(
            f'training ended with exit code {code}: the reason is above; '
            'run this again to go on from the last checkpoint, or with --fresh to start over'
        )
    return checkpoint


def evaluate(checkpoint: Path) -> dict[str, float]:
    """Return the checkpoint's metrics and draw its predictions, unless that is complete."""
    metrics_file, pictures = WORK_DIR / 'metrics.json', WORK_DIR / 'predictions.png'
    made = checkpoint.stat().st_mtime
    if all(f.exists() and f.stat().st_mtime > made for f in (metrics_file, pictures)):
        print(f'done before: {metrics_file} and {pictures} are used')
        return load(metrics_file)
    options = {'load_from': str(checkpoint), 'runner_type': RUNNER}
    cfg = load_config(CONFIG, WORK_DIR / 'evaluation', options)
    runner = build_runner(cfg)
    metrics = {name: round(float(value), 4) for name, value in runner.test().items()}
    draw_predictions(runner.model, runner.test_dataloader.dataset, pictures)
    write_atomically(metrics_file, json.dumps(metrics, indent=2).encode())
    return metrics


def report(checkpoint: Path, metrics: dict[str, float]) -> None:
    """Print the final table and the next steps."""
    print('\n            AP    AP50    AP75')
    for name, key in (('box', 'bbox'), ('mask', 'segm')):
        # without any detection there is no metric
        values = [metrics.get(f'coco/{key}_mAP{suffix}', 0.0) for suffix in ('', '_50', '_75')]
        print(f'{name:6}' + ''.join(f'{value:8.3f}' for value in values))
    print(
        f"""
checkpoint   {checkpoint}
metrics      {WORK_DIR / 'metrics.json'}
curves       {WORK_DIR / 'curves.png'}
predictions  {WORK_DIR / 'predictions.png'}  (ground truth left, prediction right)

Next: open the two pictures; read {CONFIG}, which is all that the model is;
then "Use it in your own project" in README.md."""
    )


if __name__ == '__main__':
    run_tool(main)
