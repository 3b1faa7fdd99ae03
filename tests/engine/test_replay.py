"""Files of failed steps that come from strangers, and what replay does with plain data."""

from collections import Counter

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.structures import InstanceData, LabelData, PixelData
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample
from toy import toy_runner

from mmgcvit.engine.plain_data import from_plain, to_plain
from mmgcvit.engine.replay import replay
from mmgcvit.errors import UserError
from mmgcvit.weights import read_checkpoint


class OwnSample(DetDataSample):
    """A user's subclass, which becomes the known class."""


def through_a_file(value, path):
    torch.save(to_plain(value), path)
    return from_plain(read_checkpoint(path))


@pytest.mark.parametrize('cls', [DetDataSample, OwnSample])
def test_detection_samples_come_back(tmp_path, cls):
    sample = cls(metainfo=dict(img_path='a.jpg', img_id=7, flip=np.bool_(True), pad=np.eye(2)))
    boxes = HorizontalBoxes(torch.rand(2, 4))
    bitmaps = BitmapMasks(np.random.randint(0, 2, (2, 5, 6), np.uint8), 5, 6)
    sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([3, 1]), masks=bitmaps)
    polygons = PolygonMasks(
        [[np.array([0.0, 0, 4, 0, 4, 4])], [np.array([1.0, 1, 2, 1, 2, 2])]], 5, 6
    )
    sample.ignored_instances = InstanceData(masks=polygons, bboxes=boxes)
    batch = through_a_file(
        {'inputs': [torch.rand(3, 5, 6)], 'data_samples': [sample]}, tmp_path / 'x'
    )
    (back,) = batch['data_samples']
    assert type(back) is DetDataSample and back.metainfo.keys() == sample.metainfo.keys()
    assert back.img_id == 7 and back.flip is True and np.array_equal(back.pad, np.eye(2))
    assert type(back.gt_instances.bboxes) is HorizontalBoxes
    assert torch.equal(back.gt_instances.bboxes.tensor, boxes.tensor)
    assert np.array_equal(back.gt_instances.masks.masks, bitmaps.masks)
    assert back.gt_instances.masks.masks.dtype == np.uint8
    assert np.array_equal(back.ignored_instances.masks.masks[1][0], polygons.masks[1][0])


def test_images_without_instances_come_back(tmp_path):
    """Their arrays are empty, and pickles of empty arrays are refused."""
    sample = DetDataSample()
    sample.gt_instances = InstanceData(
        bboxes=torch.zeros(0, 4), labels=torch.zeros(0), masks=BitmapMasks([], 5, 6)
    )
    back = through_a_file([sample], tmp_path / 'x')[0]
    assert back.gt_instances.masks.masks.shape == (0, 5, 6) and len(back.gt_instances) == 0


def test_samples_of_other_tasks_come_back(tmp_path):
    segmentation, classification = SegDataSample(), DataSample()
    segmentation.gt_sem_seg = PixelData(data=torch.randint(0, 9, (1, 4, 5)))
    classification.set_gt_label(2).set_gt_score(torch.tensor([0.0, 1.0]))
    labels = LabelData(item=torch.tensor(1))
    back = through_a_file((segmentation, classification, labels), tmp_path / 'x')
    assert [type(sample) for sample in back] == [SegDataSample, DataSample, LabelData]
    assert torch.equal(back[0].gt_sem_seg.data, segmentation.gt_sem_seg.data)
    assert back[1].gt_label.tolist() == [2] and back[1].gt_score.tolist() == [0.0, 1.0]


def test_a_view_is_written_without_the_tensor_that_it_views():
    assert to_plain(torch.zeros(100, 100)[0, :2]).untyped_storage().nbytes() == 8


@pytest.mark.parametrize(
    'plain',
    [
        {'__class__': 'subprocess.Popen', 'metainfo': {}, 'data': {}},
        {'__class__': 'mmengine.runner.Runner', 'metainfo': {}, 'data': {}},
        {'__class__': ['mmengine.structures.InstanceData']},
        {'__class__': 'mmengine.structures.InstanceData', 'metainfo': {}},
        {
            '__class__': 'mmengine.structures.InstanceData',
            'metainfo': {'__class__': 'os.system'},
            'data': {},
        },
        {
            '__class__': 'mmengine.structures.InstanceData',
            'metainfo': {},
            'data': {'_data': [1]},
        },
    ],
    ids=str,
)
def test_other_objects_are_not_built(plain):
    with pytest.raises(UserError, match=r'not built|damaged'):
        from_plain([plain])


