"""Errors of the libraries that the user can correct, on one line with the place in the config."""

import errno
import json
import os
import pickle
import types

import numpy as np
import pytest
import torch
from mmdet.models import FPN
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, METRICS, MODELS, TRANSFORMS
from toy import toy_config

from mmgcvit.engine import build_runner
from mmgcvit.engine.known_errors import known_error, location
from mmgcvit.errors import UserError, describe


@DATASETS.register_module()
class ListedImages(BaseDataset):
    """Images of a list in JSON."""

    def __init__(self, colour='red', **kwargs):
        super().__init__(serialize_data=False, **kwargs)
        self.colour = colour


@TRANSFORMS.register_module()
class Fails:
    """Fails on one image."""

    def __init__(self, image, error='ValueError'):
        self.image, self.error = image, error

    def __call__(self, data):
        if data['img_path'].endswith(self.image):
            raise {'ValueError': ValueError, 'ImportError': ImportError}[self.error]('no such band')
        return {'inputs': torch.ones(()), 'data_samples': data['img_path']}


@MODELS.register_module()
class Wrapper(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = MODELS.build(inner)


def message_of(function, *args):
    """What is printed of the error that a function raises, or None if it is not known."""
    try:
        function(*args)
    except Exception as error:
        return known_error(error)
    raise AssertionError('no error')


def train(tmp_path, options):
    cfg = toy_config(tmp_path, iterations=1)
    for name, value in options.items():
        if '.' in name:
            cfg.merge_from_dict({name: value})
        else:
            cfg[name] = value
    build_runner(cfg).train()


MISTAKES = {
    'a model': (
        {'model.widht': 4},
        'model.widht: ToyModel has no argument widht (did you mean width?)',
    ),
    'a loop': (
        {'train_cfg.val_intervall': 2},
        'train_cfg.val_intervall: IterBasedTrainLoop has no argument val_intervall (did you mean '
        'val_interval?). Allowed: ',
    ),
    'a hook': (
        {'default_hooks.logger.ignore': True},
        'default_hooks.logger.ignore: LoggerHook has no argument ignore',
    ),
    'a dataset': (
        {'train_dataloader.dataset.size': 3},
        'train_dataloader.dataset.size: ToyDataset has no argument size. Allowed: length, bad',
    ),
    'a dataloader': (
        {
            'train_dataloader.workers': 2,
            'train_cfg': dict(type='IterBasedTrainLoop', max_iters=1),
        },
        'train_dataloader.workers: DataLoader has no argument workers (did you mean num_workers?)',
    ),
    'a sampler': (
        {'train_dataloader.sampler.shufle': True},
        'train_dataloader.sampler.shufle: DefaultSampler has no argument shufle (did you mean '
        'shuffle?). Allowed: shuffle, round_up',
    ),
    'an optimizer': (
        {'optim_wrapper.optimizer.decay': 0.1},
        'optim_wrapper.optimizer.decay: AdamW has no argument decay',
    ),
    'an argument in capitals': (
        {'optim_wrapper.optimizer.LR': 0.1},
        'optim_wrapper.optimizer.LR: AdamW has no argument LR (did you mean lr?)',
    ),
    'an optimizer in another case': (
        {'optim_wrapper.optimizer.type': 'Adamw'},
        'optim_wrapper.optimizer.type is Adamw, and there is no such optimizer: did you mean '
        'mmengine.AdamW, ',
    ),
    'a missing argument': (
        {'custom_hooks': [dict(type='EarlyStoppingHook')]},
        'custom_hooks.0: EarlyStoppingHook needs monitor: add custom_hooks.0.monitor',
    ),
    'a value': (
        {'optim_wrapper.accumulative_counts': 0},
        'OptimWrapper: _accumulative_counts at least greater than or equal to 1',
    ),
    'text for a number of the dataloader': (
        {'train_dataloader.num_workers': 'two'},
        "train_dataloader.num_workers is 'two', but has to be int (DataLoader: '<' not supported "
        "between instances of 'str' and 'int'): change it, for example with --cfg-options "
        'train_dataloader.num_workers=VALUE',
    ),
    'a fraction for a whole number': (
        {'train_dataloader.batch_size': 1.5},
        'train_dataloader.batch_size is 1.5, but has to be int (BatchSampler: batch_size should ',
    ),
    'a number out of range': (
        {'train_dataloader.batch_size': -3},
        'train_dataloader.batch_size is -3 (BatchSampler: batch_size should be a positive ',
    ),
    'text for a learning rate': (
        {'optim_wrapper.optimizer.lr': 'high'},
        "optim_wrapper.optimizer.lr is 'high', but has to be float or Tensor (AdamW: '<=' not ",
    ),
    'a number for a list': (
        {'optim_wrapper.optimizer.betas': 0.9},
        'optim_wrapper.optimizer.betas is 0.9, but has to be tuple (AdamW: ',
    ),
    'text for a setting of a function': (
        {'optim_wrapper.clip_grad': dict(max_norm='large')},
        "optim_wrapper.clip_grad.max_norm is 'large', but has to be float (",
    ),
    'text for a setting of a hook': (
        {'default_hooks.checkpoint.interval': 'often'},
        "default_hooks.checkpoint.interval is 'often', but has to be int (SafeCheckpointHook: '<=' "
        "not supported between instances of 'str' and 'int'): change it",
    ),
    'settings of a hook': (
        {'custom_hooks': dict(type='EMAHook')},
        "custom_hooks is {'type': 'EMAHook'} in the config, but has to be a list",
    ),
    'settings of a dataset': (
        {'train_dataloader.dataset': 'coco'},
        "train_dataloader.dataset is 'coco' in the config, but has to be a dict or a list",
    ),
    'no loop': (
        {'train_cfg': None},
        'the config has train_dataloader and optim_wrapper, but no train_cfg: add it, or set '
        'train_dataloader = None as well',
    ),
    'a type': (
        {'model.type': 'ToyModle'},
        'model.type is ToyModle, and there is no such model: did you mean mmengine.ToyModel',
    ),
    'a type of optimizer': (
        {'optim_wrapper.optimizer.type': 'Addam'},
        'optim_wrapper.optimizer.type is Addam, and there is no such optimizer: did you mean '
        'mmengine.Adam',
    ),
    'a type of runner': (
        {'runner_type': 'Runer'},
        'runner_type is Runer, and there is no such runner: did you mean mmengine.Runner',
    ),
}


@pytest.mark.parametrize('mistake', MISTAKES)
def test_a_mistake_in_the_config_is_named_with_its_place(tmp_path, mistake):
    options, message = MISTAKES[mistake]
    found = message_of(train, tmp_path, options)
    assert found and found.startswith(message), found
    assert '\n' not in found


@pytest.mark.parametrize(
    ('text', 'known'),
    [("'NoneType' object is not callable", False), ("'<' not supported between 'int'", True)],
)
def test_an_error_about_other_values_is_not_blamed_on_the_config(text, known):
    """The config has a number in place of a boolean, which the failing code does not read."""

    class Fails(Hook):
        def __init__(self, shuffle: bool = False):
            self.shuffle = shuffle

        def before_train(self, runner):
            raise TypeError(text)

    def train(cfg):
        Fails(cfg.shuffle).before_train(None)

    found = message_of(train, Config(dict(shuffle=7)))
    assert bool(found) == known
    assert not known or found.startswith(f'shuffle is 7, but has to be bool (Fails: {text})')


def test_a_number_for_the_settings_of_a_part_is_named():
    cfg = Config(dict(model=dict(type='Wrapper', inner=7)))
    found = message_of(lambda cfg: MODELS.build(cfg.model), cfg)
    assert found == (
        'model.inner is 7, but has to be a dict with the type and the settings of a model'
    )


def test_a_value_that_gc_vit_rejects_is_named_with_its_place():
    cfg = Config(
        dict(model=dict(backbone=dict(type='mmgcvit.GCViT', arch='tiny', window_size='x')))
    )
    found = message_of(lambda cfg: MODELS.build(cfg.model.backbone), cfg)
    assert found.startswith("model.backbone: GCViT: window_size='x' is not allowed: give 4")


def test_arguments_that_a_class_passes_on_are_allowed():
    dataset = Config(dict(data=dict(type='ListedImages', data_rot='x', test_mode=True)))
    found = message_of(lambda cfg: DATASETS.build(cfg.data), dataset)
    start = (
        'data.data_rot: ListedImages has no argument data_rot (did you mean data_root?). Allowed'
    )
    assert found.startswith(start)
    assert 'colour' in found and 'filter_cfg' in found and 'kwargs' not in found


def test_an_error_in_the_code_of_a_class_is_not_taken_for_a_mistake_in_the_config(tmp_path):
    @METRICS.register_module(force=True)
    class Broken:
        def __init__(self, speed):
            dict.fromkeys(sped=speed)

    cfg = Config(dict(val=dict(type='Broken', speed=1)))
    assert message_of(lambda cfg: METRICS.build(cfg.val), cfg) is None
    assert message_of(lambda: {}['absent']) is None


def test_a_library_of_an_incompatible_version_is_named():
    def fails():
        raise AssertionError('MMCV==2.2.0 is used but incompatible. Please install mmcv<2.2.0.')

    message = message_of(fails)
    assert message.startswith('MMCV==2.2.0 is used but incompatible. Please install mmcv<2.2.0: ')
    assert 'check_env.py shows the versions and the remedy' in message


def test_transformers_that_mmpretrain_cannot_use_are_named():
    def fails():
        class Model(None):
            pass

    assert message_of(fails).endswith("pip install 'transformers<5'")


LISTED = dict(
    type='ListedImages',
    ann_file='list.json',
    pipeline=[dict(type='Fails', image='b.jpg')],
)


def listed(folder, images, text=None, **settings):
    """A config of a training on a list of images."""
    content = {'metainfo': {}, 'data_list': [{'img_path': name} for name in images]}
    (folder / 'list.json').write_bytes(text or json.dumps(content).encode())
    cfg = toy_config(folder / 'work', iterations=3)
    cfg.train_dataloader.dataset = {**LISTED, 'data_root': str(folder), **settings}
    return cfg


def run(cfg):
    build_runner(cfg).train()


@pytest.mark.parametrize('workers', [0, 1])
def test_an_image_that_a_transform_cannot_take_is_named(tmp_path, workers):
    cfg = listed(tmp_path, ['a.jpg', 'b.jpg', 'c.jpg'])
    cfg.train_dataloader.num_workers = workers
    found = message_of(run, cfg)
    start = f'{tmp_path}/b.jpg: Fails cannot process this image (ValueError: no such band): '
    assert found.startswith(start)
    assert '\n' not in found and 'Traceback' not in found


@pytest.mark.parametrize('wrapper', ['ConcatDataset', 'RepeatDataset'])
def test_an_image_of_a_wrapped_dataset_is_named(tmp_path, wrapper):
    cfg = listed(tmp_path, ['b.jpg'])
    inner = cfg.train_dataloader.dataset
    settings = (
        dict(datasets=[inner]) if wrapper == 'ConcatDataset' else dict(dataset=inner, times=2)
    )
    cfg.train_dataloader.dataset = dict(type=wrapper, **settings)
    assert message_of(run, cfg).startswith(f'{tmp_path}/b.jpg: Fails cannot process')


def test_a_transform_without_its_package_does_not_blame_the_image(tmp_path):
    pipeline = [dict(type='Fails', image='b.jpg', error='ImportError')]
    found = message_of(run, listed(tmp_path, ['b.jpg'], pipeline=pipeline))
    assert found == 'Fails needs a package: no such band'


def test_a_dataset_without_images_is_refused(tmp_path):
    found = message_of(run, listed(tmp_path, []))
    assert found.startswith(f'ListedImages has no images left ({tmp_path}/list.json): check its')


@pytest.mark.parametrize(
    ('encoding', 'reason'),
    [
        ('utf-8-sig', 'has a byte-order mark, which its reader does not accept: save it as UTF-8'),
        ('utf-16', 'is encoded in UTF-16: save it as UTF-8'),
        ('utf-32-be', 'is encoded in UTF-32: save it as UTF-8'),
        ('cut', 'cannot be read (JSONDecode'),
    ],
)
def test_a_list_that_its_reader_cannot_parse_is_named(tmp_path, encoding, reason):
    text = b'{"metainfo": {' if encoding == 'cut' else '{"data_list": []}'.encode(encoding)
    found = message_of(run, listed(tmp_path, [], text))
    assert found.startswith(f'{tmp_path}/list.json {reason}'), found


def raising(error):
    def function():
        raise error

    return function


@pytest.mark.parametrize(
    ('error', 'message'),
    [
        (
            torch.cuda.OutOfMemoryError(
                'CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has 7 GiB'
            ),
            'the GPU is out of memory (Tried to allocate 2.50 GiB): reduce batch_size',
        ),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            'this machine is out of memory',
        ),
        (
            RuntimeError('DataLoader worker (pid 12) is killed by signal: Killed. '),
            'a data worker was killed (DataLoader worker (pid 12) is killed by signal: Killed): ',
        ),
        (
            RuntimeError(
                'DataLoader worker (pid 3) is killed by signal: Bus error. It is possible that '
                "dataloader's workers are out of shared memory. Please try to raise your limit."
            ),
            'shared memory is full',
        ),
        (
            RuntimeError('unable to write to file </torch_12_34>: No space left on device (28)'),
            'shared memory is full',
        ),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
            'a file could not be written ([Errno 28] No space left on device): the disk is',
        ),
        (ImportError('Please install lmdb to enable LmdbBackend.'), 'Please install lmdb to'),
        (
            ImportError(
                'Caught ImportError in DataLoader worker process 1.\nOriginal Traceback:\n  '
                'File "a.py", line 3\nImportError: `tifffile` is not installed'
            ),
            'ImportError: `tifffile` is not installed (',
        ),
        (
            # of mmdet's metrics
            RuntimeError(
                'panopticapi is not installed, please install it by: pip install git+URL.'
            ),
            'panopticapi is not installed, please install it by: pip install git+URL. Or use '
            'mmgcvit.LoadPanopticAnnotations and mmgcvit.PanopticMetric without it (',
        ),
        (UserError('set x'), 'set x'),
    ],
)
def test_errors_of_the_machine_have_a_remedy(error, message):
    assert message_of(raising(error)).startswith(message)


