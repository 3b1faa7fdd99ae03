"""Publishing training checkpoints as files of plain values."""

import hashlib
import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from mmgcvit.errors import UserError
from mmgcvit.weights import publish_model


@pytest.fixture
def checkpoint(tmp_path):
    meta = dict(epoch=3, seed=np.int64(7), dataset_meta=dict(classes=('a', 'b')))
    meta['dataset_meta']['palette'] = [np.array([1, 2, 3])]
    content = dict(
        meta=meta,
        state_dict=OrderedDict(weight=torch.rand(2, 3), steps=torch.tensor(5)),
        message_hub=dict(log_scalars={'train/loss': HistoryBuffer([1.0, 2.0], [1, 1])}),
        optimizer=dict(state={0: torch.rand(2, 3)}),
    )
    torch.save(content, tmp_path / 'epoch_3.pth')
    return tmp_path / 'epoch_3.pth', content


def test_file_has_weights_and_meta_for_any_reader(checkpoint, tmp_path):
    source, content = checkpoint
    with pytest.raises(pickle.UnpicklingError):
        torch.load(source, weights_only=True)
    out = publish_model(source, tmp_path / 'new' / 'weights.pth')
    digest = hashlib.sha256(out.read_bytes()).hexdigest()
    assert out == tmp_path / 'new' / f'weights-{digest[:8]}.pth'
    written = torch.load(out, weights_only=True)
    assert list(written) == ['meta', 'state_dict']
    assert list(written['state_dict']) == ['weight', 'steps']
    for name, tensor in content['state_dict'].items():
        assert torch.equal(written['state_dict'][name], tensor)
    known = dict(classes=('a', 'b'), palette=[[1, 2, 3]])
    assert written['meta'] == dict(epoch=3, seed=7, dataset_meta=known)


def test_tool_writes_it(checkpoint, tmp_path, load_tool, capsys):
    load_tool('publish_model').main([str(checkpoint[0]), str(tmp_path / 'weights.pth')])
    (written,) = tmp_path.glob('weights-????????.pth')
    assert capsys.readouterr().out.strip() == str(written)
    assert 'state_dict' in torch.load(written, weights_only=True)


def test_files_that_are_not_checkpoints_are_rejected(tmp_path):
    torch.save({'weight': torch.zeros(1)}, tmp_path / 'other.pth')
    with pytest.raises(UserError, match=r'other\.pth has no state_dict'):
        publish_model(tmp_path / 'other.pth', tmp_path / 'out.pth')
    assert not list(tmp_path.glob('out*'))


def test_code_in_a_checkpoint_does_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'ran'),)

    torch.save({'state_dict': {}, 'message_hub': Trap()}, tmp_path / 'trap.pth')
    with pytest.raises(UserError, match=r'it refers to \S+\.mkdir'):
        publish_model(tmp_path / 'trap.pth', tmp_path / 'out.pth')
    assert not (tmp_path / 'ran').exists()
