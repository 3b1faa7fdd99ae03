import importlib
import pkgutil

import mmcv.ops
import pytest

from mmgcvit.mmcv_ops import _ext


@pytest.fixture(autouse=True)
def ours(monkeypatch):
    """Make mmcv use our operators even if it has compiled ones."""
    for module in pkgutil.iter_modules(mmcv.ops.__path__, 'mmcv.ops.'):
        # import_module, since attributes such as mmcv.ops.nms are functions, not modules
        module = importlib.import_module(module.name)
        if hasattr(module, 'ext_module'):
            monkeypatch.setattr(module, 'ext_module', _ext)