@pytest.mark.parametrize(
    ('package', 'remedy'),
    [
        ('lvis', 'git+https://github.com/lvis-dataset/lvis-api.git'),
        ('old', ': install a newer version of old'),
    ],
)
def test_a_package_for_an_older_numpy_is_named(package, remedy):
    module = types.ModuleType(package)
    code = 'import numpy\ndef evaluate(*_):\n    return numpy.removed'
    exec(code, module.__dict__)
    message = message_of(module.evaluate)
    assert message.startswith(f'{package} uses np.removed, which NumPy {np.__version__} does not')
    assert message.endswith(remedy)


@pytest.mark.parametrize(
    'error', [RuntimeError('shapes differ'), ImportError('cannot import name x'), KeyError('a')]
)
def test_other_errors_are_not_known(error):
    assert message_of(raising(error)) is None


def test_a_pipeline_with_named_images_reaches_workers_that_are_spawned(tmp_path):
    runner = build_runner(listed(tmp_path, ['a.jpg']))
    dataset = runner.build_dataloader(runner.cfg.train_dataloader).dataset
    assert len(pickle.loads(pickle.dumps(dataset)).pipeline.transforms) == 1


def test_a_tool_that_cannot_build_a_model_names_the_place_in_the_config(tmp_path):
    def build():
        cfg = toy_config(tmp_path, model=dict(clases=3))
        try:
            MODELS.build(cfg.model)
        except TypeError as error:
            raise UserError('the model cannot be built here') from error

    start = 'model.clases: ToyModel has no argument clases (did you mean classes?)'
    assert message_of(build).startswith(start)


