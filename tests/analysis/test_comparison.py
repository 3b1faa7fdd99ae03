"""The comparison with Swin and ConvNeXt: equal conditions, resuming, means and spread."""

import contextlib
import csv
import io
import itertools
import json
import re
import signal
import time
from pathlib import Path

import forks
import numpy as np
import pytest
from mmengine.config import Config

from mmgcvit.analysis import comparison
from mmgcvit.analysis.comparison import Curves, Plan, Training, page, trainings
from mmgcvit.analysis.comparison.plan import METRICS, require_equal_parameters
from mmgcvit.analysis.comparison.trainings import RemainingTime
from mmgcvit.datasets import draw_shapes
from mmgcvit.errors import UserError
from mmgcvit.visualization.comparison import Band, comparison_figure

ROOT = Path(__file__).parents[2]
BOX_AP = METRICS['detection'][0]


@pytest.fixture(scope='module')
def configs():
    """The config of each task and backbone, not to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return Plan(Path('unused')).configs()


# Equal conditions


def test_backbones_have_equal_numbers_of_parameters(configs):
    params = require_equal_parameters(configs)
    assert list(params) == ['gcvit', 'swin', 'convnext']
    assert max(params.values()) / min(params.values()) < 1.02


def test_unequal_numbers_of_parameters_are_refused(configs):
    wider = Config(configs['segmentation', 'convnext'].to_dict())
    wider.model.backbone.arch.channels = [40, 80, 160, 320]
    chosen = {key: configs[key] for key in configs if key == ('segmentation', 'gcvit')}
    with pytest.raises(UserError, match=r'gcvit 3,035,934, convnext 3,\d+,\d+\): differences of'):
        require_equal_parameters(chosen | {('segmentation', 'convnext'): wider})
    with pytest.raises(UserError, match='for segmentation, but 3,049,538 for another task'):
        tasks = {('detection', 'convnext'): configs['detection', 'convnext']}
        require_equal_parameters(tasks | {('segmentation', 'convnext'): wider})


def without_backbone(node):
    """A config without its backbone and the numbers of its channels."""
    if isinstance(node, dict):
        own = ('backbone', 'in_channels', 'filename')
        return {key: without_backbone(value) for key, value in node.items() if key not in own}
    return [without_backbone(value) for value in node] if isinstance(node, list) else node


def test_only_the_backbone_differs(configs):
    for task in ('detection', 'segmentation'):
        plain = [without_backbone(configs[task, name].to_dict()) for name in comparison.BACKBONES]
        assert plain[0] == plain[1] == plain[2]
    for cfg in configs.values():
        assert cfg.model.backbone.drop_path_rate == 0 and not cfg.get('load_from')
        assert 'init_cfg' not in cfg.model.backbone
    detection, segmentation = (configs[task, 'gcvit'] for task in ('detection', 'segmentation'))
    for part in ('optim_wrapper', 'param_scheduler', 'train_cfg', 'randomness'):
        assert detection[part] == segmentation[part]
    quickstart = Config.fromfile(ROOT / 'configs/detection/mask_rcnn_gcvit_shapes.py')
    assert detection.optim_wrapper == quickstart.optim_wrapper


def test_each_training_has_its_seed(configs):
    plan = Plan(Path('x'), ('detection',), ('gcvit', 'swin'), seeds=2)
    found = [
        (training.backbone, trainings.config_of(training, configs).randomness.seed)
        for training in plan.trainings()
    ]
    # all backbones with the first seed come first
    assert found == [('gcvit', 0), ('swin', 0), ('gcvit', 1), ('swin', 1)]


def test_iterations_set_the_whole_schedule(monkeypatch):
    monkeypatch.chdir(ROOT)
    (cfg,) = Plan(Path('x'), ('segmentation',), ('swin',), iterations=40).configs().values()
    assert (cfg.train_cfg.max_iters, cfg.train_cfg.val_interval) == (40, 4)
    assert cfg.default_hooks.checkpoint.interval == 4
    assert [step.end for step in cfg.param_scheduler] == [3, 40]


# Trainings


@pytest.fixture(scope='module')
def arguments(tmp_path_factory):
    """Arguments of the tool for two trainings of a second or two."""
    folder = tmp_path_factory.mktemp('comparison')
    data = folder / 'shapes/ADEChallengeData2016'
    draw_shapes(folder / 'shapes', num_train=6, num_val=2, progress=False)
    options = {
        'train_dataloader.batch_size': 2,
        'default_hooks.logger.interval': 1,
        'train_dataloader.dataset.pipeline.2.scale': '(64,48)',
        'val_dataloader.dataset.pipeline.1.scale': '(64,48)',
    }
    options |= {f'{split}_dataloader.dataset.data_root': f'{data}/' for split in ('train', 'val')}
    return [
        *('--out', str(folder / 'out'), '--tasks', 'segmentation', '--iterations', '4'),
        *('--backbones', 'gcvit', 'convnext', '--seeds', '1', '--rounds', '2'),
        *('--cfg-options', *(f'{key}={value}' for key, value in options.items())),
    ]


@pytest.fixture(scope='module')
def finished(arguments, load_tool):
    """The comparison, interrupted in its second training and then continued.

    Returns its folder, what the second start printed, and for each backbone the images that were
    trained on.
    """
    seen = {}
    validations = itertools.count(1)
    show = trainings._ShowRemainingTime.after_val_epoch

    def see(self, runner, batch_idx, data_batch=None, outputs=None):
        batch = [(s.img_path, s.flip_direction) for s in data_batch['data_samples']]
        seen.setdefault(Path(runner.work_dir).parent.name, {})[runner.iter] = batch

    def interrupt(self, runner, metrics=None):
        show(self, runner, metrics)
        if next(validations) == 6:
            raise KeyboardInterrupt

    out, main = Path(arguments[1]), load_tool('compare').main
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(trainings._ShowRemainingTime, 'after_train_iter', see, raising=False)
        patch.setattr(trainings._ShowRemainingTime, 'after_val_epoch', interrupt)
        with pytest.raises(KeyboardInterrupt):
            main(arguments)
        assert not (out / 'results.json').exists()
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            main(arguments)
    return out, printed.getvalue(), seen


def test_what_is_finished_is_not_repeated_and_the_rest_is_continued(finished):
    _, printed, _ = finished
    lines = printed.splitlines()
    assert '1 of 2 trainings are finished already' in lines
    assert (
        '[2/2] segmentation, ConvNeXt, seed 0; all trainings: remaining time not known yet' in lines
    )
    assert '[1/2]' not in printed
    assert [line for line in lines if line.startswith('Iter(train)')] == [
        line for line in lines if re.match(r'Iter\(train\) \[[34]/4\]', line)
    ]
    assert re.search(r'all trainings: about \d+ s left', printed)


def test_backbones_see_the_same_images_in_the_same_order(finished):
    _, _, seen = finished
    assert sorted(seen['gcvit']) == [0, 1, 2, 3]
    assert seen['gcvit'] == seen['convnext']
    assert len({image for batch in seen['gcvit'].values() for image in batch}) > 2


def test_files_hold_the_numbers_of_the_logs(finished):
    out, printed, _ = finished
    logged = trainings.read_log(Training(out, 'segmentation', 'convnext', 0)).metrics
    with open(out / 'curves.csv') as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 4  # backbones, validations
    values = list(logged['mIoU'].values())
    assert len(set(values)) > 1
    in_file = [float(row['value']) for row in rows if row['backbone'] == 'convnext']
    assert in_file == pytest.approx(values, abs=0.006)
    results = json.loads((out / 'results.json').read_text())
    assert [curve['iterations'] for curve in results['curves']] == [[1, 2, 3, 4]] * 2
    seconds = results['timing']['segmentation']['seconds']
    assert 0.01 < seconds['gcvit'] < 60 and 0.01 < seconds['convnext'] < 60
    assert (out / 'comparison_segmentation.png').read_bytes().startswith(b'\x89PNG')
    assert (out / 'results.md').read_text().rstrip() in printed
    assert (
        f'| ConvNeXt | 3.05 M | {values[-1]:.1f} ± 0.0 | {max(values):.1f} ± 0.0 | '
        f'{seconds["convnext"]:.3f} |'
    ) in printed


def test_curves_of_logs(tmp_path):
    """Nothing was detected at first; the third training is not finished."""
    aps = {('gcvit', 0): (None, 0.2), ('gcvit', 1): (0.1, 0.4), ('swin', 0): (0.3, None)}
    for (backbone, seed), values in aps.items():
        training = Training(tmp_path, 'detection', backbone, seed)
        file = training.work_dir / '20260101_000000/vis_data/scalars.json'
        file.parent.mkdir(parents=True)
        training.config.write_text('train_cfg = dict(max_iters=10, val_interval=5)')
        lines = [{'loss': 1.0, 'iter': 1, 'step': 1}]
        for step, ap in zip((5, 10), values, strict=True):
            if ap is not None:
                lines.append({'coco/bbox_mAP': ap, 'coco/segm_mAP': ap / 2, 'step': step})
        file.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    plan = Plan(tmp_path)
    box, mask = comparison.read_curves(plan)
    assert (box.backbone, box.seeds, box.iterations) == ('gcvit', (0, 1), (5, 10))
    assert box.values == pytest.approx(np.array([[0, 20], [10, 40]]))
    assert mask.values == pytest.approx(np.array([[0, 10], [5, 20]]))

    config = Training(tmp_path, 'detection', 'gcvit', 1).config
    config.write_text('train_cfg = dict(max_iters=10, val_interval=10)')
    with pytest.raises(UserError, match='cannot be compared: delete one of these folders'):
        comparison.read_curves(plan)


def test_times_are_measured_again_alone(finished, arguments, load_tool, monkeypatch, capfd):
    out, _, _ = finished
    before = json.loads((out / 'timing.json').read_text())
    monkeypatch.chdir(ROOT)
    load_tool('compare').main(['--time', *arguments])
    printed = capfd.readouterr().out
    assert 'Iter(train)' not in printed
    after = json.loads((out / 'timing.json').read_text())['segmentation']
    assert after['seconds'] != before['segmentation']['seconds']
    assert f'| {after["seconds"]["gcvit"]:.3f} |' in (out / 'results.md').read_text()


def test_nothing_to_report_is_told(load_tool, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments = ['--time', '--out', str(tmp_path), '--tasks', 'segmentation']
    with pytest.raises(UserError, match='has no finished training: run this without --time first'):
        load_tool('compare').main(arguments)


@pytest.mark.nightly
def test_a_killed_comparison_is_continued(arguments, tmp_path):
    arguments = [*arguments]
    arguments[1] = str(tmp_path / 'out')
    running = forks.Fork('tools/compare.py', *arguments, out=tmp_path / 'printed.txt')
    deadline = time.monotonic() + 240
    while 'Iter(train) [3/4]' not in running.out.read_text().partition('[2/2]')[2]:
        assert running.poll() is None and time.monotonic() < deadline, running.out.read_text()
        time.sleep(0.05)
    running.signal(signal.SIGKILL)
    assert running.wait(60) == -signal.SIGKILL
    code, printed = forks.run('tools/compare.py', *arguments, out=tmp_path / 'printed.txt')
    assert code == 0, printed
    assert '1 of 2 trainings are finished already' in printed
    assert 'Iter(train) [2/4]' not in printed and 'Iter(train) [4/4]' in printed
    assert len((tmp_path / 'out/curves.csv').read_text().splitlines()) == 1 + 2 * 4


def test_other_settings_in_the_same_folder_are_refused(finished, arguments, load_tool, monkeypatch):
    monkeypatch.chdir(ROOT)
    longer = ['5' if argument == '4' else argument for argument in arguments]
    with pytest.raises(UserError, match=r'was trained with other settings \(.*=4.* now .*=5'):
        load_tool('compare').main(longer)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ('--tasks detecton', r'--tasks detecton is not known \(did you mean detection\?\): choose'),
        (
            '--backbones vit',
            r'--backbones vit is not known \(did you mean gcvit\?\): choose from gcvit, swin',
        ),
        ('--seeds 0', r'--seeds 0 is not allowed: use an integer of at least 1'),
        ('--iterations 0', r'--iterations 0 is not allowed: use an integer of at least 1'),
        ('--out README.md', r'--out README.md is a file: use a folder'),
        ('--rounds 1', r'--rounds 1 is not allowed: use an integer of at least 2'),
    ],
)
def test_options_that_are_not_allowed(load_tool, arguments, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=message):
        load_tool('compare').main(arguments.split())


def test_remaining_time_is_estimated_by_task():
    remaining = RemainingTime([('detection', 100), ('detection', 100), ('segmentation', 100)])
    assert remaining.seconds() is None
    remaining.skip('detection', 50)  # of an earlier start
    remaining.add('detection', 50, 100.0)
    # at 2 s per iteration, of which segmentation has none yet
    assert remaining.seconds() == 200 + 200
    remaining.add('segmentation', 20, 10.0)
    assert remaining.seconds() == 200 + 40
    assert str(remaining) == 'about 4.0 min left'


# Means, spread and figures


@pytest.fixture
def curves():
    """Box AP of two backbones, with three seeds and one."""
    three = np.array([[10.0, 50.0], [20.0, 40.0], [30.0, 30.0]])
    return [
        Curves('detection', BOX_AP, 'gcvit', (0, 1, 2), (5, 10), three),
        Curves('detection', BOX_AP, 'swin', (0,), (5, 10), np.array([[60.0, 35.0]])),
    ]


def test_mean_and_spread_are_over_seeds(curves):
    gcvit, swin = curves
    assert gcvit.mean().tolist() == [20, 40] and gcvit.spread().tolist() == [10, 10]
    assert gcvit.last() == (40, 10)
    # the best validations are 50, 40 and 30
    assert gcvit.best() == (40, 10)
    assert swin.spread().tolist() == [0, 0]
    assert swin.last() == (35, 0) and swin.best() == (60, 0)


def test_figure_shows_mean_and_spread_against_iterations_and_time():
    bands = {
        'GC ViT': Band((5, 10), (20, 40), (10, 5), seconds=12.0),
        'Swin': Band((5, 10), (60, 35), (0, 0), seconds=6.0),
    }
    figure = comparison_figure('title', {'box AP': bands}, 'note')
    iterations, minutes = figure.axes
    assert (iterations.get_xlabel(), minutes.get_xlabel()) == ('iteration', 'minutes of training')
    assert iterations.get_ylabel() == 'box AP'
    assert [line.get_xydata().tolist() for line in iterations.lines] == [
        [[5, 20], [10, 40]],
        [[5, 60], [10, 35]],
    ]
    # 12 and 6 seconds per iteration
    assert [line.get_xdata().tolist() for line in minutes.lines] == [[1, 2], [0.5, 1]]
    corners = iterations.collections[0].get_paths()[0].vertices.tolist()
    assert all(corner in corners for corner in ([5, 10], [5, 30], [10, 35], [10, 45]))
    labels = [text.get_text() for text in iterations.get_legend().get_texts()]
    assert labels == ['GC ViT: 40.0 ± 5.0', 'Swin: 35.0 ± 0.0']


def test_figure_without_times_has_no_time_axis():
    bands = {'GC ViT': Band((5,), (20,), (1,)), 'Swin': Band((5,), (20,), (1,), seconds=1.0)}
    assert len(comparison_figure('title', {'mIoU': bands, 'box AP': bands}, 'note').axes) == 2


def test_report_declares_no_winner_of_equal_means():
    curves = [
        Curves('detection', BOX_AP, name, (0,), (5,), np.zeros((1, 1)))
        for name in ('gcvit', 'swin')
    ]
    text = page.report(curves, {'gcvit': 3_000_000, 'swin': 3_010_000}, {})
    assert '- box AP: GC ViT and Swin have the same, highest mean after' in text


@pytest.mark.parametrize(
    ('spread', 'verdict'),
    [
        (1.0, 'more than twice the larger standard deviation (1.0)'),
        (4.0, 'within twice the larger standard deviation (4.0), so not a clear lead'),
    ],
)
def test_report_judges_the_lead_by_the_spread(spread, verdict):
    curves = [
        Curves('detection', BOX_AP, name, (0, 1), (5,), np.array([[mean], [mean]]) + noise)
        for name, mean in (('gcvit', 40.0), ('swin', 45.0))
        for noise in [spread / 2**0.5 * np.array([[1], [-1]])]
    ]
    text = page.report(curves, {'gcvit': 3_000_000, 'swin': 3_010_000}, {})
    lead = 'Swin has the highest mean after the last iteration, 5.0 above GC ViT'
    assert f'- box AP: {lead}: {verdict}.' in text
    assert (
        f'| Swin | 3.01 M | 45.0 ± {spread} | 45.0 ± {spread} | not measured | not measured |'
        in text
    )


def test_page_is_replaced_between_its_markers(tmp_path):
    file = tmp_path / 'page.md'
    file.write_text(f'before\n{page.BEGIN}\nold\n{page.END}\nafter\n')
    page.write_page(file, 'new')
    assert file.read_text() == f'before\n{page.BEGIN}\nnew\n{page.END}\nafter\n'
    file.write_text('no markers')
    with pytest.raises(UserError, match='exactly once'):
        page.write_page(file, 'new')
    assert file.read_text() == 'no markers'
