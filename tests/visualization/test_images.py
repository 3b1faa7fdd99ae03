"""Pictures show images as the pipeline loads them: orientation, bands, data types, files."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import tifffile
from mmcv.transforms import BaseTransform, LoadImageFromFile
from mmengine.dataset import Compose
from PIL import Image

from mmgcvit.visualization.images import image_name, load_image, to_rgb

RGB = (200, 100, 50)


def dataset(*transforms, **attributes):
    return SimpleNamespace(pipeline=Compose(list(transforms)), **attributes)


class LoadArray(BaseTransform):
    def transform(self, results):
        return dict(results, img=np.load(results['img_path']))


class Note(BaseTransform):
    """A transform before the loader."""

    def transform(self, results):
        return dict(results, note='no image yet')


class Fail(BaseTransform):
    def transform(self, results):
        raise AssertionError('is after the loader')


@pytest.mark.parametrize('flag', ['color', 'color_ignore_orientation'])
def test_orientation_is_that_of_the_pipeline(tmp_path, flag):
    path, exif = tmp_path / 'a.png', Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[0] = RGB
    Image.fromarray(pixels).save(path, exif=exif)
    loader = LoadImageFromFile(color_type=flag)
    image = load_image(dataset(Note(), loader, Fail()), dict(img_path=str(path)))
    expected = np.rot90(pixels, -1) if flag == 'color' else pixels
    assert np.array_equal(image, expected)


@pytest.mark.parametrize('backend', ['cv2', 'pillow', 'tifffile'])
@pytest.mark.parametrize('channels', [3, 4])
@pytest.mark.parametrize('to_float32', [False, True])
def test_colors_for_every_decoder(tmp_path, backend, channels, to_float32):
    pixels = np.full((5, 7, channels), (*RGB, 255)[:channels], np.uint8)
    path = tmp_path / ('a.tif' if backend == 'tifffile' else 'a.png')
    if backend == 'tifffile':
        tifffile.imwrite(path, pixels, photometric='rgb')
    else:
        Image.fromarray(pixels).save(path)
    options = dict(color_type='unchanged', imdecode_backend=backend, to_float32=to_float32)
    image = load_image(dataset(LoadImageFromFile(**options)), dict(img_path=str(path)))
    assert image.dtype == np.uint8 and image.shape == (5, 7, 3)
    assert (image == RGB).all()


@pytest.mark.parametrize('bands', [(*RGB[::-1],), (*RGB, 9), (*RGB, 9, 8)])
def test_arrays_are_read_by_the_loader(tmp_path, bands):
    # three channels are BGR, as everywhere in OpenMMLab, but bands are in the order of the file
    np.save(tmp_path / 'a.npy', np.full((5, 7, len(bands)), bands, np.uint8))
    image = load_image(dataset(LoadArray()), dict(img_path=str(tmp_path / 'a.npy')))
    assert (image == RGB).all()


def test_databases_are_read_by_the_loader(tmp_path):
    lmdb = pytest.importorskip('lmdb')
    pixels = np.full((5, 7, 3), RGB[::-1], np.uint8)
    with lmdb.open(str(tmp_path / 'images'), map_size=2**20) as env, env.begin(write=True) as put:
        put.put(b'one/a', cv2.imencode('.png', pixels)[1].tobytes())
    backend = dict(backend='lmdb', db_path=str(tmp_path / 'images'))
    database = dataset(LoadImageFromFile(backend_args=backend))
    assert (load_image(database, dict(img_path='one/a')) == RGB).all()


def test_files_of_datasets_without_a_pipeline(tmp_path):
    cv2.imwrite(str(tmp_path / 'a.png'), np.full((5, 7, 3), RGB[::-1], np.uint8))
    image = load_image(SimpleNamespace(), dict(img_path=str(tmp_path / 'a.png')))
    assert (image == RGB).all()


def test_a_pipeline_without_a_loader_is_an_error():
    with pytest.raises(ValueError, match='no transform of the pipeline loads this image'):
        load_image(dataset(Note()), dict(img_path='a.png'))


def test_the_loader_and_the_name_of_a_concatenated_dataset(tmp_path):
    for name in ('first', 'second'):
        (tmp_path / name / 'sub').mkdir(parents=True)
        np.save(tmp_path / name / 'sub' / 'a.npy', np.full((5, 7, 3), RGB[::-1], np.uint8))
    first = dataset(LoadImageFromFile(), data_prefix=dict(img=str(tmp_path / 'first')))
    second = dataset(LoadArray(), data_prefix=dict(img_path=str(tmp_path / 'second')))
    joined = SimpleNamespace(datasets=[first, SimpleNamespace(dataset=second)])
    path = str(tmp_path / 'second/sub/a.npy')
    assert (load_image(joined, dict(img_path=path)) == RGB).all()
    assert image_name(joined, path) == 'sub/a.npy'
    assert image_name(joined, [path, 'other band']) == 'sub/a.npy'
    assert image_name(joined, 'elsewhere/b.png') == 'b.png'


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.int32, np.float32, np.float64])
def test_values_of_8_bits_are_kept(dtype):
    image = np.arange(0, 240, 2).reshape(5, 8, 3).astype(dtype)
    assert np.array_equal(to_rgb(image, is_bgr=False), image.astype(np.uint8))
    assert np.array_equal(to_rgb(image, is_bgr=True), image[..., ::-1].astype(np.uint8))


@pytest.mark.parametrize(
    ('low', 'high', 'dtype'),
    [
        (0, 1, np.float32),
        (-3.5, 2, np.float64),
        (100, 4095, np.uint16),
        (-1000, 1000, np.int16),
        (0, 1, bool),
    ],
)
@pytest.mark.parametrize('channels', [1, 2, 3, 6])
def test_other_values_are_scaled_from_their_range(low, high, dtype, channels):
    image = np.full((4, 4, channels), low, dtype)
    image[0, 0] = high
    image[..., 3:] = high  # channels that are not shown
    rgb = to_rgb(image, is_bgr=False)
    assert rgb.shape == (4, 4, 3) and rgb.dtype == np.uint8
    assert (rgb[0, 0] == 255).all() and (rgb.reshape(-1, 3)[1:] == 0).all()


def test_first_three_of_many_bands():
    image = np.zeros((4, 4, 6), np.uint16)
    image[...] = (1000, 2000, 3000, 9, 8, 7)
    image[0, 0, 0] = 0
    assert to_rgb(image, is_bgr=False)[1, 1].tolist() == [85, 170, 255]


def test_gray_constant_and_undefined_values():
    gray = np.arange(20, dtype=np.uint8).reshape(4, 5)
    assert np.array_equal(to_rgb(gray, is_bgr=False), np.stack([gray] * 3, axis=2))
    assert (to_rgb(np.full((2, 2), 0.25), is_bgr=False) == 0).all()
    undefined = np.array([[0, np.nan], [np.inf, 0.5]])
    assert to_rgb(undefined, is_bgr=False)[..., 0].tolist() == [[0, 0], [0, 255]]
    assert (to_rgb(np.full((2, 2), np.nan), is_bgr=False) == 0).all()
    with pytest.raises(ValueError, match='2 or 3 dimensions, and this one has 4'):
        to_rgb(np.zeros((1, 2, 2, 3)), is_bgr=False)
