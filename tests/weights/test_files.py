"""Files from paths and URLs; nothing in them runs."""

import argparse
import contextlib
import functools
import http.server
import os
import socket
import threading

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from mmgcvit.weights import WeightsError, fetch, files, read_checkpoint, register_checkpoint_loaders


class Touch:
    """Unpickled by pickle itself, this makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize('place', ['state_dict', 'args', 'top'])
def test_code_in_a_file_does_not_run(tmp_path, place):
    trap = Touch(tmp_path / 'ran')
    content = {'state_dict': {'a': torch.zeros(2)}, 'args': None}
    if place == 'state_dict':
        content['state_dict']['b'] = trap
    elif place == 'args':
        content['args'] = argparse.Namespace(deep=[trap])
    else:
        content = trap
    torch.save(content, tmp_path / 'trap.pth')
    with pytest.raises(WeightsError, match=r'it names \S+\.mkdir'):
        read_checkpoint(tmp_path / 'trap.pth')
    assert not (tmp_path / 'ran').exists()


def test_a_history_buffers_own_state_setter_does_not_run(tmp_path, monkeypatch):
    crafted = HistoryBuffer.__new__(HistoryBuffer)
    state = {
        'statistics_methods': {'min': 'poisoned'},
        '_log_history': [1.0],
        '_count_history': [1],
    }
    with monkeypatch.context() as patch:
        patch.setattr(HistoryBuffer, '__getstate__', lambda self: state)
        torch.save({'message_hub': crafted}, tmp_path / 'crafted.pth')
    content = read_checkpoint(tmp_path / 'crafted.pth')
    assert 'poisoned' not in HistoryBuffer._statistics_methods.values()
    assert content['message_hub'].mean() == 1


def test_what_mmengine_saves_comes_back(tmp_path):
    history = HistoryBuffer()
    for value in (4.0, 2.0, 6.0):
        history.update(value)
    content = {
        'message_hub': {'log_scalars': {'train/loss': history}},
        'meta': {'seed': np.int64(3), 'best': np.float64(0.5), 'palette': np.arange(6)},
        'optimizer': {'state': {0: {'step': torch.tensor(3.0)}}},
    }
    torch.save(content, tmp_path / 'epoch_1.pth')
    found = read_checkpoint(tmp_path / 'epoch_1.pth')
    buffer = found['message_hub']['log_scalars']['train/loss']
    assert isinstance(buffer, HistoryBuffer)
    assert (buffer.min(), buffer.mean(), buffer.current()) == (2, 4, 6)
    buffer.update(8.0)
    assert buffer.mean() == 5
    assert (found['meta']['seed'], found['meta']['best']) == (3, 0.5)
    assert (found['meta']['palette'] == np.arange(6)).all()
    assert found['optimizer']['state'][0]['step'] == 3


@pytest.mark.parametrize('content', [b'', b'<html>moved</html>', b'PK\x03\x04broken'])
def test_broken_files_are_errors_of_ours(tmp_path, content):
    (tmp_path / 'broken.pth').write_bytes(content)
    with pytest.raises(WeightsError, match=r'broken\.pth'):
        read_checkpoint(tmp_path / 'broken.pth')


def test_a_file_cut_short_is_an_error_of_ours(tmp_path):
    torch.save({'a': torch.zeros(10_000)}, tmp_path / 'whole.pth')
    whole = (tmp_path / 'whole.pth').read_bytes()
    (tmp_path / 'cut.pth').write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match='cut short'):
        read_checkpoint(tmp_path / 'cut.pth')


def test_paths_and_file_urls(tmp_path, monkeypatch):
    path = tmp_path / 'some weights.pth'
    path.write_bytes(b'x')
    monkeypatch.setenv('HOME', str(tmp_path))
    assert fetch(path) == fetch(str(path)) == fetch('~/some weights.pth') == path
    assert fetch(path.as_uri()) == path


@pytest.mark.parametrize(
    ('source', 'reason'),
    [
        ('/nowhere/w.pth', 'does not exist'),
        ('/', 'is a folder'),
        ('s3://bucket/w.pth', 's3:// is not known'),
    ],
)
def test_sources_that_cannot_be_had(source, reason):
    with pytest.raises(WeightsError, match=reason):
        fetch(source)


@pytest.fixture
def server(tmp_path):
    """A real web server on this machine: its address, folder and the paths asked for."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if self.path == '/cut.pth':
                self.do_HEAD()
                self.wfile.write(b'PK')
            else:
                super().do_GET()

        def do_HEAD(self):
            if self.path != '/cut.pth':
                return super().do_HEAD()
            self.send_response(200)
            self.send_header('Content-Length', '1000')
            self.end_headers()

        def log_message(self, *args):
            pass

    folder = tmp_path / 'served'
    folder.mkdir()
    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{running.server_port}', folder, asked
        running.shutdown()


