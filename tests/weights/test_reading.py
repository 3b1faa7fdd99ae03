"""Reading files with torch's reader and with ours for older torch. No code in them runs."""

import argparse
import contextlib
import copyreg
import io
import multiprocessing
import os
import pickle
import tarfile
import time
import zipfile
from collections import Counter, OrderedDict

import crafted
import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from safetensors.torch import save_file

from mmgcvit import GCViT
from mmgcvit.errors import UserError
from mmgcvit.weights import (
    convert_weights,
    publish_model,
    read_checkpoint,
    reading,
    register_checkpoint_loaders,
)


@pytest.fixture(params=['torch', 'restricted'])
def reader(request, monkeypatch):
    """Both readers of pickles: torch's since 2.5, and ours for older versions."""
    if request.param == 'restricted':
        monkeypatch.setattr(reading, 'TORCH_TAKES_GLOBALS', False)
    elif not reading.TORCH_TAKES_GLOBALS:
        pytest.skip('this torch cannot')
    return request.param


@pytest.fixture
def canary(tmp_path):
    """A folder that no test file may create."""
    path = tmp_path / 'ran'
    yield path
    assert not path.exists()


@pytest.fixture
def extension():
    """A global that pickles can refer to by an extension code."""
    copyreg.add_extension('os', 'mkdir', 0xF0)
    yield
    copyreg.remove_extension('os', 'mkdir', 0xF0)


NAMES = list(crafted.payloads('x'))
# payloads that pickle itself rejects or runs without effect, which other readers might not
HARMLESS = {
    *('copyreg', 'torch.hub', 'torch.jit', 'numpy.load', 'attributes of a function'),
    *('new object of a function', 'new object with keywords', 'name with dots'),
    *('persistent id', 'persistent module', 'statistics of all history buffers'),
}
# payloads with no effect, so that the file can be read
INERT = {'statistics of all history buffers'}


def unpickle_all(canary, report):
    ran = []
    for name, payload in crafted.payloads(canary).items():
        with contextlib.suppress(Exception):
            pickle.loads(b'\x80\x02' + payload + b'.')
        if canary.exists():
            canary.rmdir()
            ran.append(name)
    report.write_text('\n'.join(ran))


@pytest.mark.usefixtures('extension')
def test_most_of_the_crafted_files_run_with_pickle_itself(canary, tmp_path):
    # in a separate process, because some payloads modify classes
    process = multiprocessing.get_context('fork').Process(
        target=unpickle_all, args=(canary, tmp_path / 'ran.txt')
    )
    process.start()
    process.join(60)
    ran = (tmp_path / 'ran.txt').read_text().splitlines()
    assert set(NAMES) - set(ran) <= HARMLESS


@pytest.mark.usefixtures('extension', 'reader')
@pytest.mark.parametrize('place', crafted.PLACES)
@pytest.mark.parametrize('name', NAMES)
def test_nothing_runs(tmp_path, canary, name, place):
    body = crafted.PLACES[place](crafted.payloads(canary)[name])
    attributes = set(vars(argparse.Namespace))
    path = tmp_path / 'crafted.pth'
    for write in (crafted.zip_file, crafted.legacy_file):
        write(path, body)
        if name in INERT and place != 'message_hub':
            read_checkpoint(path)
        else:
            with pytest.raises(UserError, match=r'crafted\.pth'):
                read_checkpoint(path)
    assert set(vars(argparse.Namespace)) == attributes
    assert all(callable(method) for method in HistoryBuffer._statistics_methods.values())


@pytest.mark.usefixtures('reader')
@pytest.mark.parametrize('position', range(5))
def test_no_pickle_of_the_old_format_runs(tmp_path, canary, position):
    """The pickles are magic number, protocol, machine, content and storage keys."""
    crafted.legacy_file(tmp_path / 'old.pth', crafted.payloads(canary)['os.mkdir'], position)
    with pytest.raises(UserError, match=r'old\.pth'):
        read_checkpoint(tmp_path / 'old.pth')


