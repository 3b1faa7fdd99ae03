"""Rehearse a training: data, model, a few updates, checkpoint, validation, test and prediction.

    python tools/rehearse.py CONFIG [options of tools/train.py]

It prints one line per step: ✔ if it works, ! if it works with a warning, ✘ with the reason and the
remedy if it fails, - if it was skipped. Files are written only to a temporary folder (TMPDIR).
The exit code is 1 if a step fails. For several processes, use tools/dist_rehearse.sh.
"""

import argparse
from functools import partial

if __name__ == '__main__':
    import _signals  # noqa: F401

from mmengine.dist import is_main_process

from mmgcvit.engine import rehearse, run_tool
from mmgcvit.engine.training_options import training_config, training_parser
from mmgcvit.errors import UserError
from mmgcvit.evaluation import adapt_tta
from mmgcvit.visualization import PaintPredictions, adapt_drawing


def main() -> None:
    parser = training_parser(__doc__)
    parser.add_argument('--no-rehearsal', action='store_true', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.no_rehearsal:
        parser.error('--no-rehearsal is an option of tools/train.py: remove it, or run train.py')
    cfg, options = training_config(args)
    failed = rehearse(
        cfg, adapt_drawing, *options, tta=adapt_tta, paint=partial(PaintPredictions, strict=True)
    )
    if failed:
        if not is_main_process():
            raise SystemExit(1)  # the first process reports it
        raise UserError(f'{failed} step{"s" * (failed > 1)} of the rehearsal failed, see above')


if __name__ == '__main__':
    run_tool(main)
