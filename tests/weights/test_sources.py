"""Files from paths and URLs."""

import contextlib
import hashlib
import socket
import subprocess
import sys
import threading
import traceback
from pathlib import Path

import pytest
import torch
from mmengine.runner import CheckpointLoader

from mmgcvit.errors import UserError
from mmgcvit.weights import (
    fetch,
    read_checkpoint,
    register_checkpoint_loaders,
    sources,
)
from mmgcvit.weights.sources import public_name


def test_paths_and_file_urls(tmp_path, monkeypatch):
    path = tmp_path / 'some weights.pth'
    path.write_bytes(b'x')
    monkeypatch.setenv('HOME', str(tmp_path))
    assert fetch(path) == fetch(str(path)) == fetch('~/some weights.pth') == path
    assert fetch(path.as_uri()) == path
    assert fetch(path.as_uri().replace('file://', 'file://localhost')) == path


@pytest.mark.parametrize(
    ('source', 'reason'),
    [
        ('/nowhere/w.pth', 'does not exist'),
        ('/', 'is a folder'),
        ('s3://bucket/w.pth', 's3:// is not supported'),
        ('open-mmlab://resnet50', 'open-mmlab:// is not supported'),
        ('hf://owner/repo', r'use hf://OWNER/REPO/FILE or hf://OWNER/REPO@REVISION/FILE'),
        ('timm://', 'such as timm://gcvit_tiny.in1k'),
        ('timm://timm/gcvit_tiny', 'such as timm://gcvit_tiny.in1k'),
        ('~nouser/w.pth', '~nouser/w.pth does not exist .~nouser is not a user.* specify the path'),
        ('/' + 'w' * 300, 'cannot be read .File name too long.: specify the path'),
        ('file://elsewhere/w.pth', "file://elsewhere/w.pth' .* the host 'elsewhere'.* a path"),
        ('file://~/w.pth', "got the host '~'"),
        ('http://h/a%00b.pth', 'http://h/a%00b.pth.* control characters; use a URL such as'),
        ('http://h/a b.pth', 'it contains spaces or control characters; use a URL such as'),
        ('http://[::1/a', 'http://.*its host or port is invalid; use a URL such as'),
        (
            'http://h:99999/a',
            'http://h:99999/a.*its host or port is invalid; use a URL such as',
        ),
        ('http:///a', 'its host or port is missing; use a URL such as'),
    ],
)
def test_unavailable_sources(source, reason):
    with pytest.raises(UserError, match=reason):
        fetch(source)


def test_a_url_is_downloaded_once_and_logged(server, tmp_path, monkeypatch, log):
    address, folder, requested = server
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    torch.save({'a': torch.ones(3)}, folder / 'weights.pth')
    url = f'{address}/weights.pth'
    first, second = fetch(url), fetch(url)
    assert first == second == tmp_path / 'hub' / 'checkpoints' / 'weights.pth'
    assert requested == ['/weights.pth']
    assert (read_checkpoint(first)['a'] == 1).all()
    assert f'downloading {url} to {first}' in log
    assert any('using the cached weights of' in message for message in log)


def test_the_error_for_an_unreachable_url_shows_where_to_copy_the_file(
    server, tmp_path, monkeypatch
):
    address, _, _ = server
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    place = tmp_path / 'hub' / 'checkpoints' / 'missing.pth'
    for url in (f'{address}/missing.pth', 'http://127.0.0.1:1/missing.pth'):
        with pytest.raises(UserError, match='could not be downloaded') as error:
            fetch(url)
        assert f'copy the file to {place} manually' in str(error.value)
    assert not place.exists()


def test_a_truncated_download_leaves_no_file(server, tmp_path, monkeypatch):
    address, _, _ = server
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    with pytest.raises(UserError, match='received 2 of 1000 bytes'):
        fetch(f'{address}/cut.pth')
    assert not (tmp_path / 'hub' / 'checkpoints' / 'cut.pth').exists()


def test_two_urls_with_the_same_file_name_are_two_files(server, tmp_path, monkeypatch):
    address, folder, requested = server
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    for name in ('a', 'b'):
        (folder / name).mkdir()
        torch.save({'of': name}, folder / name / 'weights.pth')
    urls = [f'{address}/{name}/weights.pth' for name in ('a', 'b', 'a', 'b')]
    assert [read_checkpoint(fetch(url))['of'] for url in urls] == ['a', 'b', 'a', 'b']
    assert requested == ['/a/weights.pth', '/b/weights.pth']
    # a file that was copied there manually, as the error message suggests
    by_hand = tmp_path / 'hub' / 'checkpoints' / 'by_hand.pth'
    torch.save({'of': 'hand'}, by_hand)
    assert fetch(f'{address}/by_hand.pth') == by_hand


