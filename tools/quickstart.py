"""Draw shapes, train a small GC ViT Mask R-CNN on them, evaluate it and plot the results.

tools/quickstart.sh calls this script after setting up the environment. Completed steps are skipped;
--fresh starts over.
"""

import argparse
import json
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

from mmengine.fileio import load

from mmgcvit.datasets import DatasetMismatchError, draw_shapes
from mmgcvit.engine import build_runner, find_checkpoint, load_config, run_tool
from mmgcvit.engine.hooks.stop_on_sigterm import EXIT_CODE as SAVED
from mmgcvit.engine.launch import end_with_parent
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
    heading(2, f'training: {CONFIG}, a few minutes; "eta" is the remaining time')
    checkpoint = train()
    heading(3, 'evaluation on the validation images with COCO metrics')
    metrics = evaluate(checkpoint)
    heading(4, 'plots')
    plot_training_curves([WORK_DIR], WORK_DIR / 'curves.png')
    report(checkpoint, metrics)


def draw_data(fresh: bool) -> None:
    """Draw the dataset. ``fresh`` replaces an incomplete one or one with different settings."""
    try:
        draw_shapes(DATA, overwrite=fresh)
    except DatasetMismatchError as error:
        raise UserError(
            f'{error.problem}; run tools/quickstart.sh --fresh to replace it'
        ) from error
    except OSError as error:
        raise UserError(str(error)) from error


def heading(step: int, text: str) -> None:
    print(f'\n[{step}/4] {text}', flush=True)


def final_checkpoint() -> Path:
    """Return the path of the last epoch's checkpoint, which may not exist yet."""
    return WORK_DIR / f'epoch_{load_config(CONFIG).train_cfg.max_epochs}.pth'


def train() -> Path:
    """Train with tools/train.py unless training is complete. Return the last checkpoint."""
    checkpoint = final_checkpoint()
    latest = find_checkpoint(WORK_DIR)
    if latest and latest.name == checkpoint.name:
        print(f'already done, using {checkpoint} (--fresh starts over)')
        return checkpoint
    if latest:
        print(f'training was interrupted, resuming from {latest} (--fresh starts over)')
    command = [sys.executable, 'tools/train.py', CONFIG, '--work-dir', WORK_DIR, '--resume']
    command += ['--cfg-options', f'runner_type={RUNNER}']
    training = subprocess.Popen(
        [str(part) for part in command], preexec_fn=partial(end_with_parent, signal.SIGTERM)
    )
    # wait until the training has saved: it must not write next to the training of a second run
    before = signal.signal(signal.SIGTERM, lambda number, frame: training.send_signal(number))
    try:
        code = training.wait()
    except KeyboardInterrupt:
        # the terminal also interrupts the training process: wait, since it may write a checkpoint
        training.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    if code in (SAVED, -signal.SIGTERM):
        sys.exit(code if code > 0 else 128 - code)
    if code:
        raise UserError(
            f'training failed with exit code {code}, see the output above: run this again to '
            'continue from the last checkpoint, or with --fresh to start over'
        )
    return checkpoint


def evaluate(checkpoint: Path) -> dict[str, float]:
    """Evaluate the checkpoint and draw its predictions unless this is done. Return metrics."""
    metrics_file, pictures = WORK_DIR / 'metrics.json', WORK_DIR / 'predictions.png'
    made = checkpoint.stat().st_mtime
    if all(f.exists() and f.stat().st_mtime > made for f in (metrics_file, pictures)):
        print(f'already done, using {metrics_file} and {pictures}')
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
        # there are no metrics without detections
        values = [metrics.get(f'coco/{key}_mAP{suffix}', 0.0) for suffix in ('', '_50', '_75')]
        print(f'{name:6}' + ''.join(f'{value:8.3f}' for value in values))
    print(
        f"""
checkpoint   {checkpoint}
metrics      {WORK_DIR / 'metrics.json'}
curves       {WORK_DIR / 'curves.png'}
predictions  {WORK_DIR / 'predictions.png'}  (ground truth left, prediction right)

Next: open the two images, and draw the attention of the network and its predictions:
  source {Path(sys.prefix) / 'bin/activate'}
  python tools/visualize.py {DATA}/coco/val2017/000000000043.jpg {CONFIG} {checkpoint}
  python tools/demo.py {DATA}/coco/val2017 {CONFIG} {checkpoint}
Then read "Use it in your own project" in README.md."""
    )


if __name__ == '__main__':
    run_tool(main)
