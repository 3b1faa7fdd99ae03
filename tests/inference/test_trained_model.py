"""Models for inference: what is loaded, and what is refused."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS
from untrained import CONFIGS, save_checkpoint

from mmgcvit.errors import UserError
from mmgcvit.inference import load_trained


@pytest.mark.parametrize('task', CONFIGS)
def test_weights_pipeline_and_evaluation_mode(models, task):
    trained = models.load(task)
    saved = torch.load(models.checkpoint(task))['state_dict']
    assert all(
        torch.equal(value, saved[name]) for name, value in trained.model.state_dict().items()
    )
    assert trained.task.name == task and not trained.model.training
    batch = trained.load_batch(models.images[0])
    assert batch['data_samples'][0].img_path == str(models.images[0])
    image = cv2.imread(str(models.images[0]))[..., ::-1]
    assert np.array_equal(trained.load_image(models.images[0]), image)


# the models have 3, 150 and 2 classes
KNOWN = dict(dataset_meta=dict(classes=('ours', 'yours')))
OLD = dict(CLASSES=('ours', 'yours'))
OTHER = dict(dataset_meta=dict(classes=('a', 'b', 'c')))


@pytest.mark.parametrize(
    ('meta', 'own', 'expected', 'logged'),
    [
        (KNOWN, None, ('ours', 'yours'), ''),
        (OLD, None, ('ours', 'yours'), ''),
        ({}, ('cat', 'dog'), ('cat', 'dog'), ''),
        (OTHER, ('cat', 'dog'), ('cat', 'dog'), ''),
        (KNOWN, ('cat', 'dog'), ('ours', 'yours'), 'those of the config differ'),
        (OTHER, None, ('class 0', 'class 1'), '3 in the checkpoint, none in the config'),
    ],
)
def test_class_names(models, tmp_path, log, meta, own, expected, logged):
    path = tmp_path / 'a.pth'
    torch.save({**torch.load(models.checkpoint('classification')), 'meta': meta}, path)
    options = {'test_dataloader.dataset.metainfo': dict(classes=own)} if own else {}
    trained = load_trained(CONFIGS['classification'], str(path), 'cpu', options)
    assert trained.classes == expected and len(trained.palette) == 2
    about_names = [line for line in log if 'class 0' in line or 'the class names of' in line]
    assert len(about_names) == bool(logged) and logged in ''.join(about_names)


def test_three_classes_do_not_get_the_names_of_coco(models):
    trained = models.load('detection', **{'test_dataloader.dataset.metainfo': None})
    assert trained.classes == ('class 0', 'class 1', 'class 2')


@pytest.mark.parametrize(
    ('file', 'options', 'message'),
    [
        ('segmentation', {}, r'the backbone but not the rest .* names like neck\.'),
        ('classification', {}, 'use a checkpoint of this config'),
        (
            'detection',
            {'model.roi_head.bbox_head.num_classes': 5},
            r'fc_cls\.weight has shape \(4, 64\), expected \(6, 64\): use the config that it was',
        ),
        (
            'detection',
            {'model.backbone.arch.embed_dims': 32, 'model.neck.in_channels': [32, 64, 128]},
            r'embed_dims 16.*\(embed_dims 32.*: use the config that it was trained with',
        ),
        # a training would resize the position biases
        ('detection', {'model.backbone.window_size': 4}, r'position_bias_table has shape'),
    ],
)
def test_checkpoints_of_other_models_are_refused(models, file, options, message):
    with pytest.raises(UserError, match=message):
        load_trained(CONFIGS['detection'], models.checkpoint(file), 'cpu', options)


class Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.mkdir, (self.path,)


def test_no_code_in_a_checkpoint_is_executed(models, tmp_path):
    path = tmp_path / 'a.pth'
    torch.save(dict(state_dict=Canary(tmp_path / 'canary')), path)
    with pytest.raises(UserError, match='could execute code'):
        load_trained(CONFIGS['detection'], str(path), 'cpu')
    assert not (tmp_path / 'canary').exists()


@pytest.mark.parametrize(
    ('path', 'message'),
    [
        ('text.jpg', r'text\.jpg.* cannot .*(damaged or not an image|LoadImage)'),
        ('nothing.jpg', 'is not a file'),
        ('', 'is not a file'),
    ],
)
def test_files_that_are_no_images(models, tmp_path, path, message):
    (tmp_path / 'text.jpg').write_text('no image')
    trained = models.load('classification')
    for load in (trained.load_image, trained.load_sample):
        with pytest.raises(UserError, match=message):
            load(tmp_path / path)


@TRANSFORMS.register_module()
class LoadSixBands(BaseTransform):
    def transform(self, results):
        image = np.load(results['img_path'])
        return dict(results, img=image, img_shape=image.shape[:2], ori_shape=image.shape[:2])


def test_images_are_loaded_by_the_transforms_of_the_config(models, tmp_path):
    config = tmp_path / 'six.py'
    config.write_text(
        f"_base_ = '{CONFIGS['classification']}'\n"
        'model = dict(backbone=dict(in_channels=6), data_preprocessor=dict(\n'
        '    _delete_=True, mean=[0.0] * 6, std=[255.0] * 6))\n'
        "load = [dict(type='LoadSixBands'), dict(type='PackInputs')]\n"
        'test_dataloader = dict(dataset=dict(pipeline=load))\n'
    )
    save_checkpoint(config, tmp_path / 'six.pth')
    image = np.random.default_rng(0).integers(0, 256, (32, 48, 6), np.uint8)
    np.save(tmp_path / 'image.npy', image)
    trained = load_trained(config, str(tmp_path / 'six.pth'), 'cpu')
    assert trained.load_sample(tmp_path / 'image.npy')['inputs'].shape == (6, 32, 48)
    assert np.array_equal(trained.load_image(tmp_path / 'image.npy'), image[..., :3])


def test_images_on_disk_are_not_searched_in_the_database_of_the_config(models):
    option = 'test_dataloader.dataset.pipeline.0.backend_args'
    trained = models.load('detection', **{option: dict(backend='lmdb', db_path='nothing')})
    assert trained.load_sample(models.images[0])['inputs'].shape[0] == 3


@pytest.mark.parametrize(
    'options',
    [
        {'test_dataloader': None, 'val_dataloader': None},
        {'test_dataloader.dataset.pipeline': []},
    ],
)
def test_a_config_without_test_data_is_refused(models, options):
    with pytest.raises(UserError, match='has no test_dataloader with a dataset and a pipeline'):
        models.load('detection', **options)
