"""hf:// and timm://, with the real huggingface_hub and a local server."""

import socket
import sys
import time

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from mmgcvit import GCViT
from mmgcvit.errors import UserError
from mmgcvit.weights import fetch, read_checkpoint, sources
from mmgcvit.weights.layouts import to_timm


def put(folder, name, state, save=torch.save):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    save(state, folder / name)


def test_files_of_a_repository_are_downloaded_once(hub, tmp_path, log):
    folder, requested = hub
    put(folder, 'owner/repo/main/sub/w.pth', {'a': torch.ones(1)})
    put(folder, 'owner/repo/v1.0/sub/w.pth', {'a': torch.zeros(1)})
    path = fetch('hf://owner/repo/sub/w.pth')
    assert tmp_path / 'cache' in path.parents
    assert read_checkpoint(path)['a'] == 1
    assert read_checkpoint(fetch('hf://owner/repo@v1.0/sub/w.pth'))['a'] == 0
    assert fetch('hf://owner/repo/sub/w.pth') == path
    downloads = [path for method, path, _ in requested if method == 'GET']
    assert downloads == [f'/owner/repo/resolve/{name}/sub/w.pth' for name in ('main', 'v1.0')]
    assert any(
        f'from {constants.ENDPOINT} for hf://owner/repo/sub/w.pth, cached in {tmp_path}/cache'
        in line
        for line in log
    )


@pytest.mark.parametrize('kind', ['safetensors', 'bin', 'both'])
def test_timm_models(hub, nano, kind):
    folder, _ = hub
    model = GCViT(nano, window_size=4, out_indices=(3,))
    state = {k: v.contiguous() for k, v in to_timm(model.state_dict()).items()}
    repo = 'timm/gcvit_nano.in1k/main'
    if kind != 'bin':
        put(folder, f'{repo}/model.safetensors', state, save_file)
    if kind != 'safetensors':
        put(folder, f'{repo}/pytorch_model.bin', state if kind == 'bin' else {'not': 'this'})
    init_cfg = dict(type='Pretrained', checkpoint='timm://gcvit_nano.in1k')
    loaded = GCViT(nano, window_size=4, out_indices=(3,), init_cfg=init_cfg)
    loaded.init_weights()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


@pytest.mark.parametrize('source', ['hf://owner/repo/w.pth', 'timm://gcvit_none.in1k'])
def test_missing_files(hub, source):
    with pytest.raises(
        UserError, match=r'could not be downloaded .*404.* the path of the copy instead'
    ):
        fetch(source)


def test_offline_machines_use_the_cache_and_report_missing_files(hub, point_to_hub, monkeypatch):
    put(hub[0], 'owner/repo/main/w.pth', {'a': torch.ones(1)})
    path = fetch('hf://owner/repo/w.pth')
    point_to_hub(1)
    began = time.monotonic()
    assert fetch('hf://owner/repo/w.pth') == path
    url = 'http://127.0.0.1:1/owner/repo/resolve/main/other.pth'
    with pytest.raises(UserError, match='offline, and not in the cache') as error:
        fetch('hf://owner/repo/other.pth')
    assert f'download {url} on a machine with network access, copy it here' in str(error.value)
    with pytest.raises(UserError, match=r'gcvit_tiny\.in1k/resolve/main/model\.safetensors'):
        fetch('timm://gcvit_tiny.in1k')
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    assert fetch('hf://owner/repo/w.pth') == path
    assert time.monotonic() - began < 5


def test_credentials_in_hub_urls_and_redirects_are_not_shown(hub, monkeypatch, log):
    signed = 'https://cdn/w.pth?X-Amz-Signature=s3cr3t'

    def fail(*args, **kwargs):
        raise OSError(f"403 for url: {signed} ('Max retries exceeded with url: /w.pth?s3cr3t')")

    monkeypatch.setattr(constants, 'ENDPOINT', constants.ENDPOINT.replace('://', '://u:s3cr3t@'))
    monkeypatch.setattr(sources, '_answers', lambda url: True)
    monkeypatch.setattr(huggingface_hub, 'hf_hub_download', fail)
    with pytest.raises(UserError, match=r'403 for url: https://cdn/w\.pth .*/w\.pth') as error:
        fetch('hf://owner/repo/w.pth')
    assert 's3cr3t' not in f'{error.value} {log}'
    assert error.value.__suppress_context__


def test_a_silent_hub_times_out(point_to_hub, monkeypatch):
    monkeypatch.setattr(sources, 'TIMEOUT', 0.3)
    with socket.create_server(('127.0.0.1', 0)) as server:
        point_to_hub(server.getsockname()[1])
        with pytest.raises(UserError, match='offline, and not in the cache'):
            fetch('hf://owner/repo/w.pth')


def test_without_the_package_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(UserError, match='pip install huggingface_hub'):
        fetch('hf://owner/repo/w.pth')


@pytest.mark.parametrize(
    'source', ['ftp://host/w.pth', 'timm://a/b', 'hf://owner', 'file://host/w']
)
def test_errors_of_a_source_name_no_argument_that_tools_lack(source):
    with pytest.raises(UserError, match=f"^the weights '{source}' are not allowed: .*use "):
        fetch(source)