@pytest.fixture
def edit(tmp_path):
    """Change the file of a toy's failed step, and return its path."""
    runner = toy_runner(tmp_path / 'work', bad=[1])
    runner.train()
    path = tmp_path / 'work' / 'failed_step_iter_2.pth'

    def edit(**changes):
        content = torch.load(path, weights_only=False)
        for name, value in changes.items():
            *parents, last = name.split('__')
            node = content
            for parent in parents:
                node = node[parent]
            node[last] = value
        torch.save(content, path)
        return path

    return edit


def test_a_toy_is_reproduced(edit, capsys):
    assert replay(edit(), 'cpu') is True
    printed = capsys.readouterr().out
    assert 'image: images/1.jpg (id 101), not finite' in printed
    assert 'gradient norms: backbone nan, bbox_head nan' in printed
    assert printed.endswith('\nreproduced\n') and 'different version' not in printed


def test_other_versions_are_named(edit, capsys):
    replay(edit(versions__torch='1.0', versions__mmcv3='7'), 'cpu')
    printed = capsys.readouterr().out
    assert f'different version: torch 1.0 in the training, {torch.__version__} here' in printed
    assert 'mmcv3' not in printed


def test_a_step_that_does_not_fail_again_is_said(edit, capsys):
    assert replay(edit(batch__inputs=[torch.tensor(1.0)]), 'cpu') is False
    assert capsys.readouterr().out.endswith('not reproduced\n')


@pytest.mark.parametrize(
    'changes',
    [
        dict(config__model={'type': 'subprocess.check_output', 'args': ['touch', 'RAN']}),
        dict(config__model={'type': 'os.mkdir', 'path': 'RAN'}),
        dict(config__model={'type': 'mmengine.utils.mkdir_or_exist', 'dir_name': 'RAN'}),
        dict(config__model={'type': 'mmengine.dump', 'obj': 1, 'file': 'RAN.json'}),
        dict(config__model={'type': 'ToyModel', 'part': [{'type': 'torch.hub.load', 'a': 1}]}),
        dict(config__model={'type': 'ToyModel', 'nms': {'type': 'open("RAN", "w")'}}),
        dict(config__model={'type': 'ToyModel', 'warp_mode': 'open("RAN", "w")'}),
        dict(config__optim_wrapper={'type': 'os.mkdir', 'path': 'RAN'}),
        dict(config__default_scope='stranger'),
        dict(config__model={'type': 'ToyModel', '_scope_': 'stranger'}),
        dict(config__model={'type': 'stranger.Model'}),
        dict(config__data_preprocessor={'type': 'mmdet.registry.os.mkdir'}),
    ],
    ids=str,
)
def test_a_config_that_could_execute_code_is_refused(edit, changes, tmp_path, monkeypatch):
    (tmp_path / 'stranger').mkdir()
    for name in ('__init__', 'registry'):
        (tmp_path / f'stranger/{name}.py').write_text("open('RAN', 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match='could execute code: its config has'):
        replay(edit(**changes), 'cpu')
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith('RAN')]


