from types import SimpleNamespace

import pytest
import shape_classifier
import torch


@pytest.fixture(scope='session')
def shapes(tmp_path_factory):
    """The trained classifier of drawn shapes, its config and its checkpoint."""
    folder = tmp_path_factory.mktemp('shapes')
    model = shape_classifier.train()
    config, checkpoint = folder / 'shapes.py', folder / 'shapes.pth'
    config.write_text(shape_classifier.CONFIG)
    torch.save({'state_dict': model.state_dict()}, checkpoint)
    return SimpleNamespace(model=model, config=str(config), checkpoint=str(checkpoint))
