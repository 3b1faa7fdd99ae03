"""Saving to folders and to a local Hugging Face Hub, and loading from them."""

import json
import os
import re
import shutil
import time
import types

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard, RepoUrl, hub_mixin
from huggingface_hub import constants as hub_constants

from mmgcvit import GCViT
from mmgcvit.errors import UserError
from mmgcvit.integrations.hugging_face import HubGCViT
from mmgcvit.weights.layouts import to_nvidia


@pytest.fixture
def model(nano):
    return HubGCViT(nano, window_size=4, out_indices=(1, 3)).eval()


@pytest.fixture
def pushing(hub, monkeypatch):
    """Copies what HfApi would upload into the folder of the local hub."""
    folder, _ = hub

    def create_repo(self, repo_id, **options):
        (folder / repo_id).mkdir(parents=True)
        return RepoUrl(f'{hub_constants.ENDPOINT}/{repo_id}')

    def upload_folder(self, *, repo_id, folder_path, **options):
        shutil.copytree(folder_path, folder / repo_id / 'main')
        return f'{hub_constants.ENDPOINT}/{repo_id}/commit/1'

    monkeypatch.setattr(hub_mixin.HfApi, 'create_repo', create_repo)
    monkeypatch.setattr(hub_mixin.HfApi, 'upload_folder', upload_folder)


def same(a, b):
    return all(torch.equal(b[name], tensor) for name, tensor in a.items()) and len(a) == len(b)


def test_a_folder_restores_the_network(model, tmp_path):
    model.save_pretrained(tmp_path / 'saved')
    assert {p.name for p in (tmp_path / 'saved').iterdir()} == {
        'README.md',
        'config.json',
        'model.safetensors',
    }
    loaded = HubGCViT.from_pretrained(tmp_path / 'saved')
    assert loaded.out_indices == (1, 3)
    assert not loaded.training
    assert same(model.state_dict(), loaded.state_dict())
    images = torch.randn(1, 3, 40, 56)
    assert all(map(torch.equal, model(images), loaded(images)))


def test_arguments_of_any_type_are_saved(nano, tmp_path):
    arguments = dict(window_size=[np.int64(4), 5, 6, 7], out_indices=range(1, 3))
    arguments['drop_path_rate'] = np.float32(0.25)
    model = HubGCViT(types.MappingProxyType(nano), **arguments).eval()
    model.save_pretrained(tmp_path)
    loaded = HubGCViT.from_pretrained(tmp_path)
    assert loaded.out_indices == (1, 2)
    assert [stage.window_size for stage in loaded.stages] == [4, 5, 6]
    assert json.loads((tmp_path / 'config.json').read_text())['drop_path_rate'] == 0.25
    images = torch.randn(1, 3, 40, 56)
    assert all(map(torch.equal, model(images), loaded(images)))


