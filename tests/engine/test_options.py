"""What --cfg-options mean, and which of them are refused."""

import argparse
import random
import re
import shlex
from pathlib import Path

import pytest
from mmengine.config import Config, DictAction

from mmgcvit.engine import config_parser, load_config
from mmgcvit.engine.options import READ_TOO, accumulative_counts, parse_value, walk
from mmgcvit.errors import UserError

ROOT = Path(__file__).parents[2]
MASK_RCNN = ROOT / 'configs/detection/mask-rcnn_gcvit-xxt_fpn_3x_coco.py'
UPERNET = ROOT / 'configs/segmentation/upernet_gcvit-xxt_160k_ade20k-512x512.py'
CUSTOM = ROOT / 'configs/detection/custom_coco.py'


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        # spaces
        ('data/my shapes/', 'data/my shapes/'),
        ('  data ', '  data '),
        ('a b, c d', ['a b', 'c d']),
        ("('traffic light', '1')", ('traffic light', '1')),
        (' 3 ', 3),
        # quotes
        ("'1'", '1'),
        ('"1e-4"', '1e-4'),
        ("'None'", 'None'),
        ("'a,b'", 'a,b'),
        ("'[1, 2]'", '[1, 2]'),
        ("''", ''),
        ("'x','2'", ['x', '2']),
        ("/data/O'Brien/x", "/data/O'Brien/x"),
        ("[driver's license, 'it's, 2']", ["driver's license", "it's, 2"]),
        ("quoted 'text'", "quoted 'text'"),
        ("'", "'"),
        ("'a", "'a"),
        # numbers and names
        ('1e-4', 1e-4),
        ('1e-4,1e-3', [1e-4, 1e-3]),
        ('0xff', 255),
        ('-1', -1),
        ('true', True),
        ('[False,None]', [False, None]),
        ('none', 'none'),
        ('1.2.3', '1.2.3'),
        # lists, tuples, dicts
        ('[1,2],[3]', [[1, 2], [3]]),
        ('((1,2),[a,b],c)', ((1, 2), ['a', 'b'], 'c')),
        ('(1)', (1,)),
        ('a,', ['a']),
        ('[]', []),
        ('()', ()),
        ('{}', {}),
        ("{'type': 'EMAHook', begin: 2, 'x,y': [1, 'a:b']}",
         {'type': 'EMAHook', 'begin': 2, 'x,y': [1, 'a:b']}),
        ("[{'a': 1}, {'a': {b: 2}}]", [{'a': 1}, {'a': {'b': 2}}]),
        # paths and addresses
        (r'C:\new\table', r'C:\new\table'),
        (r"['C:\new data\a.json']", [r'C:\new data\a.json']),
        ('https://a.b/c?d=1&e=2', 'https://a.b/c?d=1&e=2'),
        ('{url: http://a.b:80/c}', {'url': 'http://a.b:80/c'}),
        ('epoch_{}.pth', 'epoch_{}.pth'),
        ('{epoch}', '{epoch}'),
        ('/data/set (copy)/', '/data/set (copy)/'),
        ('/data/set (copy', '/data/set (copy'),
        ('', ''),
    ],
)  # fmt: skip
def test_values(text, value):
    found = parse_value(text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    'text', ['[1,2', '1,2]', '[(1,2]', '(1,2]', 'a(1,b', '[', '{a: (1}', '[[a]']
)
def test_brackets_that_do_not_match_are_one_line(text):
    with pytest.raises(UserError, match=re.escape(f'the brackets of {text} do not match')) as error:
        parse_value(text)
    assert '\n' not in str(error.value)


def random_text(choose, depth=3):
    """A value as mmengine's parser reads it: without spaces, and with quotes around words alone."""
    words = [
        'a',
        'x_y',
        'a.b',
        '3',
        '-2',
        '1e-4',
        '0.5',
        'true',
        'False',
        'None',
        'a-b',
        "'a'",
        '_',
    ]
    if depth == 0 or choose.random() < 0.4:
        return choose.choice(words)
    opening, closing = choose.choice(['[]', '()'])
    parts = [random_text(choose, depth - 1) for _ in range(choose.randint(0, 3))]
    return opening + ','.join(parts) + choose.choice(['', ',' if parts else '']) + closing


def test_what_mmengines_parser_reads_well_is_read_alike():
    choose = random.Random(0)
    for _ in range(2000):
        text = ','.join(random_text(choose) for _ in range(choose.randint(1, 1)))
        assert repr(parse_value(text)) == repr(DictAction._parse_iterable(text)), text
        words = ','.join(random_text(choose, 0) for _ in range(choose.randint(1, 4)))
        assert repr(parse_value(words)) == repr(DictAction._parse_iterable(words)), words


def parsed(*arguments):
    return config_parser('').parse_args(['config.py', '--cfg-options', *arguments]).cfg_options


def test_arguments_are_divided_at_the_first_equals_sign():
    assert parsed('a.b=c=d', 'e=') == {'a.b': 'c=d', 'e': ''}
    assert config_parser('').parse_args(
        ['config.py', '--cfg-options', 'a=1', '--cfg-options', 'b=2', 'a=3']
    ).cfg_options == {'a': 3, 'b': 2}


@pytest.mark.parametrize(
    ('argument', 'reason'), [('a', "'a' is not KEY=VALUE"), ('=1', 'is not KEY'), ('k=[1', ' k: ')]
)
def test_arguments_of_another_form_are_one_line(argument, reason):
    with pytest.raises(UserError, match=f'--cfg-options.*{reason}') as error:
        parsed(argument)
    assert '\n' not in str(error.value)


