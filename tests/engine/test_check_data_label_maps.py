"""Label maps and images of segmentation, read by the pipeline's own transforms."""

import numpy as np
import pytest
from checked import label_files, names, segmentation, texts
from mmengine.registry import TRANSFORMS
from mmseg.datasets.transforms import LoadAnnotations
from PIL import Image

from mmgcvit.engine import check_data
from mmgcvit.engine.check_data import split as split_module
from mmgcvit.errors import UserError

SPLITS = ('train', 'val', 'test')


def change_labels(shapes, change, split='training', files=None):
    for path in label_files(shapes, split)[:files]:
        Image.fromarray(change(np.asarray(Image.open(path)).copy())).save(path)


def pipelines(cfg):
    return [cfg[f'{split}_dataloader'].dataset.pipeline for split in SPLITS]


def only_one_class(labels):
    return np.where(labels > 0, 255, 0).astype(np.uint8)


def test_masks_of_0_and_255_are_named(shapes):
    for split in ('training', 'validation'):
        change_labels(shapes, only_one_class, split)
    report = check_data(segmentation(shapes))
    assert names(report) == ['empty-class', 'empty-class']
    for text in texts(report):
        assert '3 classes have no pixel in' in text and "'circle', 'rectangle', 'triangle'" in text
        assert '255 is ignored' in text and 'change it to the number of the class, 0 to 3' in text
    assert all(problem.stops for problem in report.problems)


def test_masks_of_0_and_255_are_named_from_a_sample_without_stopping(shapes):
    change_labels(shapes, only_one_class)
    (problem,) = check_data(segmentation(shapes), samples=2, splits=('train',)).problems
    assert 'in the 2 of 6 label maps' in problem.text and not problem.stops


def test_a_class_without_a_pixel_is_a_note_unless_all_label_maps_were_opened(shapes):
    change_labels(shapes, lambda labels: np.where(labels == 2, 1, labels))
    (text,) = texts(check_data(segmentation(shapes), splits=('train',)))
    assert "'rectangle'" in text and 'never be predicted' in text
    report = check_data(segmentation(shapes), samples=5, splits=('train',))
    assert texts(report) == []
    assert any("'rectangle'" in note for note in report.notes)


def test_label_maps_of_the_ignored_value_alone_are_named(shapes):
    change_labels(shapes, lambda labels: np.full_like(labels, 255), 'validation')
    (text,) = texts(check_data(segmentation(shapes)))
    assert 'val, test: none of the 3 label maps that were opened has a pixel of any class' in text


def test_pixels_of_a_class_that_is_ignored_do_not_count(shapes):
    cfg = segmentation(shapes)
    cfg.train_dataloader.dataset.ignore_index = 0
    report = check_data(cfg, splits=('train',))
    assert names(report) == ['empty-class', 'ignore-index']
    assert "'background'" in texts(report)[0]
    assert report.datasets[0][1].classes['background'] == 0


def test_cv2_reads_the_label_maps_where_the_config_says_so(shapes):
    path = label_files(shapes)[1]
    palette = Image.fromarray(np.asarray(Image.open(path)), mode='P')
    palette.putpalette(list(range(256)) * 3)
    palette.save(path)  # indices for Pillow, colours for cv2
    cfg = segmentation(shapes)
    assert texts(check_data(cfg)) == []
    cfg.train_dataloader.dataset.pipeline[1].imdecode_backend = 'cv2'
    (text,) = texts(check_data(cfg))
    assert path.name in text and 'hold colors (3 channels)' in text


def turn(path, orientation, square=False):
    image = Image.open(path).convert('RGB')
    exif = Image.Exif()
    exif[0x0112] = orientation
    (image.resize((64, 64)) if square else image).save(path, exif=exif)


@pytest.mark.parametrize(('orientation', 'stops'), [(6, True), (8, True), (3, False), (2, False)])
def test_photos_that_are_turned_without_their_label_maps_are_named(shapes, orientation, stops):
    path = sorted(shapes.glob('ADE*/images/training/*'))[4]
    turn(path, orientation)
    cfg = segmentation(shapes)
    (problem,) = check_data(cfg).problems
    assert problem.name == 'orientation' and problem.stops is stops
    assert path.name in problem.text and "color_type='color_ignore_orientation'" in problem.text
    cfg.train_dataloader.dataset.pipeline[0].color_type = 'color_ignore_orientation'
    assert texts(check_data(cfg)) == []


def test_square_photos_that_are_turned_are_named(shapes):
    path, labels = (
        sorted(shapes.glob('ADE*/images/validation/*'))[0],
        label_files(shapes, 'validation')[0],
    )
    turn(path, 6, square=True)
    Image.open(labels).resize((64, 64), Image.Resampling.NEAREST).save(labels)
    (problem,) = check_data(segmentation(shapes)).problems
    assert problem.name == 'orientation' and not problem.stops and path.name in problem.text


