"""Folders that cannot become a project: one line with the remedy, and nothing is written."""

import errno
import json
from pathlib import PurePosixPath
from types import SimpleNamespace

import layouts
import pytest
import torch
from layouts import image
from PIL import Image

from mmgcvit import GCViT
from mmgcvit.engine import load_config
from mmgcvit.errors import UserError
from mmgcvit.projects import new_project
from mmgcvit.projects.folder import Folder
from mmgcvit.projects.splits import divide

BOX = '0 0.5 0.5 0.5 0.5'


def yolo(folder, *labels, names='[a, b]'):
    """Write one image per text; None leaves the label file out."""
    for number, text in enumerate(labels):
        image(folder / f'images/{number}.png')
        if text is not None:
            layouts.write(folder / f'labels/{number}.txt', text)
    if names:
        layouts.write(folder / 'data.yaml', f'names: {names}')


def label_maps(folder, *colors, mode='L', size=(8, 6), suffix='.png'):
    for number, color in enumerate(colors):
        image(folder / f'images/{number}.png')
        image(folder / f'masks/{number}{suffix}', size, mode, color)


def coco(folder, file='annotations.json', names=(0, 1), **changes):
    images = [dict(id=n, file_name=f'{n}.png', width=8, height=6) for n in names]
    box = dict(bbox=[1, 1, 3, 3], area=9, iscrowd=0, category_id=1)
    objects = [dict(box, id=n + 1, image_id=n) for n in names]
    content = dict(images=images, annotations=objects, categories=[dict(id=1, name='a')])
    for n in names:
        image(folder / f'pictures/{n}.png')
    layouts.write(folder / file, json.dumps(content | changes))


def both_splits(folder):
    coco(folder, 'train.json')
    coco(folder, 'val.json', (1, 2))


def linked_splits(folder):
    for split in ('train', 'val'):
        image(folder / f'images/{split}/{split}.png')
        layouts.write(folder / f'labels/{split}/{split}.txt', BOX)
    (folder / 'images/val/val.png').unlink()
    (folder / 'images/val/val.png').symlink_to(folder / 'images/train/train.png')