def test_values_reach_the_config_unchanged():
    options = parsed(
        'train_dataloader.dataset.data_root=data/my shapes/',
        "train_dataloader.dataset.metainfo.classes=('traffic light','1')",
    )
    dataset = load_config(CUSTOM, options=options).train_dataloader.dataset
    assert dataset.data_root == 'data/my shapes/'
    assert dataset.metainfo.classes == ('traffic light', '1')


@pytest.mark.parametrize(
    ('config', 'option', 'remedy'),
    [
        (MASK_RCNN, 'max_epochs', 'train_cfg.max_epochs'),
        (MASK_RCNN, 'lr', 'optim_wrapper.optimizer.lr'),
        (MASK_RCNN, 'optimizer.weight_decay', 'optim_wrapper.optimizer.weight_decay'),
        (UPERNET, 'optimizer.lr', 'optim_wrapper.optimizer.lr'),
        (UPERNET, 'max_epochs', 'train_cfg.max_iters'),
        (CUSTOM, 'classes', 'train_dataloader.dataset.metainfo.classes'),
        (CUSTOM, 'data_root', 'test_dataloader.dataset.data_root'),
        (CUSTOM, 'data_root', 'val_evaluator.ann_file'),
        (MASK_RCNN, 'launcher', '--launcher'),
        (MASK_RCNN, 'train_pipeline.1.with_mask', 'train_dataloader.dataset.pipeline.1.with_mask'),
        (UPERNET, 'crop_size', 'model.data_preprocessor.size'),
        (UPERNET, 'data_preprocessor.size', 'model.data_preprocessor.size'),
        (MASK_RCNN, 'trian_cfg.max_epochs', 'train_cfg.max_epochs'),
        (MASK_RCNN, 'data.samples_per_gpu', 'train_dataloader.batch_size'),
        (MASK_RCNN, 'total_epochs', 'train_cfg.max_epochs'),
        (UPERNET, 'total_epochs', 'train_cfg.max_iters'),
        (MASK_RCNN, 'evaluation.interval', 'train_cfg.val_interval'),
        (MASK_RCNN, 'nonsense', 'a key under auto_scale_lr, default_hooks'),
    ],
)
def test_options_that_nothing_reads_are_an_error_that_names_the_right_key(config, option, remedy):
    with pytest.raises(UserError) as error:
        load_config(config, options={'train_dataloader.num_workers': 1, option: 12})
    found = str(error.value)
    assert f'{option} changes nothing' in found and '\n' not in found
    suggested = found.partition(': set ')[2].partition('. Set variables')[0]
    assert suggested.startswith(remedy) or remedy in suggested.split(', ')
    assert 'num_workers' not in found and str(config) in found


def test_what_only_parts_outside_of_the_runners_arguments_read_is_taken():
    settings = ('sync_bn=torch', 'find_unused_parameters=True', 'runner_type=mmgcvit.BriefRunner')
    cfg = load_config(MASK_RCNN, options=parsed(*settings, 'tta_pipeline.0.type=X', 'resume=True'))
    assert (cfg.sync_bn, cfg.resume) == ('torch', True)
    for name in READ_TOO:
        assert load_config(MASK_RCNN, options={name: None}).get(name, 0) is None


def documented():
    """The options of all documented commands, as the shell divides them."""
    pages = [ROOT / 'README.md', *ROOT.glob('docs/*.md'), *ROOT.glob('tools/*.py')]
    for page in [*pages, *ROOT.glob('configs/*/*.py')]:
        text = re.sub(r'\\\n\s*', '', page.read_text())
        commands = (
            r'(?:tools/|\$MMSEG/|\$MMDET/)\w+\.(?:py|sh) [^`\n]*' if page.suffix == '.py' else ''
        )
        for options in re.findall(f'{commands}--cfg-options ([^`\n]*)', text):
            pairs = [word for word in shlex.split(options, comments=True) if '=' in word]
            if pairs and pairs != ['KEY=VALUE']:
                yield pytest.param(pairs, id=f'{page.name}:{" ".join(pairs)}')


@pytest.mark.parametrize('pairs', list(documented()))
def test_documented_options_are_all_read(pairs):
    for config in (MASK_RCNN, UPERNET):
        try:
            load_config(config, options=parsed(*pairs))
        except UserError as error:
            # of the other task
            assert 'changes nothing' not in str(error)


def test_walk_visits_lists_and_tuples():
    cfg = Config(dict(a=[dict(b=(1, 2))]))
    assert [path for path, _ in walk(cfg)] == ['a', 'a.0', 'a.0.b', 'a.0.b.0', 'a.0.b.1']


def test_options_of_earlier_arguments_are_not_changed():
    action = config_parser('')._option_string_actions['--cfg-options']
    first = {'a': 1}
    namespace = argparse.Namespace(cfg_options=first)
    action(None, namespace, ['b=2'], '--cfg-options')
    assert first == {'a': 1} and namespace.cfg_options == {'a': 1, 'b': 2}


def test_accumulation_is_found_in_wrappers_of_several_optimizers():
    inner = dict(generator=dict(accumulative_counts=4), critic=dict(accumulative_counts=2))
    assert accumulative_counts(Config(dict(optim_wrapper=inner))) == 4
    assert accumulative_counts(Config(dict(optim_wrapper=dict(accumulative_counts=3)))) == 3
    assert accumulative_counts(Config(dict(optim_wrapper=dict(type='OptimWrapper')))) == 1
    assert accumulative_counts(Config({})) == 1