@pytest.mark.usefixtures('reader')
@pytest.mark.parametrize('member', ['storages', 'tensors', 'pickle'])
def test_nothing_in_a_tar_of_the_first_format_runs(tmp_path, canary, member):
    path = tmp_path / 'oldest.pth'
    body = b'\x80\x02' + crafted.payloads(canary)['os.mkdir'] + b'.'
    with tarfile.open(path, 'w') as archive:
        for name in ('storages', 'tensors', 'pickle'):
            content = body if name == member else pickle.dumps(0, 2)
            entry = tarfile.TarInfo(f'\x80{name}' if name == 'storages' else name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    with pytest.raises(UserError, match='is not a weights file'):
        read_checkpoint(path)


@pytest.mark.usefixtures('reader')
@pytest.mark.parametrize('name', ['w.safetensors', 'w.txt', 'w', 'w.pth.tar', 'w.zip'])
@pytest.mark.parametrize('inside', [('archive', 'data.pkl'), ('a/b', 'data.pkl'), ('', 'data.pkl')])
def test_the_file_name_does_not_affect_safety(tmp_path, canary, name, inside):
    crafted.zip_file(tmp_path / name, crafted.payloads(canary)['os.system'], *inside)
    with pytest.raises(
        UserError, match=r'it refers to os\.system' if inside[0] == 'archive' else None
    ):
        read_checkpoint(tmp_path / name)


@pytest.mark.usefixtures('reader')
def test_two_pickles_in_one_archive_do_not_hide_one(tmp_path, canary):
    path = tmp_path / 'two.pth'
    crafted.zip_file(path, b'}')
    with zipfile.ZipFile(path, 'a') as archive:
        body = b'\x80\x02' + crafted.payloads(canary)['os.system'] + b'.'
        with pytest.warns(UserWarning, match='Duplicate name'):
            archive.writestr('archive/data.pkl', body)
    with pytest.raises(UserError, match='tables of contents do not agree'):
        read_checkpoint(path)


@pytest.mark.usefixtures('reader')
@pytest.mark.filterwarnings('ignore:.*torch.jit')
def test_torchscript_programs_are_rejected(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / 'program.pt')
    with pytest.raises(UserError, match='is a TorchScript program, which is not executed'):
        read_checkpoint(tmp_path / 'program.pt')


@pytest.mark.usefixtures('reader')
@pytest.mark.filterwarnings('ignore:.*torch.jit')
def test_a_program_behind_a_harmless_table_of_contents_is_rejected(tmp_path):
    """Python's zipfile reads one table of contents, torch the other."""
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / 'program.pt')
    path = tmp_path / 'two_faces.pth'
    path.write_bytes(crafted.with_another_table((tmp_path / 'program.pt').read_bytes()))
    assert zipfile.ZipFile(path).namelist() == ['archive/version']
    with pytest.raises(UserError, match='is a TorchScript program, which is not executed'):
        read_checkpoint(path)
    torch.save({'a': torch.ones(1)}, tmp_path / 'weights.pth')
    path.write_bytes(crafted.with_another_table((tmp_path / 'weights.pth').read_bytes()))
    with pytest.raises(UserError, match='tables of contents do not agree'):
        read_checkpoint(path)


@pytest.mark.usefixtures('reader')
@pytest.mark.parametrize('kind', ['V8', 'O8', 'M8', 'f4000000'])
def test_crafted_numpy_dtypes_are_rejected(tmp_path, kind):
    """A dtype with a hidden object field made NumPy interpret bytes of the file as pointers."""
    crafted.zip_file(tmp_path / 'w.pth', crafted.dict_of(meta=crafted.array_of_pointers(kind)))
    with pytest.raises(UserError, match=f'NumPy dtype .{kind}. is not a plain number type'):
        read_checkpoint(tmp_path / 'w.pth')


@pytest.mark.usefixtures('reader')
@pytest.mark.parametrize('name', crafted.bombs())
def test_small_files_need_little_time_and_memory(tmp_path, name):
    crafted.zip_file(tmp_path / 'w.pth', crafted.bombs()[name])
    began = time.process_time()
    with pytest.raises(UserError) as error:
        read_checkpoint(tmp_path / 'w.pth')
    assert time.process_time() - began < 5 and len(str(error.value)) < 1000


@pytest.fixture
def trap(tmp_path, canary):
    crafted.zip_file(tmp_path / 'trap.pth', crafted.payloads(canary)['os.mkdir'])
    return tmp_path / 'trap.pth'