def test_label_maps_drawn_on_turned_photos_are_right(shapes):
    path, labels = sorted(shapes.glob('ADE*/images/training/*'))[0], label_files(shapes)[0]
    turn(path, 6)
    Image.open(labels).transpose(Image.Transpose.ROTATE_270).save(labels)
    assert texts(check_data(segmentation(shapes))) == []


def test_images_of_six_bands_pass_as_they_train(shapes):
    tifffile = pytest.importorskip('tifffile')
    for path in shapes.glob('ADE*/images/*/*.jpg'):
        width, height = Image.open(path).size
        tifffile.imwrite(path.with_suffix('.tif'), np.zeros((height, width, 6), np.uint16))
        path.unlink()
    cfg = segmentation(shapes)
    for split, pipeline in zip(SPLITS, pipelines(cfg), strict=True):
        cfg[f'{split}_dataloader'].dataset.img_suffix = '.tif'
        pipeline[0].update(imdecode_backend='tifffile', color_type='unchanged')
    assert texts(check_data(cfg)) == []
    path = sorted(shapes.glob('ADE*/images/training/*'))[0]
    path.write_bytes(path.read_bytes()[:50])
    (text,) = texts(check_data(cfg))
    assert f'1 of 6 images that were opened are broken, for example {path}' in text


@TRANSFORMS.register_module()
class ReadArray:
    """A loader of arrays, as users write it for images of any kind."""

    def __call__(self, results):
        results['img'] = np.load(results['img_path'])
        results['img_shape'] = results['ori_shape'] = results['img'].shape[:2]
        return results


def test_images_of_an_own_loader_pass_as_they_train(shapes):
    for path in shapes.glob('ADE*/images/*/*.jpg'):
        np.save(path.with_suffix('.npy'), np.asarray(Image.open(path)))
        path.unlink()
    cfg = segmentation(shapes)
    for split, pipeline in zip(SPLITS, pipelines(cfg), strict=True):
        cfg[f'{split}_dataloader'].dataset.img_suffix = '.npy'
        pipeline[0] = dict(type='mmengine.ReadArray')
    assert texts(check_data(cfg)) == []
    path = sorted(shapes.glob('ADE*/images/validation/*'))[2]
    np.save(path, np.zeros((5, 7, 3), np.uint8))
    (text,) = texts(check_data(cfg))
    assert 'val, test: 1 of 3 label maps' in text and 'have another size' in text


def test_a_missing_reader_of_tiff_is_named(shapes, monkeypatch):
    cfg = segmentation(shapes)
    cfg.train_dataloader.dataset.pipeline[0].imdecode_backend = 'tifffile'
    monkeypatch.setattr('mmcv.image.io.tifffile', None)
    monkeypatch.setattr(split_module, 'find_spec', lambda name: None)
    (text,) = texts(check_data(cfg))
    assert 'reads images with tifffile: pip install tifffile' in text


@TRANSFORMS.register_module()
class ReadLabels:
    """A loader of label maps with a name of its own."""

    def __call__(self, results):
        results['gt_seg_map'] = np.asarray(Image.open(results['seg_map_path']))
        return results


def test_label_maps_that_were_not_loaded_are_said_not_to_be_checked(shapes):
    cfg = segmentation(shapes)
    cfg.train_dataloader.dataset.pipeline[1] = dict(type='mmengine.ReadLabels')
    report = check_data(cfg)
    assert texts(report) == []
    assert (
        'train: not checked, train_dataloader.dataset.pipeline has loaded no label map'
        in report.notes
    )


def test_images_in_other_storage_that_cannot_be_reached_are_said_not_to_be_checked(shapes):
    cfg = segmentation(shapes)
    storage = dict(backend='lmdb', db_path='/nowhere')
    cfg.train_dataloader.dataset.pipeline[0].backend_args = storage
    report = check_data(cfg)
    assert texts(report) == []
    assert any('not checked, no image could be read from its storage' in n for n in report.notes)


def test_images_in_a_database_are_read_from_it(shapes, tmp_path):
    lmdb = pytest.importorskip('lmdb')
    cfg = segmentation(shapes)
    paths = sorted(shapes.glob('ADE*/images/training/*'))
    database = lmdb.open(str(tmp_path / 'images'), map_size=2**26)
    with database, database.begin(write=True) as transaction:
        for path in paths[1:]:
            transaction.put(str(path).encode(), path.read_bytes())
        transaction.put(str(paths[0]).encode(), b'no image')
    storage = dict(backend='lmdb', db_path=str(tmp_path / 'images'))
    cfg.train_dataloader.dataset.pipeline[0].backend_args = storage
    (text,) = texts(check_data(cfg))
    assert f'1 of 6 images that were opened are broken, for example {paths[0]}' in text


def test_a_test_set_without_label_maps_is_meant(shapes):
    for path in label_files(shapes, 'validation'):
        path.unlink()
    cfg = segmentation(shapes)
    cfg.test_dataloader.dataset.pipeline = [
        step for step in cfg.test_dataloader.dataset.pipeline if step.type != 'LoadAnnotations'
    ]
    assert texts(check_data(cfg, splits=('train', 'test'))) == []
    assert names(check_data(cfg, splits=('val',))) == ['label-files']


