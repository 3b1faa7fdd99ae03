"""Files that a demo writes: names, folders, videos, and files that are skipped."""

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from untrained import CONFIGS

from mmgcvit.errors import UserError
from mmgcvit.inference import demo, run_demo
from mmgcvit.inference.inferencers import Result
from mmgcvit.inference.inputs import find_inputs


class Stand:
    """An inferencer that predicts the mean color of an image, and has label maps."""

    def __init__(self, fails=None):
        self.fails = fails
        self.calls = 0

    def infer(self, path):
        self.calls += 1
        if self.fails:
            self.fails(self.calls)
        image = cv2.imread(str(path))
        if image is None:
            raise UserError(f'{path} cannot be loaded')
        mean = image.mean((0, 1)).tolist()
        labels = np.full(image.shape[:2], self.calls, np.uint8)
        return Result(image[..., ::-1], dict(mean=mean), 'gray', labels)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a demo with a stand-in for the model."""

    def run(path, stand=None, out=tmp_path / 'out'):
        monkeypatch.setattr(demo, 'load_trained', lambda *_: None)
        monkeypatch.setattr(demo, 'build_inferencer', lambda *_: stand or Stand())
        run_demo(path, 'config.py', 'checkpoint.pth', out)

    return run


def draw(path, value=0, size=(24, 32)):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((*size, 3), value, np.uint8))


def record(path, number=8, size=(31, 41), rate=12.5):
    """Write a video whose frames become brighter."""
    path.parent.mkdir(parents=True, exist_ok=True)
    code = cv2.VideoWriter_fourcc(*'MJPG')
    writer = cv2.VideoWriter(str(path), code, rate, size[::-1])
    for index in range(number):
        writer.write(np.full((*size, 3), 20 * index, np.uint8))
    writer.release()


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*.*'))


def test_equal_names_in_a_folder_do_not_collide(run, tmp_path, capsys):
    values = {'a.jpg': 10, 'a.png': 20, 'sub/a.jpg': 30, 'sub/B.JPG': 40}
    for name, value in values.items():
        draw(tmp_path / 'in' / name, value)
    for name in ('notes.txt', 'a.xml', '.hidden.png'):
        draw(tmp_path / 'x.png')
        (tmp_path / 'x.png').rename(tmp_path / 'in' / name)
    run(tmp_path / 'in')
    out = tmp_path / 'out'
    expected = [f'{name}{end}' for name in values for end in ('.json', '.labels.png', '.png')]
    assert names(out) == sorted(expected)
    for name, value in values.items():
        written = json.loads((out / f'{name}.json').read_text())
        assert written['image'] == name
        assert written['mean'] == pytest.approx([value] * 3, abs=1)
        assert written['label_map'] == f'{name.rpartition("/")[2]}.labels.png'
        assert abs(cv2.imread(str(out / f'{name}.png')).mean() - value) < 1
    printed = capsys.readouterr().out
    assert '2 other files' in printed and '1 .txt' in printed and '1 .xml' in printed
    assert '1/4 a.jpg: gray (' in printed and ' left)' in printed
    assert 'are replaced' not in printed
    run(tmp_path / 'in')
    assert f'12 existing files in {out} are replaced: a.jpg.png, ' in capsys.readouterr().out


def test_colors_and_label_maps_are_written_unchanged(run, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)
    cv2.imwrite(str(tmp_path / 'a.png'), image)
    run(tmp_path / 'a.png')
    assert np.array_equal(cv2.imread(str(tmp_path / 'out/a.png.png')), image)
    labels = cv2.imread(str(tmp_path / 'out/a.png.labels.png'), cv2.IMREAD_UNCHANGED)
    assert labels.shape == (9, 11) and (labels == 1).all()


def test_outputs_below_the_folder_of_the_inputs_are_no_inputs(run, tmp_path, capsys):
    draw(tmp_path / 'a.png')
    for _ in range(2):
        run(tmp_path)
    assert names(tmp_path / 'out') == ['a.png.json', 'a.png.labels.png', 'a.png.png']
    with pytest.raises(UserError, match='is the folder of the inputs'):
        run(tmp_path, out=tmp_path)


def test_broken_files_are_skipped_and_reported(run, tmp_path, capsys):
    draw(tmp_path / 'in/a.png')
    (tmp_path / 'in/b.png').write_text('no image')
    (tmp_path / 'in/c.avi').write_text('no video')
    (tmp_path / 'in/d.mp4').write_bytes(b'')
    draw(tmp_path / 'in/e.png')
    with pytest.raises(UserError, match='3 of 5 files were skipped') as error:
        run(tmp_path / 'in')
    assert str(tmp_path / 'out') in str(error.value)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(': ')[1].split(' ')[0] for line in lines] == [
        *('gray', 'skipped', 'skipped', 'skipped', 'gray')
    ]
    assert 'c.avi has no frames that OpenCV can read' in lines[2]
    assert {name.partition('.')[0] for name in names(tmp_path / 'out')} == {'a', 'e'}


def test_errors_of_the_libraries_for_one_image_do_not_end_the_others(run, tmp_path, capsys):
    for name in 'abc':
        draw(tmp_path / f'in/{name}.png')

    def fails(call):
        if call == 2:
            raise IndexError('of the library')

    with pytest.raises(UserError, match='1 of 3 files were skipped'):
        run(tmp_path / 'in', Stand(fails))
    assert 'b.png: skipped: IndexError: of the library (' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('error', 'first'), [(IndexError('always'), 1), (OSError(28, 'disk full', 'a.json'), 2)]
)
def test_errors_that_every_image_has_end_the_run(run, tmp_path, error, first):
    for name in 'abc':
        draw(tmp_path / f'in/{name}.png')

    def fails(call):
        if call >= first:
            raise error

    stand = Stand(fails)
    with pytest.raises(type(error)):
        run(tmp_path / 'in', stand)
    assert stand.calls == first


@pytest.mark.parametrize('size', [(30, 40), (31, 41)])
def test_a_video_keeps_its_frames_and_their_rate(run, tmp_path, size, capsys, monkeypatch):
    record(tmp_path / 'v.avi', size=size)
    monkeypatch.setattr(demo, 'SECONDS', 0)
    run(tmp_path / 'v.avi')
    out = tmp_path / 'out'
    video = cv2.VideoCapture(str(out / 'v.avi.mp4'))
    assert video.get(cv2.CAP_PROP_FPS) == 12.5
    means = []
    while (read := video.read())[0]:
        assert read[1].shape[:2] == (30, 40)
        means.append(read[1].mean())
    assert means == pytest.approx([20 * index for index in range(8)], abs=8)
    lines = [json.loads(line) for line in (out / 'v.avi.jsonl').read_text().splitlines()]
    assert [line['frame'] for line in lines] == list(range(1, 9))
    assert [line['time'] for line in lines] == pytest.approx(np.arange(8) / 12.5)
    assert [line['mean'][0] for line in lines] == pytest.approx(means, abs=8)
    labels = [cv2.imread(str(out / line['label_map']), 0) for line in lines]
    assert [each[0, 0] for each in labels] == list(range(1, 9))
    printed = capsys.readouterr().out
    assert 'v.avi: frame 3/8 (0 s left)' in printed and 'v.avi: 8 frames' in printed


@pytest.mark.parametrize('error', [KeyboardInterrupt(), UserError('of a frame')])
def test_a_video_that_is_interrupted_leaves_the_earlier_file(run, tmp_path, error):
    record(tmp_path / 'v.avi')
    out = tmp_path / 'out'
    out.mkdir()
    for name in ('v.avi.mp4', 'v.avi.jsonl'):
        (out / name).write_text('earlier')
    (out / 'v.avi.labels').mkdir()
    (out / 'v.avi.labels/00000009.png').write_text('earlier')

    def fails(call):
        if call == 5:
            assert len(list(out.glob('.*partial*'))) == 3, 'hidden while they are incomplete'
            raise error

    with pytest.raises(type(error)):
        run(tmp_path / 'v.avi', Stand(fails))
    assert [path.name for path in sorted(out.iterdir())] == [
        *('v.avi.jsonl', 'v.avi.labels', 'v.avi.mp4')
    ]
    assert (out / 'v.avi.mp4').read_text() == (out / 'v.avi.jsonl').read_text() == 'earlier'
    assert [path.name for path in (out / 'v.avi.labels').iterdir()] == ['00000009.png']


def test_label_maps_of_an_earlier_video_are_replaced(run, tmp_path):
    record(tmp_path / 'v.avi')
    earlier = tmp_path / 'out/v.avi.labels/00000099.png'
    earlier.parent.mkdir(parents=True)
    earlier.write_text('earlier')
    run(tmp_path / 'v.avi')
    names = sorted(path.name for path in earlier.parent.iterdir())
    assert names == [f'{number:08d}.png' for number in range(1, 9)]
    assert not list((tmp_path / 'out').glob('.*'))


def test_a_truncated_video_is_reported(run, tmp_path, capsys):
    record(tmp_path / 'v.avi')
    content = (tmp_path / 'v.avi').read_bytes()
    last_frame = content.rindex(b'00dc', 0, content.index(b'idx1'))
    (tmp_path / 'v.avi').write_bytes(content[:last_frame])
    run(tmp_path / 'v.avi')
    assert 'frames; the file states 8, so it may be truncated' in capsys.readouterr().out


def test_folders_behind_symlinks_are_searched(tmp_path):
    draw(tmp_path / 'elsewhere/a.png')
    (tmp_path / 'in').mkdir()
    for name in ('linked', 'again'):
        (tmp_path / 'in' / name).symlink_to(tmp_path / 'elsewhere')
    (tmp_path / 'elsewhere/loop').symlink_to(tmp_path / 'in')
    (tmp_path / 'in/loop').symlink_to('..')
    found = find_inputs(tmp_path / 'in', tmp_path / 'out')
    assert [each.name for each in found] == ['again/a.png', 'linked/a.png']


def test_a_missing_encoder_is_named(run, tmp_path, monkeypatch):
    record(tmp_path / 'v.avi')
    closed = SimpleNamespace(isOpened=lambda: False, release=lambda: None)
    monkeypatch.setattr(cv2, 'VideoWriter', lambda *_: closed)
    monkeypatch.setattr(cv2, 'VideoWriter_fourcc', lambda *_: 0, raising=False)
    with pytest.raises(UserError, match=r'v\.avi\.mp4 cannot be written: .* no encoder mp4v'):
        run(tmp_path / 'v.avi')
    assert not list((tmp_path / 'out').iterdir())


@pytest.mark.parametrize(
    ('path', 'message'),
    [
        ('nothing', 'nothing does not exist .*: pass an image, a video or a folder'),
        ('empty', r'empty has no images \(\.bmp .*\) or videos \(\.avi .*\): pass another'),
        ('others', r'others has no images .*, only other files \(2 \.txt, 1 without suffix\)'),
        ('empty.mp4', r'empty\.mp4 has no frames that OpenCV can read'),
        ('text.jpg', r'text\.jpg cannot be loaded'),
    ],
)
def test_inputs_that_are_refused(run, tmp_path, path, message):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'others').mkdir()
    for name in ('others/a.txt', 'others/b.TXT', 'others/c', 'empty.mp4', 'text.jpg'):
        (tmp_path / name).write_text('' if name == 'empty.mp4' else 'text')
    with pytest.raises(UserError, match=message):
        run(tmp_path / path)


def test_an_output_folder_that_is_a_file(run, tmp_path):
    draw(tmp_path / 'a.png')
    with pytest.raises(UserError, match='is a file: pass the name of a folder'):
        run(tmp_path / 'a.png', out=tmp_path / 'a.png')


def test_a_single_file_of_any_suffix_is_taken_for_an_image(tmp_path):
    draw(tmp_path / 'a.png')
    (tmp_path / 'a.png').rename(tmp_path / 'a')
    (found,) = find_inputs(tmp_path / 'a', tmp_path / 'out')
    assert found.name == 'a' and not found.is_video


def test_control_characters_in_names_are_escaped(run, tmp_path, capsys):
    draw(tmp_path / 'in/a.png')
    (tmp_path / 'in/a.png').rename(tmp_path / 'in/a\x1b[2J\n.png')
    run(tmp_path / 'in')
    printed = capsys.readouterr().out
    assert r'a\x1b[2J\n.png: gray' in printed and '\x1b' not in printed


@pytest.mark.parametrize('task', CONFIGS)
def test_a_real_model_and_the_default_folder(models, tmp_path, monkeypatch, task):
    monkeypatch.chdir(tmp_path)
    run_demo(models.images[0], CONFIGS[task], models.checkpoint(task), device='cpu')
    (out,) = tmp_path.glob(f'work_dirs/{CONFIGS[task].stem}/demo')
    assert {name.partition('.jpg')[2] for name in names(out)} - {'.labels.png'} == {
        *('.json', '.png')
    }