def test_errors_show_names_and_a_remedy(trap):
    with pytest.raises(UserError) as error:
        read_checkpoint(trap)
    message = str(error.value)
    assert 'it refers to os.mkdir. ' in message and 'weights_only=False' not in message
    if reading.TORCH_TAKES_GLOBALS:
        assert 'torch.serialization.add_safe_globals' in message


def test_errors_show_all_names(tmp_path):
    torch.save([OrderedDict, pytest.approx, os.getcwd, np.linalg.norm], tmp_path / 'w.pth')
    with pytest.raises(
        UserError, match=r'it refers to \S+approx, numpy\.linalg\S*\.norm, posix\.getcwd\. '
    ):
        read_checkpoint(tmp_path / 'w.pth')


class Own:
    def __init__(self):
        self.value = 3


@pytest.mark.skipif(not reading.TORCH_TAKES_GLOBALS, reason='torch before 2.5')
def test_classes_passed_to_add_safe_globals_are_read(tmp_path):
    torch.save({'own': Own()}, tmp_path / 'own.pth')
    with pytest.raises(UserError, match=r'test_reading\.Own'):
        read_checkpoint(tmp_path / 'own.pth')
    with torch.serialization.safe_globals([Own]):
        assert read_checkpoint(tmp_path / 'own.pth')['own'].value == 3


@pytest.mark.usefixtures('canary')
@pytest.mark.parametrize('source', ['path', 'file', 'http', 'hf', 'timm'])
def test_every_way_into_the_package_is_safe(trap, source, server, hub, tmp_path, monkeypatch, nano):
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'torch'))
    register_checkpoint_loaders()
    address, served, _ = server
    folder, _ = hub
    copies = [served / 'trap.pth', folder / 'owner/repo/main/trap.pth']
    copies.append(folder / 'timm/gcvit_trap/main/pytorch_model.bin')
    for copy in copies:
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(trap.read_bytes())
    checkpoint = {
        'path': str(trap),
        'file': trap.as_uri(),
        'http': f'{address}/trap.pth',
        'hf': 'hf://owner/repo/trap.pth',
        'timm': 'timm://gcvit_trap',
    }[source]
    init_cfg = dict(type='Pretrained', checkpoint=checkpoint)
    ways = [
        lambda: GCViT(nano, init_cfg=init_cfg).init_weights(),
        lambda: GCViT(nano, init_cfg={**init_cfg, 'prefix': 'a', 'ema': True}).init_weights(),
        lambda: CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu'),
        lambda: publish_model(checkpoint, tmp_path / 'out.pth'),
        lambda: convert_weights(checkpoint, tmp_path / 'out.pth'),
    ]
    for way in ways:
        with pytest.raises(UserError, match=r'it refers to os\.mkdir'):
            way()
    assert not list(tmp_path.glob('out*'))


@pytest.mark.usefixtures('reader')
@pytest.mark.parametrize('old_format', [False, True])
def test_training_checkpoints_are_read_completely(tmp_path, old_format):
    history = HistoryBuffer()
    for value in (4.0, 2.0, 6.0):
        history.update(value)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    shared = (1, [2.0, None])
    # sharded models have such tensors
    noted = torch.rand(2)
    noted.note = 'an attribute'
    content = {
        'state_dict': model.state_dict(),
        'parameter': torch.nn.Parameter(torch.rand(2)),
        'half': torch.rand(3).bfloat16(),
        'noted': noted,
        'param_schedulers': [{'milestones': Counter([27, 33]), 'gamma': 0.1}],
        'message_hub': {'log_scalars': {'train/loss': history}},
        'meta': {'seed': np.int64(3), 'best': np.float64(0.5), 'palette': np.arange(6)},
        'optimizer': optimizer.state_dict(),
        'args': argparse.Namespace(lr=1e-3, data='imagenet', sizes=[1, 2]),
        'plain': {'set': {1, 2}, 'bytes': b'a\xff', 'complex': 1j, 'shared': [shared, shared]},
    }
    path = tmp_path / 'epoch_1.pth'
    torch.save(content, path, _use_new_zipfile_serialization=not old_format)
    found = read_checkpoint(path)
    buffer = found['message_hub']['log_scalars']['train/loss']
    assert isinstance(buffer, HistoryBuffer)
    assert (buffer.min(), buffer.mean(), buffer.current()) == (2, 4, 6)
    buffer.update(8.0)
    assert buffer.mean() == 5
    assert (found['meta']['seed'], found['meta']['best']) == (3, 0.5)
    assert (found['meta']['palette'] == np.arange(6)).all()
    assert found['optimizer']['param_groups'] == content['optimizer']['param_groups']
    for index, state in content['optimizer']['state'].items():
        for name, tensor in state.items():
            assert torch.equal(found['optimizer']['state'][index][name], tensor)
    assert torch.equal(found['state_dict']['weight'], model.weight)
    assert torch.equal(found['parameter'], content['parameter'])
    assert torch.equal(found['half'], content['half']) and found['half'].dtype == torch.bfloat16
    assert found['plain'] == content['plain']
    assert torch.equal(found['noted'], noted)
    assert found['param_schedulers'] == content['param_schedulers']
    # args is a stand-in, not an argparse.Namespace
    assert vars(found['args']) == vars(content['args'])
    assert not isinstance(found['args'], argparse.Namespace)