def test_a_url_is_downloaded_once_and_said_so(server, tmp_path, monkeypatch, log):
    address, folder, asked = server
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    torch.save({'a': torch.ones(3)}, folder / 'weights.pth')
    url = f'{address}/weights.pth'
    first, second = fetch(url), fetch(url)
    assert first == second == tmp_path / 'hub' / 'checkpoints' / 'weights.pth'
    assert asked == ['/weights.pth']
    assert (read_checkpoint(first)['a'] == 1).all()
    assert f'downloading {url} to {first}' in log
    assert any('taken from' in message for message in log)


def test_a_url_out_of_reach_says_where_to_put_the_file(server, tmp_path, monkeypatch):
    address, _, _ = server
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    place = tmp_path / 'hub' / 'checkpoints' / 'missing.pth'
    for url in (f'{address}/missing.pth', 'http://127.0.0.1:1/missing.pth'):
        with pytest.raises(WeightsError, match='could not be downloaded') as error:
            fetch(url)
        assert f'put the file at {place} by hand' in str(error.value)
    assert not place.exists()


def test_a_download_that_is_cut_leaves_nothing_behind(server, tmp_path, monkeypatch):
    address, _, _ = server
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    with pytest.raises(WeightsError, match='2 of 1000 bytes came'):
        fetch(f'{address}/cut.pth')
    assert not (tmp_path / 'hub' / 'checkpoints' / 'cut.pth').exists()


@pytest.mark.parametrize(
    'answer', [b'', b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this']
)
def test_a_server_that_falls_silent_is_given_up(answer, tmp_path, monkeypatch):
    """It answers nothing at all, or a HEAD request and the beginning of the file."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setattr(files, 'TIMEOUT', 0.3)
    with socket.create_server(('127.0.0.1', 0)) as server:
        connections = []

        def serve():
            with contextlib.suppress(OSError):  # when the test is over
                while True:
                    connection, _ = server.accept()
                    connections.append(connection)
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        url = f'http://127.0.0.1:{server.getsockname()[1]}/w.pth'
        with pytest.raises(WeightsError, match=r'could not be downloaded \(.*timed out\)'):
            fetch(url)
        assert len(connections) == (2 if answer else 1)
        assert socket.getdefaulttimeout() is None
    assert not list(tmp_path.rglob('*.pth'))


def test_our_tools_make_mmengine_read_checkpoints_safely(tmp_path, monkeypatch):
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    torch.save(Touch(tmp_path / 'ran'), tmp_path / 'trap.pth')
    torch.save({'meta': {'config': 'x = 1', 'iter': 7}}, tmp_path / 'last.pth')
    register_checkpoint_loaders()
    for source in (str(tmp_path / 'trap.pth'), (tmp_path / 'trap.pth').as_uri()):
        with pytest.raises(WeightsError):
            CheckpointLoader.load_checkpoint(source)
    assert not (tmp_path / 'ran').exists()
    # Runner.resume would execute the text of the config
    content = CheckpointLoader.load_checkpoint(str(tmp_path / 'last.pth'), map_location='cpu')
    assert content == {'meta': {'iter': 7}}
