"""timm's independent implementation of GC ViT, with the same weights."""

import pytest
import timm
import torch

from mmgcvit import GCViT


@pytest.fixture(scope='module')
def timm_model():
    torch.manual_seed(0)
    model = timm.create_model('gcvit_xxtiny', pretrained=False, num_classes=10).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize('batch', [1, 2])
def test_last_feature_map_equals_timms(timm_model, batch, tmp_path, log):
    torch.save(timm_model.state_dict(), tmp_path / 'timm.pth')
    model = GCViT(
        'xxtiny',
        window_size=(7, 7, 14, 7),
        query_downsamples=(3, 2, 0, 0),
        init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'timm.pth')),
    ).eval()
    model.init_weights()
    images = torch.randn(batch, 3, 224, 224)
    with torch.no_grad():
        wanted = timm_model.forward_features(images)
        found = model(images)[-1]
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 2e-5
    # a classifier does not have the norms of the first three feature maps
    (line,) = [message for message in log if ': loaded ' in message]
    assert 'loaded 224 tensors (0 resized' in line
    assert '6 kept at initialization: norm0.weight' in line
    assert '2 unexpected tensors ignored' in line