def test_checks_are_switched_off_by_name(shapes):
    change_labels(shapes, only_one_class)
    cfg = segmentation(shapes)
    assert names(check_data(cfg)) == ['empty-class']
    for skipped in ('empty-class', ['orientation', 'empty-class']):
        cfg.skip_checks = skipped
        assert texts(check_data(cfg)) == []
    cfg.skip_checks = ['empty-classes']
    with pytest.raises(UserError, match=r"skip_checks names 'empty-classes'.*empty-class, .*masks"):
        check_data(cfg)


@TRANSFORMS.register_module()
class LoadGreen(LoadAnnotations):
    """A loader that turns colors into label values."""

    def _load_seg_map(self, results):
        green = np.asarray(Image.open(results['seg_map_path']))[..., 1]
        results['gt_seg_map'] = green
        results['seg_fields'].append('gt_seg_map')


@TRANSFORMS.register_module()
class LoadNumbers(LoadAnnotations):
    """A loader of label maps that are no images."""

    def _load_seg_map(self, results):
        results['gt_seg_map'] = np.load(results['seg_map_path'])
        results['seg_fields'].append('gt_seg_map')


def color(path):
    labels = np.asarray(Image.open(path))
    Image.fromarray(np.stack([labels * 0, labels, labels * 0], axis=-1)).save(path)


def to_numpy(path):
    np.save(path.with_suffix('.npy'), np.asarray(Image.open(path)))
    path.unlink()


@pytest.mark.parametrize(
    ('kind', 'suffix', 'change'),
    [('LoadGreen', '.png', color), ('LoadNumbers', '.npy', to_numpy)],
)
def test_label_maps_of_an_own_loader_pass_as_they_train(shapes, kind, suffix, change):
    for split in ('training', 'validation'):
        for path in label_files(shapes, split):
            change(path)
    cfg = segmentation(shapes)
    for split, pipeline in zip(SPLITS, pipelines(cfg), strict=True):
        cfg[f'{split}_dataloader'].dataset.seg_map_suffix = suffix
        step = next(each for each in pipeline if each['type'] == 'LoadAnnotations')
        step['type'] = f'mmengine.{kind}'
    report = check_data(cfg)
    assert texts(report) == []
    assert all(counts.annotated for _, counts in report.datasets)


def save_with_alpha(path):
    Image.open(path).convert('RGBA').save(path, format='PNG')


@pytest.mark.parametrize('split', ['training', 'validation'])
def test_an_image_with_another_number_of_channels_is_named(shapes, split):
    path = sorted(shapes.glob(f'ADE*/images/{split}/*'))[1]
    save_with_alpha(path)
    cfg = segmentation(shapes)
    assert texts(check_data(cfg)) == []  # color_type='color' drops it
    for pipeline in pipelines(cfg):
        pipeline[0].color_type = 'unchanged'
    (problem,) = check_data(cfg).problems
    assert problem.text.startswith('[channels]') and problem.stops
    assert f'{path} has 4 and not 3' in problem.text and "color_type='color'" in problem.text


def test_images_that_all_have_four_channels_are_not_named(shapes):
    for path in shapes.glob('ADE*/images/*/*'):
        save_with_alpha(path)
    cfg = segmentation(shapes)
    for pipeline in pipelines(cfg):
        pipeline[0].color_type = 'unchanged'
    assert texts(check_data(cfg)) == []


@pytest.mark.parametrize('size', [(1, 40), (30, 1), (1, 1)])
def test_label_maps_one_pixel_wide_or_high_are_named(shapes, size):
    for kind, mode in (('images', 'RGB'), ('annotations', 'L')):
        path = sorted(shapes.glob(f'ADE*/{kind}/validation/*'))[0]
        Image.new(mode, size).save(path)
    (text,) = texts(check_data(segmentation(shapes)))
    assert text.startswith('[label-maps] val, test: 1 of 3 label maps')
    assert 'one pixel wide or high' in text and 'remove these images' in text


@pytest.mark.parametrize(
    ('encoding', 'fault'), [('utf-8-sig', 'a byte-order mark'), ('utf-16', 'encoded in UTF-16')]
)
def test_lists_of_images_that_mmseg_cannot_read_are_named(shapes, encoding, fault):
    path = shapes / 'ADEChallengeData2016' / 'few.txt'
    stems = [file.stem for file in label_files(shapes, 'validation')[:2]]
    cfg = segmentation(shapes)
    cfg.val_dataloader.dataset.ann_file = str(path)
    path.write_text('\n'.join(stems), encoding='utf-8')
    assert texts(check_data(cfg)) == []
    path.write_text('\n'.join(stems), encoding=encoding)
    (text,) = texts(check_data(cfg))
    assert text.startswith(f'[folders] val: {path} ') and fault in text and 'as UTF-8' in text