def test_custom_imports_need_an_option(edit, tmp_path, monkeypatch):
    (tmp_path / 'strangers_module.py').write_text("open('RAN', 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    path = edit(config__custom_imports=dict(imports=['strangers_module']))
    with pytest.raises(UserError, match=r'needs the modules strangers_module .*--allow-imports'):
        replay(path, 'cpu')
    assert not (tmp_path / 'RAN').exists()
    assert replay(path, 'cpu', allow_imports=True) is True
    assert (tmp_path / 'RAN').exists()


def test_modules_of_the_libraries_need_no_option(edit):
    assert replay(edit(config__custom_imports=dict(imports='mmpretrain.models')), 'cpu') is True


def test_the_training_prints_the_complete_command(tmp_path, log):
    work_dir = tmp_path / 'my work'
    toy_runner(work_dir, bad=[0], iterations=1, custom_imports=dict(imports=['mine'])).train()
    (line,) = [line for line in log if 'run it again' in line]
    path = work_dir / 'failed_step_iter_1.pth'
    assert line.endswith(f": python tools/replay.py '{path}' --allow-imports")


class Payload:
    def __reduce__(self):
        return open, ('RAN', 'w')


def test_a_file_with_code_is_refused(edit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match='could execute code'):
        replay(edit(batch=Payload()), 'cpu')
    assert not (tmp_path / 'RAN').exists()


@pytest.mark.parametrize('content', [{'state_dict': {}}, [1], {'format': 1}])
def test_other_files_are_named(tmp_path, content):
    torch.save(content, tmp_path / 'x.pth')
    with pytest.raises(UserError, match=r'x\.pth does not hold a failed step'):
        replay(tmp_path / 'x.pth', 'cpu')


def places(node, place=()):
    """Every entry of plain data, but only the first entries of lists, and of a config's parts."""
    if isinstance(node, dict):
        items = [(k, v) for k, v in node.items() if place != ('config',) or k in REPLAYED]
    elif isinstance(node, list | tuple):
        items = list(enumerate(node))[:3]
    else:
        return
    for key, item in items:
        yield (*place, key)
        yield from places(item, (*place, key))


def changed(node, place, value):
    """A copy of plain data with another value at a place, or without the place."""
    if not place:
        return value
    key, *rest = place
    items = list(node.items() if isinstance(node, dict) else enumerate(node))
    new = [(k, changed(v, rest, value) if k == key else v) for k, v in items]
    new = [(k, v) for k, v in new if v is not DELETED]
    return dict(new) if isinstance(node, dict) else type(node)(v for _, v in new)


REPLAYED = ('model', 'data_preprocessor', 'optim_wrapper', 'default_scope', 'custom_imports')
DELETED = object()
VALUES = [DELETED, None, 7, -1, 'x', b'x', [], ['x'], {}, {'x': 7}, {'x': None}, torch.ones(2)]
REFUSED = (
    'is damaged',
    'has no weights',
    'cannot be built',
    'do not fit',
    'could execute code',
    'needs the module',
)


def test_damaged_files_are_an_error_on_one_line_or_replayed(edit, tmp_path):
    path = edit()
    content = torch.load(path, weights_only=False)
    content['config']['custom_imports'] = {'imports': ['math']}
    content['batch']['data_samples'] = [to_plain(DetDataSample(metainfo=dict(pad=np.eye(2))))]
    wrong, ended = [], Counter()
    for place in places(content):
        for value in VALUES:
            torch.save(changed(content, place, value), path)
            try:
                ended[str(replay(path, 'cpu', allow_imports=True))] += 1
            except UserError as error:
                ended['damaged'] += 'is damaged' in str(error)
                known = str(path) in str(error) and any(text in str(error) for text in REFUSED)
                if not known or '\n' in str(error):
                    wrong.append((place, value, str(error)))
            except Exception as error:
                wrong.append((place, value, repr(error)))
    assert not wrong, '\n'.join(map(str, wrong))
    assert ended['True'] > 100 and ended['damaged'] > 300, ended


@pytest.mark.parametrize('name', ['batch', 'random_state', 'reason', 'losses', 'versions'])
def test_the_damaged_entry_is_named(edit, name):
    with pytest.raises(UserError, match=rf'the failed step is damaged \({name} is '):
        replay(edit(**{name: 7}), 'cpu')


def test_data_without_end_is_damaged(edit):
    endless = []
    endless.append(endless)
    with pytest.raises(UserError, match='the failed step is damaged'):
        replay(edit(batch=endless), 'cpu')
    with pytest.raises(UserError, match='the failed step is damaged'):
        replay(edit(config__model={'type': 'ToyModel', 'x': endless}), 'cpu')


def test_text_of_the_file_cannot_control_the_terminal(edit, capsys):
    image = {'img_path': '\x1b[2Ja.jpg\nreproduced', 'img_id': '\x9b1A'}
    path = edit(images=[image], versions__torch='\x1b]0;title\x07', losses={'\r\u202e': 1.0})
    assert replay(path, 'cpu') is True
    printed = capsys.readouterr().out
    assert all(char.isprintable() or char == '\n' for char in printed)
    assert r'image: \x1b[2Ja.jpg\nreproduced (id \x9b1A)' in printed
    assert printed.count('\nreproduced\n') == 1


def test_a_checkpoint_without_weights_is_named(edit, tmp_path):
    torch.save([1], tmp_path / 'list.pth')
    with pytest.raises(UserError, match=r'list\.pth contains no tensors'):
        replay(edit(), 'cpu', str(tmp_path / 'list.pth'))


def test_a_module_that_cannot_be_imported_is_named(edit):
    path = edit(config__custom_imports=dict(imports=['no_such_module']))
    with pytest.raises(UserError, match=r'no_such_module .*add its folder to PYTHONPATH'):
        replay(path, 'cpu', allow_imports=True)


def test_weights_of_another_model_are_named(edit):
    with pytest.raises(UserError, match=r'the weights of .* do not fit the model'):
        replay(edit(weights={'backbone.weight': torch.zeros(9)}), 'cpu')


def test_a_model_that_cannot_be_built_is_named(edit):
    with pytest.raises(UserError, match=r'cannot be built .*install the versions'):
        replay(edit(config__model={'type': 'NoSuchModel'}), 'cpu')


@pytest.mark.parametrize('device', ['gpu', 'cuda:77'])
def test_a_device_that_does_not_exist_is_named(edit, device):
    with pytest.raises(UserError, match=f'--device {device} does not work .*pass cpu, cuda'):
        replay(edit(), device)
