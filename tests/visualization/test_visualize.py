"""tools/visualize.py: its files, its numbers, and what it reports of bad input."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from shape_classifier import SIZE, draw

from mmgcvit.errors import UserError
from mmgcvit.inference import load_trained
from mmgcvit.visualization import sheet
from mmgcvit.visualization.map_pictures import (
    BAR,
    MARGIN,
    MIN_WIDTH,
    TITLE,
    Panel,
    draw_panel,
    principal_colors,
)
from mmgcvit.visualization.maps import MapOptions, compute_maps

STANDARD = ['sheet.png', 'queries.png'] + [
    f'attention_stage{stage}_block{block}_{kind}.png'
    for stage in (0, 1)
    for block, kind in enumerate(('local', 'global'))
]


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    """An image of the classifier, of which 50×64 pixels are left."""
    image = draw(np.random.default_rng(3))[0]
    path = tmp_path_factory.mktemp('images') / 'a shape.png'
    cv2.imwrite(str(path), image[:50])
    return str(path)


@pytest.fixture
def visualize(load_tool, shapes, drawn, capsys):
    """Run the tool and return the names of the files that it reports."""
    main = load_tool('visualize').main

    def run(*args, image=drawn, config=shapes.config):
        main([image, config, shapes.checkpoint, *map(str, args), '--device', 'cpu'])
        return [line for line in capsys.readouterr().out.splitlines() if 'INFO' not in line]

    return run


def test_standard_files_and_their_replacement(visualize, tmp_path):
    wanted = [str(tmp_path / name) for name in [*STANDARD, 'cam_stage1_circle.png', 'maps.npz']]
    args = ('--out', tmp_path, '--cam', 'circle', '--npz')
    assert visualize(*args) == wanted
    assert sorted(map(str, tmp_path.iterdir())) == sorted(wanted)
    for path in wanted[:-1]:
        assert cv2.imread(path).shape[0] > 100
    assert visualize(*args) == [f'{path} (replaced)' for path in wanted]


def test_options_choose_the_maps(visualize, tmp_path):
    names = visualize(
        *('--stage', 1, '--block', 1, '--head', 1, '--token', 9, 44, '--no-cam', '--out', tmp_path)
    )
    assert [name.rpartition('/')[2] for name in names] == [
        'sheet.png',
        'queries.png',
        'attention_stage1_block1_global_head1_x9_y44.png',
    ]


def test_numbers(visualize, shapes, drawn, tmp_path):
    visualize('--out', tmp_path, '--npz', '--token', 60, 49, '--stage', 0, '--cam', 1)
    numbers = dict(np.load(tmp_path / 'maps.npz'))
    trained = load_trained(shapes.config, shapes.checkpoint, 'cpu')
    maps = compute_maps(trained, drawn, MapOptions(token=(60, 49), cam='rectangle'))
    for stage, query in maps.recording.queries.items():
        assert np.array_equal(numbers[f'query_stage{stage}'], query)
    for each in maps.recording.attention:
        weights, padding = numbers[f'attention_{each.name}'], numbers[f'padding_{each.name}']
        assert np.array_equal(weights, each.weights)
        # the token is in the last row of the feature map, in windows that are cut below
        assert np.allclose(weights.sum((1, 2)) + padding, 1, atol=1e-5) and padding.min() > 0
    assert np.array_equal(numbers['cam_stage1'], maps.cams[1])
    assert numbers['cam_class'] == 1 and numbers['token'].tolist() == [60, 49]
    assert numbers['image_size'].tolist() == numbers['input_size'].tolist() == [50, 64]


def test_pictures_show_attention_relative_to_uniform_attention(shapes, drawn):
    trained = load_trained(shapes.config, shapes.checkpoint, 'cpu')
    maps = compute_maps(trained, drawn, MapOptions(with_cam=False, token=(20, 30), head=1, stage=1))
    panel = sheet._attention(maps, maps.attention[1, 1])
    # the token's window has 4×4 tokens of 8 pixels
    assert panel.rectangle == (0, 0, 32, 32)
    inside = panel.values[:32, :32]
    assert np.isnan(panel.values).sum() == panel.values.size - inside.size
    assert inside.mean() == pytest.approx(1, abs=1e-4)
    weights = maps.attention[1, 1].weights[1].numpy()
    assert inside[30, 20] == pytest.approx(16 * weights[3, 2])
    # stage 0 has one head
    assert '1 head' in sheet._attention(maps, maps.attention[0, 1]).title


@pytest.mark.parametrize('token', [None, (20, 30)])
def test_titles_count_both_kinds_of_padding(shapes, drawn, token):
    trained = load_trained(shapes.config, shapes.checkpoint, 'cpu')
    maps = compute_maps(trained, drawn, MapOptions(with_cam=False, token=token))
    each = maps.attention[0, 1]
    share = sheet._padding_share(maps, each, each.weights)
    if token is None:
        # 13×16 tokens: the last row of windows has one row of tokens, the others have no padding
        last = float(each.padding[:, 12].mean())
        assert share == pytest.approx(last / 4, abs=1e-6) and last > 0
    else:
        assert share == pytest.approx(float(each.padding.mean()), abs=1e-6)
    # as if the pipeline had padded an image of 24×64 pixels
    maps = replace(maps, placement=replace(maps.placement, seen_size=(24, 64)))
    below = float(each.weights[:, 6:].sum((1, 2)).mean()) / (16 if token is None else 1)
    padded = sheet._padding_share(maps, each, each.weights)
    assert padded == pytest.approx(share + below, abs=1e-6) and below > 0.05


def test_the_classifier_gives_the_attention(shapes, drawn):
    """The recorded weights are those of the tool's own forward pass of the complete model."""
    trained = load_trained(shapes.config, shapes.checkpoint, 'cpu')
    maps = compute_maps(trained, drawn, MapOptions(with_cam=False))
    inputs = trained.model.data_preprocessor(trained.load_batch(drawn))['inputs']
    with torch.no_grad():
        wanted = trained.model.backbone(inputs)
    assert torch.equal(maps.recording.outputs[0], wanted[0])
    assert maps.image.shape == (50, SIZE, 3)
    # OpenMMLab loads BGR, and pictures are RGB
    assert np.array_equal(maps.image[..., ::-1], cv2.imread(drawn))


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (('--stage', 2), '--stage 2 is not in this network: choose from 0, 1'),
        (('--block', 0), '--block 0 needs --stage'),
        (('--stage', 0, '--block', 2), '--block 2 is not in stage 0: choose from 0, 1'),
        (('--stage', 0, '--block', 0, '--type', 'global'), 'the global blocks are 1'),
        (('--head', 1), '--head 1 is not in stage 0: choose from 0, or another'),
        (('--score-thr', 7), '--score-thr 7.0 is not allowed'),
        (('--score-thr', 'nan'), '--score-thr nan is not allowed'),
        (('--token', 64, 3), '--token 64 3 is outside .* X from 0 to 63 and Y from 0 to 49'),
        (('--token', 3, -1), '--token 3 -1 is outside'),
        (('--cam', 'star'), '--cam star is not a class of this model'),
    ],
)
def test_options_that_do_not_fit(visualize, tmp_path, args, message):
    with pytest.raises(UserError, match=message):
        visualize(*args, '--out', tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_an_image_that_cannot_be_opened(visualize, tmp_path):
    (tmp_path / 'text.png').write_text('no image')
    (tmp_path / 'empty.png').write_text('')
    for name, message in (
        ('text.png', r'cannot be loaded .*\(it is damaged or not an image\)'),
        ('empty.png', r'cannot be loaded .*\(the file is empty\)'),
        ('none.png', 'is not a file'),
    ):
        with pytest.raises(UserError, match=f'{name} {message}'):
            visualize('--out', tmp_path / 'out', image=str(tmp_path / name))
    assert not (tmp_path / 'out').exists()


def test_a_file_as_the_output_folder(visualize, tmp_path):
    (tmp_path / 'out').write_text('kept')
    with pytest.raises(UserError, match='out is a file: pass the path of a folder'):
        visualize('--out', tmp_path / 'out')
    assert (tmp_path / 'out').read_text() == 'kept'


def test_a_pipeline_that_does_not_record_its_sizes(visualize, shapes, tmp_path):
    resize = [
        dict(type='LoadImageFromFile'),
        dict(type='NumpyToPIL'),
        dict(type='torchvision/Resize', size=(40, 40)),
        dict(type='PILToNumpy'),
        dict(type='PackInputs'),
    ]
    config = tmp_path / 'resized.py'
    config.write_text(
        f'_base_ = {shapes.config!r}\ntest_dataloader = dict(dataset=dict(pipeline={resize}))'
    )
    with pytest.raises(UserError, match=r'gives 40×40 pixels .* img_shape=\(50, 64\)'):
        visualize('--out', tmp_path / 'out', config=str(config))


def test_a_checkpoint_of_another_model(load_tool, shapes, drawn, tmp_path):
    main = load_tool('visualize').main
    state = torch.load(shapes.checkpoint)['state_dict']
    state['head.fc.weight'] = state['head.fc.weight'][:2]
    torch.save({'state_dict': state}, tmp_path / 'two.pth')
    with pytest.raises(UserError, match=r'head\.fc\.weight'):
        main([drawn, shapes.config, str(tmp_path / 'two.pth'), '--out', str(tmp_path / 'out')])
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('size', [(30, 40), (300, 500)])
def test_pictures_have_the_resolution_of_the_image(size):
    """The pixels of a map are where its values are, in a multiple of the image's size."""
    height, width = size
    values = np.zeros(size, np.float32)
    values[height // 3 : height // 2, width // 4 : width // 2] = 1
    values[:, -1] = np.nan
    image = np.full((*size, 3), 128, np.uint8)
    png = draw_panel(image, Panel('a title', values, 'a unit'))
    picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR).astype(int)
    factor = -(-MIN_WIDTH // width)
    assert picture.shape[:2] == (TITLE + factor * height + MARGIN, MARGIN + factor * width + BAR)
    drawn = picture[TITLE : TITLE + factor * height, MARGIN : MARGIN + factor * width]
    drawn = drawn.reshape(height, factor, width, factor, 3)
    assert (drawn == drawn[:, :1, :, :1]).all(), 'each pixel is a square'
    drawn = drawn[:, 0, :, 0]
    inside = values == 1
    assert (drawn[inside] == drawn[inside][0]).all()
    assert (drawn[values == 0] == drawn[0, 0]).all() and (drawn[inside][0] != drawn[0, 0]).any()
    assert (drawn[:, -1] == 128).all(), 'no color without a value'


def test_colors_of_queries():
    """The first component is red; equal features have equal colors."""
    features = np.zeros((2, 3, 5))
    features[0, :, 1] = [0, 2, 4]
    features[1, :, 3] = [1, 0, 0]
    colors = principal_colors(features)
    assert colors.shape == (2, 3, 3) and colors.min() == 0 and colors.max() == 1
    assert colors[0, 2, 0] == 1 and np.allclose(colors[1, 1], colors[0, 0])
    assert np.allclose(np.diff(colors[0, :, 0]), np.diff(colors[0, :, 0])[0], atol=1e-6)
    assert (colors[..., 2] == 0).all() or np.ptp(colors[..., 2]) == 1
    assert (principal_colors(np.ones((2, 2, 4))) == 0).all()


def test_pictures_of_the_docs_have_their_commands(load_tool):
    tool = load_tool('make_pictures')
    page = ' '.join((tool.ROOT / 'docs/visualization.md').read_text().split())
    pictures = set()
    for options, made in tool.PICTURES.items():
        command = f'`python tools/visualize.py IMAGE CONFIG CHECKPOINT {options}'.strip() + '`'
        for name, picture in made.items():
            _, _, after = page.partition(f'{command}, `{name}`:')
            assert after.strip().partition('](')[2].startswith(f'images/{picture})'), command
            pictures.add(picture)
    for name, value in (('IMAGE', tool.IMAGE), ('CONFIG', tool.CONFIG)):
        assert f'`{name}` is `{value}`' in page
    files = {path.name: path.stat().st_size for path in tool.FOLDER.glob('*.png')}
    assert pictures <= set(files)
    assert max(files[name] for name in pictures) < 150_000


def test_pictures_of_the_docs_need_the_quickstart(load_tool, monkeypatch, tmp_path):
    tool = load_tool('make_pictures')
    monkeypatch.setattr(tool, 'ROOT', tmp_path)
    with pytest.raises(UserError, match=r'has no checkpoint: run bash tools/quickstart\.sh first'):
        tool.main([])


def test_rounded_colors_are_close(load_tool):
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    png = load_tool('make_pictures').with_few_colors(cv2.imencode('.png', image)[1].tobytes())
    rounded = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert np.abs(rounded.astype(int) - image).max() <= 5 and len(np.unique(rounded)) == 32
