import importlib
import pkgutil

import mmcv.ops
import pytest

from mmgcvit.mmcv_ops import _ext


@pytest.fixture(autouse=True)
def ours(monkeypatch):
    """Have mmcv use our operators, also where it has compiled ones."""
    for module in pkgutil.iter_modules(mmcv.ops.__path__, 'mmcv.ops.'):
        # by this way, as mmcv.ops.nms and others are functions
        module = importlib.import_module(module.name)
        if hasattr(module, 'ext_module'):
            monkeypatch.setattr(module, 'ext_module', _ext)