def soft_edges(folder):
    (folder / 'masks').mkdir(parents=True)
    for number in range(2):
        size = (25, 20)
        image(folder / f'images/{number}.png', size)
        mask = Image.new('L', size, 255 * number)
        for value in range(1, 40):
            mask.putpixel((value % 25, value // 25), value)
        mask.save(folder / f'masks/{number}.png')


def palettes_in_other_orders(folder):
    label_maps(folder, 0, 1, 1, mode='P')
    red_last, red_first = [0, 0, 0, 255, 0, 0], [255, 0, 0, 0, 0, 0]
    for number, palette in enumerate((red_last, red_first, red_last)):
        mask = Image.open(folder / f'masks/{number}.png')
        mask.putpalette(palette)
        mask.save(folder / f'masks/{number}.png')


def two_kinds(folder):
    coco(folder, names=(5, 6))
    yolo(folder, BOX)


def other_names(folder, pattern, text=None):
    """Write images/pier*.jpg, and annotations of other names, or of these in other folders."""
    for number in range(3):
        image(folder / f'images/pier{number}.jpg')
        path = folder / pattern.format(number)
        if text is None:
            image(path, mode='L', color=number)
        else:
            layouts.write(path, text)


def folders_and_labels(folder):
    for number in range(4):
        image(folder / f'{"ab"[number % 2]}/{number}.png')
    layouts.write(folder / 'labels/quay.txt', BOX)


FAULTS = {
    'label maps of other names': (
        lambda d: other_names(d, 'masks/quay{}.png'),
        r'no label map in .*data has the name of an image \(3 label maps, for example '
        r'masks/quay0\.png; 3 images, for example images/pier0\.jpg\): give each label map the '
        r'name of its image, such as pier0\.png for pier0\.jpg\. The endings _mask, .* too$',
    ),
    'label maps in other folders': (
        lambda d: other_names(d, 'masks/week/pier{}_mask.png'),
        r'no label map in .* corresponds to that of its image \(for example '
        r'masks/week/pier0_mask\.png and images/pier0\.jpg\): put both into folders of',
    ),
    'YOLO labels of other names': (
        lambda d: other_names(d, 'labels/quay{}.txt', BOX),
        r'no \.txt file in .* \(3 \.txt files, .*such as pier0\.txt for pier0\.jpg$',
    ),
    'Pascal VOC of other names': (
        lambda d: other_names(d, 'xml/quay{}.xml', '<annotation/>'),
        r'no \.xml file in .* \(3 \.xml files, .*such as pier0\.xml for pier0\.jpg$',
    ),
    'labels of other names beside folders': (
        folders_and_labels,
        r'of 2 classes .* not read\. No \.txt file in .*\(1 \.txt file, .*pass --format folders',
    ),
    'nothing': (
        lambda d: image(d / 'a.png'),
        r'has no annotations in a known format \(1 \.png\)\. Add one of these: a \.json file',
    ),
    'labelme': (
        lambda d: (image(d / 'a.png'), layouts.write(d / 'a.json', '{"shapes": []}')),
        r'a\.json is in the format of LabelMe: convert such files to COCO',
    ),
    'LabelMe in two folders': (
        lambda d: [
            (
                image(d / f'{day}/{day}.png'),
                layouts.write(d / f'{day}/{day}.json', '{"shapes": []}'),
            )
            for day in ('monday', 'tuesday')
        ],
        r'of 2 classes .*monday\.json is in the format of LabelMe: .* pass --format folders',
    ),
    'Supervisely': (
        lambda d: [
            (image(d / f'{n}/img/{n}.png'), layouts.write(d / f'{n}/ann/{n}.png.json', '{}'))
            for n in ('ds0', 'ds1')
        ],
        r'ds0/ann/ds0\.png\.json belongs to an image by its name: export the annotations as COCO',
    ),
    'CVAT': (
        lambda d: (
            image(d / '0.png'),
            layouts.write(d / 'annotations.xml', '<a><image id="0"/></a>'),
        ),
        r'annotations\.xml is in the format of CVAT: export the annotations as COCO',
    ),
    'no annotations': (
        lambda d: coco(d, annotations=[]),
        r'annotations\.json lists images, but no annotations with a category_id\.',
    ),
    'one broken split': (
        lambda d: (
            coco(d / 'valid', '_annotations.coco.json'),
            image(d / 'train/7.png'),
            layouts.write(d / 'train/_annotations.coco.json', '{"images": [{"id": 7, "file_'),
        ),
        r'train/_annotations\.coco\.json is not JSON \(.*\): replace the file by a complete copy',
    ),
    'broken JSON': (
        lambda d: (image(d / 'a.png'), layouts.write(d / 'a.json', '{"images": [')),
        r'skipped a\.json, which is not JSON',
    ),
    'two kinds': (
        two_kinds,
        r'COCO annotations \(annotations\.json\), YOLO labels \(data\.yaml\)\): choose one with '
        '--format coco or --format yolo',
    ),
    'pixels': (
        lambda d: yolo(d, BOX, '\n0 412 30 20 10\n' + BOX),
        r'^labels/1\.txt:2: coordinates outside the range 0 to 1: divide x and width by',
    ),
    'class': (
        lambda d: yolo(d, BOX, '2 0.5 0.5 0.5 0.5'),
        r'labels/1\.txt:1: class 2, but there are 2 names, for classes 0 to 1',
    ),
    'columns': (
        lambda d: yolo(d, BOX + ' 0.9', BOX + ' 0.8'),
        r'labels/0\.txt:1, labels/1\.txt:1: 6 columns, but a box has 5',
    ),
    'text': (
        lambda d: yolo(d, BOX, 'cat 0.5 0.5 0.5 0.5'),
        r'labels/1\.txt:1: values that are not numbers',
    ),
    'empty labels': (lambda d: yolo(d, '', ''), 'none of the 2 images .* has an annotated object'),
    'no image of a label': (
        lambda d: (image(d / 'x.png'), layouts.write(d / 'labels/y.txt', BOX), yolo(d)),
        'no .txt file in .* has the name of an image',
    ),
    'one image': (
        lambda d: yolo(d, BOX),
        r'images in .* is 1, and a training needs at least 2',
    ),
    'one image in both splits': (
        both_splits,
        r'in both the training and the validation split \(1, for example pictures/1\.png\)',
    ),
    'the same image in both splits': (
        linked_splits,
        r'images/val/val\.png, the same file as images/train/train\.png\): remove',
    ),
    'no categories': (lambda d: coco(d, categories=[]), 'has no list of categories'),
    'other categories': (
        lambda d: (
            coco(d, 'train.json'),
            coco(d, 'val.json', (2, 3), categories=[dict(id=1, name='b')]),
        ),
        r"val\.json has objects of 'b', which is not a category of train\.json \(a\)",
    ),
    'no image of COCO': (
        lambda d: coco(d, images=[dict(id=0, file_name='x/9.png')]),
        r"none of the 1 images listed in annotations\.json exists in .*'x/9\.png'",
    ),
    'ambiguous image': (
        lambda d: (coco(d), image(d / 'other/1.png')),
        r"'1\.png' in annotations\.json is ambiguous: it may be other/1\.png or pictures/1\.png",
    ),
    'image with a list as id': (
        lambda d: coco(d, images=[dict(file_name='0.png', id=[0])]),
        r"entry 0 of 'images' in annotations\.json has no file_name or no unique id",
    ),
    'category with a list as id': (
        lambda d: coco(d, categories=[dict(id=[1], name='a')]),
        'has no list of categories with id and name',
    ),
    'image without id': (
        lambda d: coco(d, images=[dict(file_name='0.png')]),
        r"entry 0 of 'images' in annotations\.json has no file_name or no unique id",
    ),
    'ids of other types': (
        lambda d: coco(d, annotations=[dict(image_id='0', category_id=1, bbox=[1, 1, 3, 3])]),
        r"skipped annotations of images that are not listed .*: 1, for example image_id '0'\): ",
    ),
    'image with two ids': (
        lambda d: coco(d, images=[dict(id=n, file_name='0.png') for n in (0, 1)]),
        r'annotations\.json lists pictures/0\.png twice, as the images 0 and 1: merge',
    ),
    'two files': (
        lambda d: (coco(d), coco(d, 'more.json')),
        r'annotations\.json and more\.json of .* both contain annotations: merge them',
    ),
    'other size': (
        lambda d: label_maps(d, 0, 1, size=(6, 8)),
        r'masks/0\.png has 6×8 pixels, and its image images/0\.png has 8×6',
    ),
    'lossy label maps': (
        lambda d: label_maps(d, 0, 1, suffix='.jpg'),
        r'masks/0\.jpg is a \.jpg file, in which compression changes the values',
    ),
    'one value': (
        lambda d: label_maps(d, 7, 7),
        'have the value 7: a segmentor needs at least two',
    ),
    'soft edges': (
        soft_edges,
        r'have 41 values, but 92% of the pixels are 0 or 255: if these are binary masks with soft',
    ),
    'names': (
        lambda d: (label_maps(d, 5, 9), layouts.write(d / 'classes.txt', 'a\nb\nc')),
        r'classes\.txt has 3 names, but the label maps have 2 values \(5, 9\)',
    ),
    'large values': (lambda d: label_maps(d, 0, 300, mode='I;16'), 'has values from 300 to 300'),
    'gray levels and colors': (
        lambda d: (label_maps(d, 0, 2), label_maps(d / 'more', (9, 0, 0), mode='RGB')),
        r'masks/1\.png contains gray levels, and more/masks/0\.png colors, so that',
    ),
    'gray levels and a palette': (
        lambda d: (label_maps(d, 1, mode='P'), label_maps(d / 'more', 255, 0)),
        r'masks/0\.png contains the indices of a palette, and more/masks/0\.png gray levels',
    ),
    'color without a name': (
        lambda d: (
            label_maps(d, (0, 0, 0), (0, 9, 0), mode='RGB'),
            layouts.write(d / 'labelmap.txt', '# label\na:0,0,0::\nb:9,0,0::'),
        ),
        r'the label maps have the color 000900, which labelmap\.txt does not list: add it',
    ),
    'value without a name': (
        lambda d: (
            label_maps(d, 0, 255, 7),
            layouts.write(d / '_classes.csv', 'Pixel Value, Class\n0, a\n3, b'),
        ),
        r'the label maps have the value 7, which _classes\.csv does not list',
    ),
    'several classes of an image': (
        lambda d: (
            image(d / 'train/0.png'),
            layouts.write(d / 'train/_classes.csv', 'filename, a, b\n0.png, 1, 1'),
        ),
        r'train/_classes\.csv assigns several classes to an image, which is not supported\. Add',
    ),
    'table': (
        lambda d: (image(d / '0.png'), layouts.write(d / 'labels.csv', '0.png,a')),
        r'labels\.csv is a table, which is not read\. Add one of these',
    ),
    'two label maps': (
        lambda d: (label_maps(d, 0, 1), image(d / 'masks/1_mask.png', mode='L')),
        r'masks/1\.png and masks/1_mask\.png both belong to images/1\.png',
    ),
    'two images of one label': (
        lambda d: (yolo(d, BOX, BOX), image(d / 'images/1.bmp')),
        r'images/1\.bmp and images/1\.png both belong to labels/1\.txt',
    ),
    'one class': (
        lambda d: [image(d / f'{n}/only/{n}.png') for n in ('train', 'val')],
        r'has no annotations in a known format',
    ),
    'label maps of other names in folders of splits': (
        lambda d: [
            image(d / f'{split}{end}/{split}{len(end)}.png')
            for split in ('train', 'val')
            for end in ('', '_labels')
        ],
        r'no label map in .* has the name of an image \(2 label maps, .*; 2 images, ',
    ),
    'images and masks named after a split': (
        lambda d: [image(d / f'{name}/{name}.png') for name in ('train', 'masks-train')],
        r'\(1 label map, for example masks-train/masks-train\.png; 1 image, for example train/',
    ),
    'names that differ': (
        lambda d: (
            yolo(d, BOX, BOX, names=None),
            layouts.write(d / 'labels/classes.txt', 'a\nb'),
            layouts.write(d / 'more/classes.txt', 'b\na'),
        ),
        r'labels/classes\.txt and more/classes\.txt of .* list different classes \(a, b; b, a\)',
    ),
    'names in Latin-1': (
        lambda d: (
            yolo(d, BOX, BOX, names=None),
            (d / 'classes.txt').write_bytes('Äpfel'.encode('latin-1')),
        ),
        r'classes\.txt is not in UTF-8 \(.*: save it as UTF-8',
    ),
    'list of images in Latin-1': (
        lambda d: (
            yolo(d, BOX, BOX, names='[a]\ntrain: train.txt'),
            (d / 'train.txt').write_bytes('images/Bär.png'.encode('latin-1')),
        ),
        r'train\.txt is not in UTF-8',
    ),
    'palettes that differ': (
        palettes_in_other_orders,
        r'value 1 has the color 000000 in masks/1\.png and ff0000 in masks/2\.png, of which',
    ),
    'broken image': (
        lambda d: (yolo(d, BOX, BOX), (d / 'images/1.png').write_text('x')),
        r'images/1\.png cannot be read \(UnidentifiedImageError',
    ),
    'broken XML': (
        lambda d: (image(d / 'a.png'), layouts.write(d / 'a.xml', '<annotation>')),
        r'a\.xml is not an annotation of Pascal VOC \(ParseError',
    ),
    'names without numbers': (
        lambda d: yolo(d, BOX, BOX, names='{a: 0}'),
        r'names in data\.yaml has a key that is not a class index',
    ),
    'object without box': (
        lambda d: (
            image(d / 'a.png'),
            layouts.write(d / 'a.xml', '<a><object><name>b</name><bndbox/></object></a>'),
        ),
        r'a\.xml is not an annotation of Pascal VOC \(ValueError: no bndbox/xmin\): each',
    ),
    'empty box': (
        lambda d: (
            image(d / 'a.png'),
            layouts.write(
                d / 'a.xml',
                '<a><object><name>b</name><bndbox><xmin>4</xmin><ymin>1</ymin><xmax>4</xmax>'
                '<ymax>2</ymax></bndbox></object></a>',
            ),
        ),
        r'a\.xml is not an annotation of Pascal VOC \(ValueError: box 4, 1, 4, 2 is empty\)',
    ),
    'broken YAML': (
        lambda d: yolo(d, BOX, BOX, names='[a'),
        r'data\.yaml is not YAML \(ParserError',
    ),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_folder(tmp_path, fault):
    create, message = FAULTS[fault]
    data = tmp_path / 'data'
    create(data)
    before = files(data)
    with pytest.raises(UserError, match=message) as error:
        new_project(tmp_path / 'new', data)
    assert len(str(error.value).splitlines()) == 1
    assert files(data) == before
    assert [path.name for path in tmp_path.iterdir()] == ['data']


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob('*')}


def test_all_faults_of_labels_are_listed(tmp_path):
    yolo(tmp_path / 'data', BOX, '0 3 3 3 3', '5 0.5 0.5 0.5 0.5', '1 2')
    with pytest.raises(UserError) as error:
        new_project(tmp_path / 'new', tmp_path / 'data')
    assert len(str(error.value).splitlines()) == 3


@pytest.mark.parametrize(
    ('project', 'message'),
    [
        ('data/new', 'is inside the data folder'),
        ('data', 'is inside the data folder'),
        ('file', 'file is a file: pass a new folder'),
        ('file/new', 'file is a file: pass a new folder'),
        ('full', 'full is not empty: pass a new folder'),
        ('empty', 'empty is the current folder: pass the name of a new folder'),
    ],
)
def test_project_that_cannot_be_there(tmp_path, monkeypatch, project, message):
    yolo(tmp_path / 'data', BOX, BOX)
    layouts.write(tmp_path / 'full/file', '')
    layouts.write(tmp_path / 'file', '')
    (tmp_path / 'empty').mkdir()
    monkeypatch.chdir(tmp_path / 'empty')
    with pytest.raises(UserError, match=message):
        new_project(tmp_path / project, tmp_path / 'data')


def test_full_disk_leaves_nothing(tmp_path, monkeypatch):
    label_maps(tmp_path / 'data', 0, 255)

    def save(self, path):
        path.write_text('half')
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(Image.Image, 'save', save)
    with pytest.raises(UserError, match=r'new was not written \(.*No space left.*\): correct the'):
        new_project(tmp_path / 'new', tmp_path / 'data')
    assert [path.name for path in tmp_path.iterdir()] == ['data']


def test_data_that_are_no_folder(tmp_path):
    layouts.write(tmp_path / 'file', '')
    for name, message in (('none', 'none does not exist: pass'), ('file', 'file is a file: pass')):
        with pytest.raises(UserError, match=message):
            new_project(tmp_path / 'new', tmp_path / name)


def test_choice_of_format_and_task(tmp_path, capsys):
    two_kinds(tmp_path / 'data')
    new_project(tmp_path / 'new', tmp_path / 'data', form='coco')
    assert 'COCO annotations' in capsys.readouterr().out
    for task, form, message in (
        ('segmentation', None, '--task segmentation does not match .* pass --task detection'),
        ('segmentation', 'coco', '--task segmentation does not match .* pass --task detection'),
        (
            None,
            'masks',
            r'--format masks: .* has no such annotations\. It has COCO .* pass --format coco',
        ),
    ):
        with pytest.raises(UserError, match=message):
            new_project(tmp_path / 'other', tmp_path / 'data', task, form)
    with pytest.raises(UserError, match='--epochs must be at least 1, got 0'):
        new_project(tmp_path / 'other', tmp_path / 'data', form='coco', epochs=0)


def test_format_that_matches_no_image(tmp_path):
    other_names(tmp_path / 'data', 'masks/quay{}.png')
    with pytest.raises(UserError, match=r'^no label map in .* has the name of an image'):
        new_project(tmp_path / 'new', tmp_path / 'data', form='masks')


@pytest.mark.parametrize(
    ('pattern', 'text', 'what'),
    [
        ('masks/pier{}.png', None, 'label maps'),
        ('labels/pier{}.txt', BOX, 'label files'),
        (
            'xml/pier{}.xml',
            '<annotation><object><name>a</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>4</xmax>'
            '<ymax>4</ymax></bndbox></object></annotation>',
            '.xml files',
        ),
    ],
)
def test_annotations_without_an_image_are_listed(tmp_path, capsys, pattern, text, what):
    other_names(tmp_path / 'data', pattern, text)
    first = tmp_path / 'data' / pattern.format(0)
    first.rename(first.with_name(f'quay{first.suffix}'))
    new_project(tmp_path / 'new', tmp_path / 'data')
    found = ' '.join(notes(capsys))
    assert 'images without a' in found and ': 1, for example images/pier0.jpg' in found
    assert f'skipped {what} without an image of their name: 1, for example ' in found
    assert f'{first.parent.name}/quay{first.suffix}' in found


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """A checkpoint of the smallest backbone."""
    path = tmp_path_factory.mktemp('weights') / 'mine.pth'
    torch.save(GCViT(arch='xxtiny').half().state_dict(), path)
    return path


@pytest.mark.parametrize(
    ('given', 'arch', 'message'),
    [
        ('nowhere.pth', 'xxtiny', r'/here/nowhere\.pth does not exist: specify the path or URL'),
        ('file:///nowhere.pth', 'xxtiny', r'^/nowhere\.pth does not exist'),
        ('text.pth', 'xxtiny', r'text\.pth'),
        ('mine.pth', 'tiny', r'mine\.pth.*arch'),
    ],
)
def test_weights_are_checked_before_anything_is_written(
    tmp_path, monkeypatch, weights, given, arch, message
):
    here = tmp_path / 'here'
    layouts.write(here / 'text.pth', 'epoch 1')
    (here / 'mine.pth').symlink_to(weights)
    yolo(tmp_path / 'data', BOX, BOX)
    monkeypatch.chdir(here)
    with pytest.raises(UserError, match=message):
        new_project(tmp_path / 'new', tmp_path / 'data', arch=arch, weights=given)
    assert not (tmp_path / 'new').exists()
    config = new_project(tmp_path / 'new', tmp_path / 'data', arch='xxtiny', weights='mine.pth')
    monkeypatch.chdir(tmp_path)
    assert load_config(config).model.backbone.init_cfg.checkpoint == str(here / 'mine.pth')
    url = weights.as_uri()
    config = new_project(tmp_path / 'other', tmp_path / 'data', arch='xxtiny', weights=url)
    assert load_config(config).model.backbone.init_cfg.checkpoint == url


def test_numbers_of_one_have_the_singular(tmp_path, capsys):
    yolo(tmp_path / 'boxes', BOX, BOX, None, names='[a]')
    config = new_project(tmp_path / 'new', tmp_path / 'boxes', epochs=1)
    printed = capsys.readouterr().out
    assert 'detection: 1 class, 1 image for training, 1 for validation\n' in printed
    assert 'Faster R-CNN with GC ViT (tiny), 1 epoch: ' in printed
    assert 'on 1 image.\n' in config.read_text()
    assert '# 1 image, 2 per batch: 1 iteration per epoch\n' in config.read_text()
    label_maps(tmp_path / 'maps', 0, 1, 2)
    config = new_project(tmp_path / 'other', tmp_path / 'maps', epochs=1)
    assert '3 classes, 2 images for training' in capsys.readouterr().out
    assert 'max_iters = 3  # 1 epoch\n' in config.read_text()


def notes(capsys):
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith('note: ')]


def test_images_without_objects_are_used_and_images_without_label_files_are_not(tmp_path, capsys):
    data = tmp_path / 'data'
    yolo(data, BOX, BOX + '\n' + BOX.replace('0 ', '1 ', 1), '', None, BOX, BOX)
    layouts.write(data / 'labels/9.txt', BOX)
    layouts.write(data / 'labels/test/1.txt', BOX)
    config = new_project(tmp_path / 'new', data)
    assert 'filter_cfg=dict(filter_empty_gt=False' in config.read_text()
    shown = notes(capsys)
    assert any('skipped images without a label file' in n and 'images/3.png' in n for n in shown)
    assert any('label files without an image of their name: 2, ' in n for n in shown)
    splits = [
        json.loads((tmp_path / f'new/annotations/{s}.json').read_text()) for s in ('train', 'val')
    ]
    assert [len(split['images']) for split in splits] == [4, 1]


@pytest.mark.parametrize('form', ['yolo', 'voc'])
def test_label_maps_beside_annotations_of_objects_are_not_images(tmp_path, form):
    data = tmp_path / 'data'
    yolo(data, *4 * [BOX])
    for number in range(4):
        image(data / f'masks/{number}.png', mode='L', color=number % 2)
        box = '<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>4</xmax><ymax>4</ymax></bndbox>'
        xml = f'<a><object><name>b</name>{box}</object></a>'
        layouts.write(data / f'Annotations/{number}.xml', xml)
    new_project(tmp_path / 'new', data, form=form)
    splits = [
        json.loads((tmp_path / f'new/annotations/{s}.json').read_text()) for s in ('train', 'val')
    ]
    names = sorted(each['file_name'] for split in splits for each in split['images'])
    assert names == [f'images/{number}.png' for number in range(4)]


@pytest.mark.parametrize(
    ('folders', 'classes', 'number'),
    [
        (['train/a', 'train/b', 'val/a', 'val/b', 'unlabeled'], ('a', 'b'), 2),
        (['train', 'bus', 'car'], ('bus', 'car', 'train'), 5),
        (['with_mask', 'without_mask'], ('with_mask', 'without_mask'), 3),
    ],
)
def test_folders_of_splits_and_folders_of_classes(tmp_path, capsys, folders, classes, number):
    for name in folders:
        for index in range(1 if '/' in name else 2):
            image(tmp_path / f'data/{name}/{index}.png')
    config = new_project(tmp_path / 'new', tmp_path / 'data')
    assert f'classes = {classes}\n' in config.read_text()
    assert len((tmp_path / 'new/annotations/train.txt').read_text().splitlines()) == number
    assert f'folders of {len(classes)} classes ({", ".join(classes)})' in capsys.readouterr().out


def test_validation_without_objects_is_the_validation(tmp_path):
    coco(tmp_path / 'data', 'train.json')
    coco(tmp_path / 'data', 'val.json', (2, 3), annotations=[])
    text = new_project(tmp_path / 'new', tmp_path / 'data').read_text()
    assert "ann_file='train.json'" in text and "ann_file='val.json'" in text


def test_null_in_annotations_is_completed(tmp_path):
    box = dict(bbox=[1, 1, 3, 2], area=None, iscrowd=None, category_id=1)
    coco(tmp_path / 'data', annotations=[dict(box, id=n, image_id=n) for n in (0, 1)])
    new_project(tmp_path / 'new', tmp_path / 'data')
    (each,) = json.loads((tmp_path / 'new/annotations/train.json').read_text())['annotations']
    assert (each['area'], each['iscrowd']) == (6, 0)


def test_every_class_keeps_a_training_image(tmp_path):
    items = [
        SimpleNamespace(path=PurePosixPath(f'{n}.png'), split=None, classes={min(n, 8)})
        for n in range(10)
    ]
    train, val = divide(items, Folder(tmp_path))
    assert len(train) == 9 and val[0] in items[8:]
    assert divide(items[::-1], Folder(tmp_path)) == (train, val)


def test_class_that_only_the_validation_has_is_left_out(tmp_path, capsys):
    data = tmp_path / 'data'
    for split, text in (('train', BOX), ('val', f'1{BOX[1:]}\n{BOX}')):
        image(data / f'{split}/images/{split}.png')
        layouts.write(data / f'{split}/labels/{split}.txt', text)
    layouts.write(data / 'data.yaml', 'names: [a, b]')
    new_project(tmp_path / 'new', data)
    content = json.loads((tmp_path / 'new/annotations/val.json').read_text())
    assert [each['category_id'] for each in content['annotations']] == [1]
    assert [each['name'] for each in content['categories']] == ['a']
    assert any("for example 'b'" in note for note in notes(capsys))


def without_area(content):
    del content['annotations'][0]['area']


def with_supercategory(content):
    content['categories'].append(dict(id=2, name='a'))


@pytest.mark.parametrize('change', [None, without_area, with_supercategory, 'utf-8-sig'])
def test_files_of_both_splits_are_copied_only_if_something_changes(tmp_path, change):
    data = tmp_path / 'data'
    coco(data, 'train.json')
    coco(data, 'val.json', (2, 3))
    content = json.loads((data / 'val.json').read_text())
    if callable(change):
        change(content)
    encoding = change if isinstance(change, str) else None
    (data / 'val.json').write_text(json.dumps(content), encoding=encoding)
    new_project(tmp_path / 'new', data)
    assert (tmp_path / 'new/annotations').exists() == (change is not None)


def test_boxes_are_clipped_to_the_image_and_some_masks_are_not_used(tmp_path, capsys):
    polygon = '0 0.1 0.1 0.9 0.1 0.5 0.9'
    yolo(tmp_path / 'data', '0 0.1 0.5 0.4 1.0005', polygon)
    config = new_project(tmp_path / 'new', tmp_path / 'data')
    boxes = [
        each['bbox']
        for split in ('train', 'val')
        for each in json.loads((tmp_path / f'new/annotations/{split}.json').read_text())[
            'annotations'
        ]
    ]
    assert sorted(boxes)[0] == pytest.approx([0, 0, 0.3 * 8, 6])
    assert 'faster-rcnn' in config.read_text()
    assert any('1 of 2 objects have no mask, so only boxes are used' in n for n in notes(capsys))


def test_many_classes_are_on_several_lines(tmp_path):
    text = '\n'.join(f'{number}{BOX[1:]}' for number in range(80))
    yolo(tmp_path / 'data', text, text, names=[f'class number {number}' for number in range(80)])
    config = new_project(tmp_path / 'new', tmp_path / 'data')
    lines = config.read_text().partition('classes = ')[2].partition(')\n')[0].splitlines()
    assert 10 < len(lines) < 20 and max(map(len, lines)) <= 100
    assert load_config(config).train_dataloader.dataset.metainfo.classes[79] == 'class number 79'


def test_rotated_photos_have_the_size_that_training_loads(tmp_path):
    data = tmp_path / 'data'
    yolo(data, BOX, BOX)
    for number in range(2):
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new('RGB', (8, 6)).save(data / f'images/{number}.png', exif=exif)
    new_project(tmp_path / 'new', data)
    content = json.loads((tmp_path / 'new/annotations/train.json').read_text())
    assert (content['images'][0]['width'], content['images'][0]['height']) == (6, 8)
    assert content['annotations'][0]['bbox'] == [1.5, 2, 3, 4]


def test_splits_of_settings_and_of_tests(tmp_path, capsys):
    data = tmp_path / 'data'
    yolo(data, BOX, BOX, BOX, BOX)
    layouts.write(data / 'first.txt', './images/0.png\nimages/2.png\n')
    layouts.write(data / 'second.txt', f'{data}/images/1.png\n')
    layouts.write(data / 'third.txt', 'images/3.png\n')
    names = 'names: {0: a}\ntrain: first.txt\nval: [second.txt]\ntest: ../third.txt\n'
    layouts.write(data / 'data.yaml', names)
    new_project(tmp_path / 'new', data)
    files = [
        [image['file_name'] for image in json.loads(path.read_text())['images']]
        for path in sorted((tmp_path / 'new/annotations').iterdir())
    ]
    assert files == [['images/0.png', 'images/2.png'], ['images/1.png']]
    assert any('skipped images of a test split' in note for note in notes(capsys))
