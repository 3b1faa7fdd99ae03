import layouts
import pytest


@pytest.fixture(scope='session')
def drawn(tmp_path_factory):
    """Drawn shapes, and the same in the layouts of other formats."""
    root = tmp_path_factory.mktemp('projects')
    layouts.draw(root)
    layouts.yolo(root, root / 'boxes', polygons=False)
    layouts.yolo(root, root / 'polygons', polygons=True)
    layouts.voc(root, root / 'voc')
    layouts.label_maps(root, root / 'label_maps')
    return root