def put_in_cache(folder, monkeypatch, served):
    """Make downloads write the text that is served at their URL."""
    monkeypatch.setattr(torch.hub, '_hub_dir', str(folder))
    monkeypatch.setattr(sources, '_content_length', lambda url: None)

    def download(url, path):
        with open(path, 'w') as file:
            file.write(served[url])

    monkeypatch.setattr(torch.hub, 'download_url_to_file', download)


def test_no_file_name_in_a_url_can_replace_the_file_of_another_url(tmp_path, monkeypatch):
    good = 'https://good/gcvit.pth'
    digest = hashlib.sha256(good.encode()).hexdigest()
    names = [
        f'gcvit-{digest[:8]}.pth',
        'gcvit.pth',
        digest,
        '.mmgcvit',
        f'.mmgcvit%2f{digest}%2fgcvit.pth',
        'gcvit.pth.lock',
        'gcvit.pth.url',
        'gcvit.pth.part',
        'a/..',
        '%2e%2e',
        '.',
        '',
    ]
    urls = [*(f'https://evil/{name}' for name in names), good, 'https://other/gcvit.pth']
    put_in_cache(tmp_path, monkeypatch, {url: url for url in urls})
    for url in [*urls, *reversed(urls)]:
        path = fetch(url)
        assert path.read_text() == url
        assert path.resolve().is_relative_to(tmp_path / 'checkpoints')
    place = tmp_path / 'checkpoints' / '.mmgcvit' / digest / 'gcvit.pth'
    assert fetch(good) == place


def test_the_file_of_the_second_of_two_such_urls_can_be_copied_manually(tmp_path, monkeypatch):
    put_in_cache(tmp_path, monkeypatch, {'https://a/w.pth': 'a'})
    first = fetch('https://a/w.pth')
    assert first == tmp_path / 'checkpoints' / 'w.pth'
    monkeypatch.undo()
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path))
    url = 'http://127.0.0.1:1/w.pth'
    with pytest.raises(UserError, match='could not be downloaded') as error:
        fetch(url)
    place = Path(str(error.value).split('copy the file to ')[1].split(' manually')[0])
    place.write_text('by hand')
    assert fetch(url) == place != first


@pytest.mark.parametrize(
    ('source', 'shown'),
    [
        ('a/w.pth', 'a/w.pth'),
        ('/a@b/w?x#y.pth', '/a@b/w?x#y.pth'),
        ('https://h/w.pth', 'https://h/w.pth'),
        ('https://h:80/npm/w@1.0/w.pth', 'https://h:80/npm/w@1.0/w.pth'),
        ('https://u:s3cr3t@h:80/w.pth?X-Amz-Signature=s3cr3t#s3cr3t', 'https://h:80/w.pth'),
        ('https://s3cr3t@[::1]:80/w@1.pth', 'https://[::1]:80/w@1.pth'),
        ('https://u:sec@ret@h/w.pth', 'https://h/w.pth'),
        ('https://u:s3cr3t/?#s3cr3t@h/w.pth', 'https://h/w.pth'),
        ('https://h?a=b@s3cr3t', 'https://h'),
        ('http://[::1/a?s3cr3t', 'http://[::1/a'),
        ('hf://owner/repo@v1/w.pth', 'hf://owner/repo@v1/w.pth'),
        ('s3://key:s3cr3t@bucket/w.pth', 's3://bucket/w.pth'),
    ],
)
def test_display_of_sources(source, shown):
    assert public_name(source) == shown


def test_credentials_in_a_url_are_neither_shown_nor_written(
    server, tmp_path, monkeypatch, log, capfd
):
    address, folder, _ = server
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    torch.save({}, folder / 'w.pth')
    for signature in ('s3cr3t1', 's3cr3t2', 's3cr3t2'):
        path = fetch(f'{address}/w.pth?X-Amz-Signature={signature}#s3cr3t')
    assert any(f'downloading {address}/w.pth to' in message for message in log)
    assert any(f'using the cached weights of {address}/w.pth: {path}' in message for message in log)
    files = [path for path in (tmp_path / 'hub').rglob('*') if path.is_file()]
    shown = [*log, *capfd.readouterr(), *map(str, files), *(f.read_bytes() for f in files)]
    assert 's3cr3t' not in str(shown)


