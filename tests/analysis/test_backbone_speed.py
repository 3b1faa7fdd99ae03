"""Timing backbones beside each other."""

import json
import sys

import pytest
import torch

from mmgcvit.analysis import peers
from mmgcvit.analysis.backbone_speed import Measurement, Settings, count_macs, measure_backbone
from mmgcvit.analysis.peers import build_backbone
from mmgcvit.errors import UserError


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_reference_and_backbone_are_the_same_network():
    outputs = []
    for name in ('gcvit', 'reference'):
        model = build_backbone(name, 'xxtiny', (40, 56)).eval()
        torch.manual_seed(0)
        with torch.no_grad():
            outputs.append(model(torch.randn(1, 3, 40, 56)))
    for a, b in zip(*outputs, strict=True):
        assert (a - b).abs().max() < 2e-5 * b.abs().max()


@pytest.mark.parametrize('name', ['swin', 'convnext', 'timm:gcvit_xxtiny'])
def test_peers_give_four_maps(name):
    model = build_backbone(name, 'tiny', (224, 224))
    model.eval()
    with torch.no_grad():
        outputs = model(torch.randn(1, 3, 224, 224))
    assert [out.shape[2:] for out in outputs] == [(s, s) for s in (56, 28, 14, 7)]


def test_padding_costs_the_reference_products_and_not_the_backbone():
    """13² tokens of the last stage at most, in windows of 24²."""
    ours, reference = (
        count_macs(build_backbone(name, 'xxtiny', (96, 96)), (96, 96))
        for name in ('gcvit', 'reference')
    )
    assert reference > 8 * ours
    # the linear layers and convolutions alone
    assert ours > 96 * 96 * 12


@pytest.mark.parametrize(
    ('name', 'dtype'),
    [
        ('gcvit', 'float32'),
        ('gcvit', 'bfloat16'),
        ('reference', 'float32'),
        ('swin', 'float32'),
        ('convnext', 'float32'),
        ('timm:gcvit_xxtiny', 'float32'),
    ],
)
def test_a_measurement_has_all_its_numbers(name, dtype):
    side = 224 if name.startswith('timm') else 64
    arch = 'tiny' if name in ('swin', 'convnext') else 'xxtiny'
    settings = Settings(name, arch, (side, side), dtype=dtype, warm_up=1, runs=2)
    found = measure_backbone(settings)
    assert not found.note
    assert len(found.forward) == len(found.training) == 2
    assert 0 < min(found.forward) < max(found.training) and found.macs > 0
    # of the whole process, which may have been larger before
    assert found.training_memory >= found.forward_memory >= 0
    model = build_backbone(name, arch, (side, side))
    assert found.params == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ('settings', 'note'),
    [
        (Settings('swin', 'xxtiny'), 'Swin has no counterpart of size xxtiny'),
        (Settings('timm:nonsense'), 'timm cannot build nonsense'),
        (Settings('timm:gcvit_xxtiny', shape=(100, 100)), 'failed: '),
    ],
)
def test_what_cannot_be_measured_is_told(settings, note):
    found = measure_backbone(settings)
    assert found.note.startswith(note) and not found.forward


def test_whatever_a_peer_fails_with_is_told(monkeypatch):
    monkeypatch.setitem(peers.BACKBONES, 'swin', lambda arch: {}[arch])
    assert measure_backbone(Settings('swin')).note == "failed: 'tiny'"


@pytest.mark.parametrize(('name', 'package'), [('swin', 'mmdet'), ('convnext', 'mmpretrain')])
def test_peers_that_are_not_installed_are_told(name, package, monkeypatch):
    monkeypatch.setitem(sys.modules, f'{package}.models', None)
    assert measure_backbone(Settings(name)).note.startswith('cannot be imported: ')


@pytest.fixture
def tool(load_tool, monkeypatch):
    """The tool, with made-up measurements."""
    tool = load_tool('benchmark_backbones')
    seconds = {'gcvit': iter([2.0, 4.0, 9.0, 20.0]), 'reference': iter([8.0, 8.0, 8.0, 80.0])}

    def measure_alone(settings):
        if settings.name not in seconds:
            return Measurement(note='cannot be imported: no such package')
        time = next(seconds[settings.name])
        return Measurement([time], [3 * time], 10**8, 10**9, 28_000_000, 5 * 10**9)

    monkeypatch.setattr(tool, 'measure_alone', measure_alone)
    return tool


def test_table_json_and_plot(tool, tmp_path, capsys):
    files = tmp_path / 'speed.json', tmp_path / 'speed.png'
    arguments = [
        '--rounds',
        '3',
        '--shapes',
        '64x64',
        '64x64',
        '--backbones',
        'gcvit',
        'reference',
        'swin',
        'swin',
    ]
    tool.main([*arguments, '--json', str(files[0]), '--plot', str(files[1])])
    printed = capsys.readouterr()
    rows = {line.split()[0]: line for line in printed.out.splitlines() if line}
    # medians of 2, 4 and 9 seconds, and of three times 8
    assert rows['gcvit'].split()[1:] == (
        ['28.0', 'M', '5.0', '4000', 'ms', '1.00', '12000', 'ms', '1.00', '1.00', 'GB', '1.00']
    )
    assert rows['reference'].split()[4:7] == ['8000', 'ms', '2.00']
    assert rows['swin'].endswith('skipped: cannot be imported: no such package')
    assert '9 of 9: swin, 64x64, about 0 s left' in printed.err
    numbers = json.loads(files[0].read_text())
    assert [len(result['rounds']) for result in numbers['results']] == [3, 3, 1]
    assert numbers['settings']['dtype'] == 'float32' and numbers['torch'] == torch.__version__
    assert files[1].read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ('--shapes 800', r'--shapes 800 is not allowed: use HEIGHTxWIDTH, for example 800x1280'),
        ('--shapes 0x64', r'--shapes 0x64 is not allowed'),
        ('--rounds 0', r'--rounds 0 is not allowed: use an integer of at least 1'),
        ('--backbones vit', r'--backbones vit is not known: choose from gcvit, reference'),
        ('--plot speed.jpg', r'--plot speed.jpg is not allowed: the file name must end in .png'),
        ('--json no/such/f.json', r'the folder no/such does not exist; create it first'),
        ('--json tests', r'tests is a folder; specify a file'),
    ],
)
def test_options_that_are_not_allowed(tool, arguments, message):
    with pytest.raises(UserError, match=message):
        tool.main(arguments.split())


def test_a_plot_of_nothing_is_told(tool, tmp_path):
    with pytest.raises(UserError, match='no backbone was measured'):
        tool.main(['--backbones', 'swin', '--plot', str(tmp_path / 'speed.png')])


def test_a_process_that_is_killed_is_told(load_tool):
    tool = load_tool('benchmark_backbones')
    # ends the process that unpickles it
    found = tool.measure_alone(Killing())
    assert 'the process was killed' in found.note


class Killing:
    def __reduce__(self):
        import os

        return os._exit, (1,)
