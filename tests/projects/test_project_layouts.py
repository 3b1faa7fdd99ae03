"""Names of files and folders, and files beside them, that programs and people use."""

import json
import shutil

import numpy as np
import pytest
from layouts import image, write
from mmengine.registry import DATASETS
from PIL import Image

from mmgcvit.engine import load_config
from mmgcvit.projects import new_project

BOXES = '0 0.5 0.5 0.5 0.5\n1 0.3 0.3 0.2 0.2'


def photo(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 255, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def classes(folder, *folders, write_image=image):
    for name in folders:
        for number in range(2):
            write_image(folder / f'{name}/{number}.PNG')


def compound_names(folder):
    for split, values in (('train', (0, 1)), ('val', (1, 0)), ('test', (0, 1))):
        for number, value in enumerate(values):
            image(folder / f'{split}_images/{number}.png')
            image(folder / f'{split}_labels/{number}.png', mode='L', color=value)


def compound_names_of_yolo(folder):
    for split in ('Train', 'Valid'):
        for number in range(2):
            image(folder / f'Images-{split}/{number}.png')
            write(folder / f'Labels-{split}/{number}.txt', BOXES)


def yolo(names):
    def create(folder):
        for number in range(3):
            image(folder / f'images/{number}.png')
            write(folder / f'labels/{number}.txt', BOXES if number else '')
        write(folder / 'data.yaml', f'names: {names}')

    return create


def roboflow_masks(folder):
    for split in ('train', 'valid'):
        for number in range(2):
            image(folder / f'{split}/{number}.png')
            image(folder / f'{split}/{number}_mask.png', mode='L', color=255 * number)
        write(folder / f'{split}/_classes.csv', 'Pixel Value, Class\n0, ground\n1, tree')


def cvat(folder):
    for number, color in enumerate([(0, 0, 0), (0, 0, 9), (7, 0, 0)]):
        image(folder / f'JPEGImages/{number}.png')
        for kind in ('Class', 'Object'):
            image(folder / f'Segmentation{kind}/{number}.png', color=color)
    write(folder / 'labelmap.txt', '# label:color_rgb:parts:actions\nsky:7,0,0::\ncar:0,0,9:a:b')
    with open(folder / 'labelmap.txt', 'a') as file:
        file.write('\nnothing:0,0,0::\n')
    write(folder / 'ImageSets/Segmentation/train.txt', '0')
    write(folder / 'ImageSets/Segmentation/val.txt', '1\n2')


def black_and_white_among_colors(folder):
    for number, color in enumerate([(0, 0, 0), (255, 255, 255), (255, 0, 0)]):
        image(folder / f'images/{number}.png')
        image(folder / f'masks/{number}.png', color=color)


def pets(folder):
    for number in range(3):
        image(folder / f'images/{number}.png')
        image(folder / f'annotations/trimaps/{number}.png', mode='L', color=number)
        box = '<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>4</xmax><ymax>4</ymax></bndbox>'
        xml = f'<a><object><name>pet</name>{box}</object></a>'
        write(folder / f'annotations/xmls/{number}.xml', xml)


def masks_and_photos_without(folder):
    for number in range(3):
        image(folder / f'images/{number}.png')
        image(folder / f'mask/{number}.png', mode='L', color=number % 2)
        photo(folder / f'no_mask/{number + 5}.png')


# format, classes, and numbers of images for training and validation
LAYOUTS = {
    'compound names': (compound_names, 'masks', ('class_0', 'class_1'), 2, 2),
    'compound names of YOLO': (compound_names_of_yolo, 'yolo', ('class_0', 'class_1'), 2, 2),
    'words of YAML': (yolo('[yes, no]'), 'yolo', ('yes', 'no'), 2, 1),
    'numbers': (yolo('[07, 1e3]'), 'yolo', ('07', '1e3'), 2, 1),
    'words of YAML by index': (yolo('{1: off, 0: null}'), 'yolo', ('null', 'off'), 2, 1),
    'masks of Roboflow': (roboflow_masks, 'masks', ('ground', 'tree'), 2, 2),
    'CVAT': (cvat, 'masks', ('sky', 'car', 'nothing'), 1, 2),
    'black and white among colors': (
        black_and_white_among_colors,
        'masks',
        ('color_000000', 'color_ff0000', 'color_ffffff'),
        2,
        1,
    ),
    'trimaps do not hide .xml files': (pets, 'voc', ('pet',), 2, 1),
    'splits below classes': (
        lambda d: classes(d, 'a/train', 'a/test', 'b/train', 'b/test', 'b/val', 'a/val'),
        'folders',
        ('a', 'b'),
        4,
        4,
    ),
    'no validation below classes': (
        lambda d: classes(d, 'a/train', 'b/train', 'b/testing'),
        'folders',
        ('a', 'b'),
        3,
        1,
    ),
    'extracted twice': (
        lambda d: classes(d, *(f'x/x/{s}/{s}/{c}' for s in ('train', 'val') for c in 'ab')),
        'folders',
        ('a', 'b'),
        4,
        4,
    ),
    'classes like folders of annotations': (
        lambda d: classes(d, 'images/mask', 'images/no_mask', write_image=photo),
        'folders',
        ('mask', 'no_mask'),
        3,
        1,
    ),
    'masks beside photos without': (
        masks_and_photos_without,
        'masks',
        ('class_0', 'class_1'),
        2,
        1,
    ),
}


@pytest.mark.parametrize('layout', LAYOUTS)
def test_layout(tmp_path, layout):
    create, form, names, *numbers = LAYOUTS[layout]
    create(tmp_path / 'data')
    only = form if layout.startswith('trimaps') else None
    config = new_project(tmp_path / 'new', tmp_path / 'data', form=only)
    assert f'classes = {names}\n' in config.read_text()
    found = []
    for split in ('train', 'val'):
        (file,) = (tmp_path / 'new/annotations').glob(f'{split}.*')
        text = file.read_text()
        found.append(
            len(json.loads(text)['images']) if file.suffix == '.json' else len(text.splitlines())
        )
    assert found == numbers


@pytest.mark.parametrize('ids', ['labelTrainIds', 'labelIds'])
def test_cityscapes(tmp_path, ids):
    data = tmp_path / 'data'
    for split, city in (('train', 'aachen'), ('train', 'ulm'), ('val', 'bonn'), ('test', 'bonn')):
        name = f'{split}/{city}/{city}_000000_000019'
        image(data / f'leftImg8bit/{name}_leftImg8bit.png')
        for kind, value in (('labelTrainIds', 18), ('labelIds', 33), ('color', 70)):
            image(data / f'gtFine/{name}_gtFine_{kind}.png', mode='L', color=value)
        image(data / f'gtFine/{name}_gtFine_instanceIds.png', mode='I;16', color=33001)
        for kind, value in (('labelTrainIds', 1), ('labelIds', 8)):
            labels = Image.open(data / f'gtFine/{name}_gtFine_{kind}.png')
            labels.putpixel((0, 0), value)
            labels.save(data / f'gtFine/{name}_gtFine_{kind}.png')
    if ids == 'labelIds':
        for path in data.rglob('*_labelTrainIds.png'):
            path.unlink()
    cfg = load_config(new_project(tmp_path / 'new', data))
    dataset = cfg.train_dataloader.dataset
    if ids == 'labelTrainIds':
        assert len(dataset.metainfo.classes) == 19 and dataset.metainfo.classes[18] == 'bicycle'
    else:
        assert dataset.metainfo.classes == ('class_8', 'class_33')
    items = list(DATASETS.build(dict(dataset, type='mmseg.BaseSegDataset', pipeline=[])))
    assert [item['img_path'].rpartition('/')[2][:3] for item in items] == ['aac', 'ulm']
    labels = np.asarray(Image.open(items[0]['seg_map_path']))
    assert (labels[0, 0], labels[1, 1]) == ((1, 18) if ids == 'labelTrainIds' else (0, 1))


@pytest.mark.parametrize('palette', [[0, 0, 9, 7, 0, 0], [255, 255, 255, 0, 0, 0]])
def test_colors_of_a_palette_have_the_names_of_cvat(tmp_path, palette):
    cvat(tmp_path / 'data')
    if palette[0] == 255:
        write(tmp_path / 'data/labelmap.txt', 'a:0,0,0::\nb:255,255,255::')
    for number in range(3):
        labels = Image.new('P', (8, 6), 1)
        labels.putpalette(palette)  # in another order than in labelmap.txt
        labels.putpixel((0, 0), 0)
        labels.save(tmp_path / f'data/SegmentationClass/{number}.png')
    new_project(tmp_path / 'new', tmp_path / 'data')
    labels = np.asarray(Image.open(tmp_path / 'new/label_maps/JPEGImages/0.png.png'))
    assert (labels[0, 0], labels[1, 1]) == (1, 0)


@pytest.mark.parametrize(
    ('ids', 'number'), [([(0, 1)], 1), ([(9, 1), ([1], 1), ('a', 1), (5, [1]), (6, None)], 3)]
)
def test_ids_that_metrics_cannot_use_are_renumbered(tmp_path, ids, number):
    image(tmp_path / 'data/train/0.png')
    image(tmp_path / 'data/valid/1.png')
    box = dict(bbox=[1, 1, 3, 3], area=9, iscrowd=0, segmentation=[])
    for image_number, split in enumerate(('train', 'valid')):
        content = dict(
            images=[dict(id=7, file_name=f'{image_number}.png', width=8, height=6)],
            annotations=[
                dict(box, id=identity, image_id=7, category_id=category)
                for identity, category in ids
            ],
            categories=[dict(id=0, name='pets'), dict(id=1, name='cat', supercategory='pets')],
        )
        write(tmp_path / f'data/{split}/_annotations.coco.json', json.dumps(content))
    new_project(tmp_path / 'new', tmp_path / 'data')
    for split in ('train', 'val'):
        content = json.loads((tmp_path / f'new/annotations/{split}.json').read_text())
        assert [each['id'] for each in content['annotations']] == list(range(1, number + 1))
        assert [each['name'] for each in content['categories']] == ['cat']


def test_hidden_files_and_links(tmp_path, capsys):
    data = tmp_path / 'data'
    classes(tmp_path / 'store', 'a', 'b')
    (data / '__MACOSX/a').mkdir(parents=True)
    for file in ('.DS_Store', '__MACOSX/a/._0.PNG', 'a/.DS_Store'):
        write(data / file, 'x')
    shutil.rmtree(data / 'a')
    for name in ('a', 'b'):
        (data / name).symlink_to(tmp_path / 'store' / name)
    (data / 'loop').symlink_to(data)
    new_project(tmp_path / 'new', data)
    assert 'folders of 2 classes (a, b)' in capsys.readouterr().out