@pytest.mark.parametrize(
    'source',
    [
        '{address}/absent.pth?s3cr3t',
        'http://user:s3cr3t@{host}/w.pth',
        'http://user:s3cr3t/1@{host}/w.pth',
        'http://user:s3cr3t@{host}:99999/w.pth',
        '{address}/moved?s3cr3t',
        '{address}/w w.pth?s3cr3t',
        'http://127.0.0.1:1/w.pth?s3cr3t',
        's3://key:s3cr3t@bucket/w.pth?s3cr3t',
        'file://user:s3cr3t@host/w.pth?s3cr3t',
        'hf://user:s3cr3t@hub/repo/w.pth',
        'hf://owner/repo/w.pth?token=s3cr3t',
        'timm://gcvit_tiny?token=s3cr3t',
    ],
)
def test_credentials_are_not_in_errors_and_their_tracebacks(source, server, tmp_path, monkeypatch):
    address, _, _ = server
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    if 'moved' in source:

        def refuse(url):
            raise OSError(
                f"Redirection to url 'ftp://u:s3cr3t@h/w?s3cr3t' and /w?{url} is not allowed"
            )

        monkeypatch.setattr(sources, '_content_length', refuse)
    with pytest.raises(UserError) as error:
        fetch(source.format(address=address, host=address.removeprefix('http://')))
    # without source lines, because those of this test contain the secret
    lines = traceback.TracebackException.from_exception(error.value, lookup_lines=False)
    causes = [lines.__cause__, None if lines.__suppress_context__ else lines.__context__]
    assert 's3cr3t' not in f'{error.value} {[str(cause) for cause in causes if cause]}'


def test_a_digest_mismatch_does_not_show_credentials(server, tmp_path, monkeypatch):
    address, folder, _ = server
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    (folder / 'w.pth').write_bytes(b'x')
    with pytest.raises(
        UserError, match=f'SHA-256 mismatch for .* .from {address}/w.pth.: expected'
    ):
        fetch(f'{address}/w.pth?s3cr3t', sha256='0' * 64)


def test_a_web_page_instead_of_a_file_is_not_cached(server, tmp_path, monkeypatch):
    address, folder, _ = server
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    (folder / 'moved.pth').write_text('<!DOCTYPE html><p>This model has moved.')
    with pytest.raises(UserError, match='the server sent a web page instead of a file'):
        fetch(f'{address}/moved.pth')
    left = [path for path in (tmp_path / 'hub').rglob('*') if path.is_file()]
    assert [path.suffix for path in left] == ['.lock']
    torch.save({}, folder / 'moved.pth')
    assert fetch(f'{address}/moved.pth').is_file()


@pytest.mark.parametrize(
    'answer', [b'', b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this']
)
def test_a_silent_server_times_out(answer, tmp_path, monkeypatch):
    """The server sends nothing, or only the response to HEAD and the beginning of the file."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setattr(sources, 'TIMEOUT', 0.3)
    with socket.create_server(('127.0.0.1', 0)) as server:
        connections = []

        def serve():
            with contextlib.suppress(OSError):  # the socket is closed at the end of the test
                while True:
                    connection, _ = server.accept()
                    connections.append(connection)
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        url = f'http://127.0.0.1:{server.getsockname()[1]}/w.pth'
        with pytest.raises(UserError, match=r'could not be downloaded \(.*timed out\)'):
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


def test_downloads_work_without_fcntl(tmp_path):
    """Windows does not have this module."""
    code = (
        'import sys\n'
        'sys.modules["fcntl"] = None\n'
        'import torch\n'
        'from mmgcvit.weights import sources\n'
        'torch.hub.set_dir(sys.argv[1])\n'
        'def download(url, path): open(path, "w").write(url)\n'
        'torch.hub.download_url_to_file = download\n'
        'sources._content_length = lambda url: None\n'
        'print(sources.fetch("https://example/weights.pth").read_text())\n'
    )
    found = subprocess.run(
        [sys.executable, '-c', code, tmp_path], capture_output=True, text=True, timeout=60
    )
    assert found.stdout.splitlines()[-1:] == ['https://example/weights.pth'], found.stderr
