"""tools/demo.py: its predictions are those of tools/test.py."""

import json
import pickle
import sys
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pytest
from mmengine.utils import digit_version
from untrained import CONFIGS

from mmgcvit.engine import run_tool


@pytest.fixture
def run(load_tool, monkeypatch, capfd):
    """Run a tool in this process; return its exit code and what it printed."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, 'argv', [f'{name}.py', *map(str, arguments)])
        try:
            run_tool(load_tool(name).main)
            code = 0
        except SystemExit as end:
            code = end.code
        out, err = capfd.readouterr()
        return code, out + err

    return run


@pytest.mark.parametrize('task', CONFIGS)
def test_predictions_are_those_of_the_test(models, run, tmp_path, task):
    files = [CONFIGS[task], models.checkpoint(task)]
    # images of a batch are padded to the same size
    options = ['--work-dir', tmp_path / 'work', '--cfg-options', 'test_dataloader.batch_size=1']
    code, printed = run('test', *files, '--out', tmp_path / 'a.pkl', *options)
    assert code == 0, printed
    expected = pickle.loads((tmp_path / 'a.pkl').read_bytes())
    folder = Path(expected[0]['img_path']).parent
    out = tmp_path / 'out'
    code, printed = run('demo', folder, *files, '--out', out, '--device', 'cpu')
    assert code == 0 and printed.endswith(f'results: {out}\n')
    for sample in expected:
        path = Path(sample['img_path'])
        if path.parent != folder:
            continue  # the classifier's images are in two folders
        record = json.loads((out / f'{path.name}.json').read_text())
        assert record['image'] == path.name
        assert [record['height'], record['width']] == list(cv2.imread(str(path)).shape[:2])
        if task == 'detection':
            found = sample['pred_instances']
            assert len(record['scores']) > 10
            for name in ('labels', 'scores', 'bboxes'):
                assert record[name] == found[name].tolist()
            masks = [dict(mask, counts=mask['counts'].decode()) for mask in found['masks']]
            assert record['masks'] == masks
        elif task == 'segmentation':
            labels = cv2.imread(str(out / record['label_map']), cv2.IMREAD_UNCHANGED)
            assert np.array_equal(labels, sample['pred_sem_seg'])
        else:
            assert record['pred_scores'] == sample['pred_score'].tolist()
            assert record['pred_label'] == sample['pred_label'].item()


def test_options_and_exit_code(models, run, tmp_path):
    (tmp_path / 'in').mkdir()
    (tmp_path / 'in/a.jpg').write_bytes(models.images[0].read_bytes())
    (tmp_path / 'in/b.jpg').write_text('no image')
    files = [CONFIGS['detection'], models.checkpoint('detection')]
    option = 'model.test_cfg.rcnn.max_per_img=4'
    arguments = [tmp_path / 'in', *files, '--out', tmp_path / 'out', '--score-thr', '1']
    code, printed = run('demo', *arguments, '--cfg-options', option)
    assert code == 1
    assert printed.splitlines()[-1].startswith('error: 1 of 2 files were skipped')
    assert 'a.jpg: no instances' in printed
    assert len(json.loads((tmp_path / 'out/a.jpg.json').read_text())['scores']) == 4
    picture, image = cv2.imread(str(tmp_path / 'out/a.jpg.png')), cv2.imread(str(models.images[0]))
    if digit_version(matplotlib.__version__) < digit_version('3.11'):
        # it moves some pixels by one when mmdet draws an image, even without instances
        arguments = [tmp_path / 'in/a.jpg', *files, '--out', tmp_path / 'none']
        run('demo', *arguments, '--cfg-options', 'model.test_cfg.rcnn.score_thr=1')
        image = cv2.imread(str(tmp_path / 'none/a.jpg.png'))
    assert np.array_equal(picture, image), 'no score is that high'


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--device', 'gpu7'], '--device gpu7 does not work'),
        (['--score-thr', '7'], '--score-thr 7.0 is not allowed'),
        (['--cfg-options', 'model.nothing=1'], 'has no argument nothing'),
    ],
)
def test_arguments_that_are_refused(models, run, tmp_path, arguments, message):
    files = [models.images[0], CONFIGS['detection'], models.checkpoint('detection')]
    code, printed = run('demo', *files, '--out', tmp_path / 'out', *arguments)
    assert code == 1
    last = printed.splitlines()[-1]
    assert last.startswith('error: ') and message in last
    assert not (tmp_path / 'out').exists()