def test_the_part_of_a_model_that_fails_is_named():
    layers = torch.nn.ModuleDict(dict(neck=torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1))))
    layers.forward = lambda images: layers['neck'](images)
    for model in (layers, torch.nn.DataParallel(layers)):
        with pytest.raises(RuntimeError) as raised:
            model(torch.ones(1, 5, 2, 2))
        assert location(raised.value).startswith('model.neck.0, nn/modules/conv.py:')
    with pytest.raises(RuntimeError) as raised:
        torch.ones(2) @ torch.ones(3)
    assert location(raised.value).startswith('tests/engine/test_known_errors.py:')


def test_a_metric_that_a_class_refuses_is_named_with_its_place():
    cfg = Config(dict(val_evaluator=dict(type='mmdet.CocoMetric', metric=['bbox', 'mask'])))

    def build(cfg):
        METRICS.build(cfg.val_evaluator)

    with pytest.raises(KeyError) as raised:
        build(cfg)
    text = known_error(raised.value)
    assert text.startswith('val_evaluator: CocoMetric: "metric should be one of')


def test_an_assertion_without_text_is_described_by_its_code():
    with pytest.raises(AssertionError) as raised:
        FPN(in_channels=16, out_channels=8, num_outs=1)
    assert describe(raised.value) == 'AssertionError: assert isinstance(in_channels, list)'
    assert describe(AssertionError('different')) == 'AssertionError: different'
    assert describe(AssertionError()) == 'AssertionError: '