def test_saved_filters_are_adapted_to_other_channels(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert 'set adapt_input=True in the init_cfg of the backbone, or where' in refuse(
        tmp_path, in_channels=1
    )
    gray = HubGCViT.from_pretrained(tmp_path, in_channels=1, adapt_input=True)
    expected = model.stem.conv.weight.sum(1, keepdim=True)
    torch.testing.assert_close(gray.stem.conv.weight, expected)
    gray.save_pretrained(tmp_path)
    assert HubGCViT.from_pretrained(tmp_path).stem.conv.in_channels == 1


def test_weights_of_a_detector_and_of_other_channels_are_loaded(model, nano, tmp_path):
    # the names of torchvision's detectors
    state = {f'backbone.body.{name}': tensor for name, tensor in model.state_dict().items()}
    torch.save(state, tmp_path / 'detector.pth')
    gray = HubGCViT(nano, in_channels=1, window_size=4, out_indices=(1, 3))
    gray.load_weights(tmp_path / 'detector.pth', prefix='backbone.body.', adapt_input=True)
    expected = model.stem.conv.weight.sum(1, keepdim=True)
    torch.testing.assert_close(gray.stem.conv.weight, expected)


def test_arguments_replace_the_saved_ones(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = HubGCViT.from_pretrained(tmp_path, window_size=6, out_indices=(3,))
    assert loaded.out_channels == (64,)
    table = 'stages.2.blocks.0.attn.relative_position_bias_table'
    assert loaded.state_dict()[table].shape == (11**2, 2)
    kept = 'stages.3.blocks.1.mlp.fc1.weight'
    assert torch.equal(loaded.state_dict()[kept], model.state_dict()[kept])


def test_pushed_files_are_downloaded(model, pushing, hub):
    assert model.push_to_hub('owner/nano').endswith('/owner/nano/commit/1')
    loaded = HubGCViT.from_pretrained('owner/nano')
    assert same(model.state_dict(), loaded.state_dict())
    requested = [path for method, path, _ in hub[1] if method == 'GET']
    names = 'config.json', 'model.safetensors'
    assert requested == [f'/owner/nano/resolve/main/{name}' for name in names]


def test_config_holds_no_path_of_this_machine(nano, tmp_path):
    init_cfg = dict(type='Pretrained', checkpoint='/home/me/weights.pth')
    HubGCViT(nano, window_size=4, init_cfg=init_cfg).save_pretrained(tmp_path)
    config = json.loads((tmp_path / 'config.json').read_text())
    assert 'init_cfg' not in config
    assert config['window_size'] == 4
    assert config['arch'] == {**nano, **{k: list(nano[k]) for k in ('depths', 'num_heads')}}


def test_card_states_the_license_and_published_results(tmp_path):
    published = GCViT('xxtiny', window_size=7, out_indices=(3,))
    torch.save({'state_dict': to_nvidia(published.state_dict())}, tmp_path / 'gcvit.pth.tar')
    model = HubGCViT('xxtiny', window_size=7, out_indices=(3,))
    assert 'not recorded' in model.generate_model_card().text
    model.load_weights(tmp_path / 'gcvit.pth.tar')
    model.save_pretrained(tmp_path / 'first')
    HubGCViT.from_pretrained(tmp_path / 'first').save_pretrained(tmp_path / 'second')
    for folder in ('first', 'second'):
        card = ModelCard.load(tmp_path / folder / 'README.md')
        assert card.data.license == 'cc-by-nc-sa-4.0'
        assert card.data.library_name == 'mmgcvit'
        assert 'fine-tuned from them are under CC BY-NC-SA 4.0' in card.text
        assert 'They were not measured with the\nweights in this repository' in card.text
        assert '- Top 1 Accuracy (paper): 79.8\n- Top 1 Accuracy (model card): 79.9' in card.text
        assert 'with 11.5M parameters and\nfeature maps of 512 channels at strides 32.' in card.text


def test_card_of_a_custom_size_has_the_given_license_and_no_results(model, tmp_path):
    model.save_pretrained(tmp_path, model_card_kwargs=dict(license='mit'))
    card = ModelCard.load(tmp_path / 'README.md')
    assert card.data.license == 'mit'
    assert '- License of the weights: mit\n' in card.text
    assert 'GC ViT of a custom size' in card.text
    assert 'Accuracy' not in card.text


def test_card_of_other_weights_is_replaced(model, nano, tmp_path):
    readme = tmp_path / 'README.md'
    model.weights_license = 'first'
    model.save_pretrained(tmp_path)
    edited = readme.read_text() + 'Trained on my images.\n'
    readme.write_text(edited)
    model.save_pretrained(tmp_path)
    assert readme.read_text() == edited
    model.weights_license = 'second'
    model.save_pretrained(tmp_path)
    text = readme.read_text()
    assert '- License of the weights: second\n' in text and 'first' not in text
    model.save_pretrained(tmp_path, model_card_kwargs=dict(license='mit'))
    assert ModelCard.load(readme).data.license == 'mit'
    xxtiny = HubGCViT('xxtiny', window_size=7)
    xxtiny.save_pretrained(tmp_path, model_card_kwargs=dict(license='mit'))
    assert '# GC ViT xxtiny\n' in readme.read_text()


def test_a_file_is_no_folder_to_save_to(model, tmp_path):
    file = tmp_path / 'weights.pth'
    file.write_text('mine')
    with pytest.raises(UserError, match=r'weights.pth could not be written \(.*File exists'):
        model.save_pretrained(file)
    assert file.read_text() == 'mine'


def refuse(*args, **options):
    with pytest.raises(UserError) as error:
        HubGCViT.from_pretrained(*args, **options)
    assert '\n' not in str(error.value)
    return str(error.value)


def test_wrong_names_and_folders_are_explained(model, hub, tmp_path):
    assert 'has no config.json' in refuse(tmp_path)
    assert 'or OWNER/REPOSITORY on the Hub' in refuse('a/b/c')
    message = refuse('owner/absent')
    assert message.startswith('owner/absent could not be loaded (404')
    assert 'a private repository needs a token' in message
    model.save_pretrained(tmp_path / 'saved')
    (tmp_path / 'saved' / 'config.json').write_text('{"arch": ')
    assert 'could not be loaded (Expecting value' in refuse(tmp_path / 'saved')
    (tmp_path / 'saved' / 'config.json').write_text('{"arch": "xxtiny"}')
    assert 'the model is GC ViT xxtiny' in refuse(tmp_path / 'saved')
    (tmp_path / 'saved' / 'model.safetensors').unlink()
    assert 'model.safetensors does not exist' in refuse(tmp_path / 'saved')


@pytest.mark.parametrize(
    ('content', 'reason'),
    [
        (b'["tiny"]', "'list' object has no attribute"),
        (b'null', "'NoneType' object has no attribute"),
        (b'\xfe{}', 'invalid start byte'),
        (b'[' * 50_000, 'maximum recursion depth'),
        (b'{"arch": 7}', 'arch=7 is not allowed'),
        (b'{"arch": {"depths": [1, 1, 1, 1]}}', "missing keys \\['embed_dims'"),
        (b'{"arch": "tiny", "drop_rate": "1"}', "drop_rate='1' is not allowed"),
    ],
)
def test_a_damaged_config_is_one_line(model, tmp_path, content, reason):
    model.save_pretrained(tmp_path)
    (tmp_path / 'config.json').write_bytes(content)
    assert re.match(rf'{tmp_path} could not be loaded \(.*{reason}.*config.json', refuse(tmp_path))


def test_a_repository_without_config_is_explained(model, pushing, hub):
    model.push_to_hub('owner/nano')
    (hub[0] / 'owner/nano/main/config.json').unlink()
    assert "owner/nano has no config.json with the network's arch" in refuse('owner/nano')


def test_code_in_weights_is_not_executed(model, tmp_path):
    class Command:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'executed'),)

    model.save_pretrained(tmp_path / 'saved')
    torch.save({'state_dict': Command()}, tmp_path / 'saved' / 'model.safetensors')
    assert 'could execute code' in refuse(tmp_path / 'saved')
    assert not (tmp_path / 'executed').exists()


def test_without_the_hub_the_cache_is_used(model, pushing, hub, point_to_hub):
    model.push_to_hub('owner/nano')
    HubGCViT.from_pretrained('owner/nano')
    point_to_hub(1)
    began = time.monotonic()
    assert same(model.state_dict(), HubGCViT.from_pretrained('owner/nano').state_dict())
    assert 'could not be loaded (offline, and not in the cache)' in refuse('owner/other')
    with pytest.raises(UserError, match='does not respond; use save_pretrained'):
        model.push_to_hub('owner/nano')
    assert time.monotonic() - began < 5


def test_a_rejected_upload_is_one_line(model, hub, tmp_path, monkeypatch):
    monkeypatch.setattr(hub_mixin.HfApi, 'token', 'hf_wrong', raising=False)
    with pytest.raises(UserError, match=r'owner/nano was not uploaded \(.*: log in with') as error:
        model.push_to_hub('owner/nano', token='hf_wrong')
    assert '\n' not in str(error.value)
