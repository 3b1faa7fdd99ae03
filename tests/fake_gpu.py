"""A GPU that is not there: tensors on it have shapes, strides and devices, but no values.

The forward pass of a network runs on such tensors as on a GPU. The backward pass does not: PyTorch
starts a thread for each device there, which needs the device.
"""

from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

# operations that do not launch a kernel
VIEWS = {
    *('_unsafe_view', 'alias', 'as_strided', 'detach', 'expand', 'permute', 'select', 'slice'),
    *('split', 'split_with_sizes', 't', 'transpose', 'unbind', 'unfold', 'unsqueeze', 'view'),
    *('empty', 'empty_like', 'empty_strided', 'new_empty', 'new_empty_strided'),
}


class OneDevice(TorchDispatchMode):
    """Raise an error where the host and the GPU meet, because the host would wait there.

    Fake tensors themselves raise an error where a result depends on values on the GPU.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_flatten((args, kwargs, out))[0] if isinstance(x, torch.Tensor)]
        # numbers are tensors without dimensions, which kernels get as arguments
        is_copy = 'copy' in func._schema.name
        devices = {x.device.type for x in tensors if x.dim() or is_copy}
        if len(devices) > 1:
            raise RuntimeError(f'{func} gets tensors on {" and ".join(sorted(devices))}')
        return out


class Launches(TorchDispatchMode):
    """Count operations that launch at least one kernel, by name."""

    def __init__(self):
        super().__init__()
        self.counts = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix('aten::')
        if func.namespace == 'aten' and name not in VIEWS:
            self.counts[name] = self.counts.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


def forward(model, *size, dtype=torch.float32, watch=None):
    """Run a network on images on a GPU that is not there.

    Args:
        model: A network, whose parameters are not changed.
        size: Size of the images, (B, 3, H, W).
        dtype: Data type of parameters and images.
        watch: A dispatch mode that sees all operations. None for :class:`OneDevice`.

    Returns:
        The outputs, and the arguments of each call of ``scaled_dot_product_attention``: query, key,
        value and mask.
    """
    calls = []

    def attend(query, key, value, attn_mask, dropout_p):
        calls.append((query, key, value, attn_mask))
        # PyTorch would ask the driver which kernel it supports. This one supports all our calls.
        mask = attn_mask.expand(len(query), -1, -1, -1)
        kernel = torch.ops.aten._scaled_dot_product_efficient_attention
        return kernel(query, key, value, mask, torch.is_grad_enabled(), dropout_p)[0]

    attention = mock.patch.object(F, 'scaled_dot_product_attention', attend)
    with FakeTensorMode(), attention:
        parameters = {
            name: torch.empty_strided(
                x.shape, x.stride(), dtype=dtype, device='cuda', requires_grad=x.requires_grad
            )
            for name, x in model.named_parameters()
        }
        images = torch.empty(size, dtype=dtype, device='cuda')
        with watch or OneDevice():
            return functional_call(model, parameters, (images,)), calls


def _missing():
    if torch.__version__ < '2.4':
        return f'torch {torch.__version__} is too old to imitate a GPU'
    try:
        forward(torch.nn.Conv2d(3, 1, 1), 1, 3, 8, 8)
    except Exception as error:
        return f'torch {torch.__version__} cannot imitate a GPU: {error}'
    return ''


MISSING = _missing()
needs_fake_gpu = pytest.mark.skipif(bool(MISSING), reason=MISSING)