def test_shared_and_recursive_values(tmp_path):
    nested = [1]
    for _ in range(100):
        nested = [nested, nested]
    loop = []
    loop.append({'loop': (loop,)})
    torch.save({'nested': nested, 'loop': loop}, tmp_path / 'w.pth')
    found = read_checkpoint(tmp_path / 'w.pth')
    assert found['loop'][0]['loop'][0] is found['loop']
    assert found['nested'][0] is found['nested'][1]


def test_safetensors(tmp_path):
    tensors = {'a': torch.rand(2, 3), 'b': torch.rand(4).bfloat16()}
    save_file(tensors, tmp_path / 'w.bin', metadata={'format': 'pt', 'licence': 'none'})
    found = read_checkpoint(tmp_path / 'w.bin')
    assert found['meta'] == {'format': 'pt', 'licence': 'none'}
    assert all(torch.equal(found['state_dict'][name], tensors[name]) for name in tensors)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'', 'is empty'),
        (b'<!DOCTYPE html><html>moved</html>', 'is a web page, not a weights file'),
        (b'\n<html>moved</html>', 'is a web page'),
        (b'version https://git-lfs.github.com/spec/v1', 'is not a weights file: it begins with'),
        (b'PK\x03\x04broken', 'cannot be read as a weights file'),
        (b'\x80\x02broken', 'was not loaded|cannot be read'),
        (b'\xff\x00\x00\x00\x00\x00\x00\x00{broken', 'cannot be read as a weights file'),
    ],
)
@pytest.mark.usefixtures('reader')
def test_broken_files_raise_user_errors(tmp_path, content, message):
    (tmp_path / 'broken.pth').write_bytes(content)
    with pytest.raises(UserError, match=rf'broken\.pth ({message})'):
        read_checkpoint(tmp_path / 'broken.pth')


@pytest.mark.usefixtures('reader')
@pytest.mark.parametrize('format', ['zip', 'old', 'safetensors'])
@pytest.mark.parametrize('part', [0.02, 0.5, 0.999])
def test_truncated_files_raise_user_errors(tmp_path, format, part):
    path = tmp_path / 'cut.pth'
    state = {'a': torch.zeros(10_000)}
    if format == 'safetensors':
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=format == 'zip')
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(UserError, match=r'cut\.pth (cannot be read|was not loaded)'):
        read_checkpoint(path)


def test_checksums_detect_a_changed_byte(tmp_path):
    path = tmp_path / 'w.pth'
    torch.save({'a': torch.ones(10_000)}, path)
    content = bytearray(path.read_bytes())
    content[content.index(torch.ones(4).numpy().tobytes()) + 20_000] ^= 1
    path.write_bytes(content)
    assert not torch.equal(torch.load(path, weights_only=True)['a'], torch.ones(10_000))
    with pytest.raises(UserError, match=r'is damaged: checksum mismatch in '):
        read_checkpoint(path)


def test_compressed_archives_are_rejected(tmp_path):
    with zipfile.ZipFile(tmp_path / 'w.zip', 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('w.pth', b'0' * 10_000)
    with pytest.raises(UserError, match='compressed zip archive'):
        read_checkpoint(tmp_path / 'w.zip')
