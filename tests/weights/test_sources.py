"""Files from paths and URLs; nothing in them runs."""

import contextlib
import socket
import threading

import pytest
import torch
from mmengine.runner import CheckpointLoader

from mmgcvit.weights import (
    WeightsError,
    fetch,
    read_checkpoint,
    register_checkpoint_loaders,
    sources,
)


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
        ('open-mmlab://resnet50', 'open-mmlab:// is not known'),
        ('hf://owner/repo', r'give hf://OWNER/REPO/FILE or hf://OWNER/REPO@REVISION/FILE'),
        ('timm://', 'as timm://gcvit_tiny.in1k'),
        ('timm://timm/gcvit_tiny', 'as timm://gcvit_tiny.in1k'),
    ],
)
def test_sources_that_cannot_be_had(source, reason):
    with pytest.raises(WeightsError, match=reason):
        fetch(source)


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


def test_two_urls_of_one_name_are_two_files(server, tmp_path, monkeypatch):
    address, folder, asked = server
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    for name in ('a', 'b'):
        (folder / name).mkdir()
        torch.save({'of': name}, folder / name / 'weights.pth')
    urls = [f'{address}/{name}/weights.pth' for name in ('a', 'b', 'a', 'b')]
    assert [read_checkpoint(fetch(url))['of'] for url in urls] == ['a', 'b', 'a', 'b']
    assert asked == ['/a/weights.pth', '/b/weights.pth']
    # one that was put there by hand, as the errors tell
    by_hand = tmp_path / 'hub' / 'checkpoints' / 'by_hand.pth'
    torch.save({'of': 'hand'}, by_hand)
    assert fetch(f'{address}/by_hand.pth') == by_hand


def test_a_page_in_place_of_a_file_is_not_kept(server, tmp_path, monkeypatch):
    address, folder, _ = server
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    (folder / 'moved.pth').write_text('<!DOCTYPE html><p>This model has moved.')
    with pytest.raises(WeightsError, match='the server sent a web page instead of a file'):
        fetch(f'{address}/moved.pth')
    assert not [path for path in (tmp_path / 'hub').rglob('moved.pth*') if path.suffix != '.lock']
    torch.save({}, folder / 'moved.pth')
    assert fetch(f'{address}/moved.pth').is_file()


@pytest.mark.parametrize(
    'answer', [b'', b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this']
)
def test_a_server_that_falls_silent_is_given_up(answer, tmp_path, monkeypatch):
    """It answers nothing at all, or a HEAD request and the beginning of the file."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setattr(sources, 'TIMEOUT', 0.3)
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


def test_the_text_of_a_config_is_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    torch.save({'meta': {'config': 'x = 1', 'iter': 7}}, tmp_path / 'last.pth')
    register_checkpoint_loaders()
    # Runner.resume would execute the text of the config
    content = CheckpointLoader.load_checkpoint(str(tmp_path / 'last.pth'), map_location='cpu')
    assert content == {'meta': {'iter': 7}}
