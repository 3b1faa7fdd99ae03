"""Activation recomputation: which activations a block saves and which it recomputes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy
from torch.utils.checkpoint import checkpoint

from .graph_mode import is_exporting, is_recorded, is_transformed

POLICIES = ('none', 'cheap', 'block')
# missing in older versions of torch
_active_hooks = getattr(torch._C._autograd, '_top_saved_tensors_default_hooks', None)
# operations allowed between the output of a norm or GELU and the tensor that the next layer saves
_VIEWS_AND_CASTS = {'ViewBackward0', 'UnsafeViewBackward0', 'ToCopyBackward0'}


def recompute(policy: str, block: nn.Module, x: Tensor, *args: Any) -> Tensor:
    """Return block(x, *args), saving tensors for the backward pass according to a policy.

    Compilers, tracers and torch.func decide themselves which tensors they save; only 'block' also
    applies under torch.compile. Versions of torch that do not expose the active saved tensor
    hooks, such as 2.1, do not support 'cheap' and treat it as 'none'. Attention on a CPU recomputes
    its scores with every policy, see :mod:`.cpu_attention`.

    Args:
        policy: 'none' saves the same tensors as PyTorch. 'cheap' saves all of them except the
            outputs of LayerNorm and GELU, which take little time to recompute. 'block' saves only
            the inputs and recomputes the complete block.
        block: A module that takes ``x`` and ``args``.
        x: A tensor.
        args: Other inputs.

    Returns:
        The output of the block.
    """
    if isinstance(x, Proxy) or not torch.is_grad_enabled() or is_transformed():
        return block(x, *args)
    if policy == 'block' and not torch.jit.is_tracing() and not is_exporting():
        return checkpoint(block, x, *args, use_reentrant=False)
    if policy == 'cheap' and not is_recorded() and _can_hook():
        with _cheap_outputs_recomputed(block):
            return block(x, *args)
    return block(x, *args)


def _can_hook() -> bool:
    return _active_hooks is not None and torch._C._autograd._saved_tensors_hooks_is_enabled()


@contextmanager
def _cheap_outputs_recomputed(block: nn.Module) -> Iterator[None]:
    """Let autograd save a function that recomputes outputs of LayerNorm and GELU, not the outputs.

    The linear layer after a norm saves the output of the norm. The norm saves its own input, from
    which the output can be recomputed. This relies only on autograd's graph, so blocks can be
    written, hooked and wrapped like any other module.
    """
    eps: dict[Any, float] = {}

    def note_eps(norm: nn.Module, _: Any, out: Any) -> None:
        # eps is the only argument of a norm that autograd does not save
        node = getattr(out, 'grad_fn', None)
        # hooks or a replaced forward may return something other than the output of the norm
        if node is not None and node.name() == 'NativeLayerNormBackward0':
            eps[node] = norm.eps

    # skip norms whose forward is replaced on the instance, since it may use another eps
    norms = [m for m in block.modules() if type(m) is nn.LayerNorm and 'forward' not in vars(m)]
    # called before the norm's other hooks, which may return the output of another norm
    handles = [norm.register_forward_hook(note_eps, prepend=True) for norm in norms]
    # PyTorch only calls the innermost saved tensor hooks, so the hooks below must call the outer
    # ones, such as those of a checkpoint
    assert _active_hooks is not None  # see _can_hook
    outer = _active_hooks(False)

    def pack(tensor: Tensor) -> Any:
        computation = _computation_of(tensor, eps)
        return _Kept(tensor, outer) if computation is None else computation

    def unpack(packed: Any) -> Tensor:
        if isinstance(packed, _Kept):
            return packed.unpack()
        with torch.no_grad():
            return packed()

    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield
    finally:
        for handle in handles:
            handle.remove()
        # PyTorch keeps the hooks alive, and this dict refers to the nodes: break the cycle
        eps.clear()


class _Kept:
    """A saved tensor, packed by the outer saved tensor hooks if there are any."""

    def __init__(self, tensor: Tensor, hooks: tuple[Callable, Callable] | None) -> None:
        # detached, because an operation that saves its own output would keep its own node alive
        self.tensor = tensor.detach() if hooks is None else None
        self.version = tensor._version
        self.packed = None if hooks is None else hooks[0](tensor)
        self.unpack_hook = None if hooks is None else hooks[1]

    def unpack(self) -> Tensor:
        if self.tensor is None:
            # The hooks of a checkpoint unpack a tensor only once. But the input of a norm is read
            # twice: to recompute the norm's output, and by the norm's own backward pass.
            assert self.unpack_hook is not None
            self.tensor = self.unpack_hook(self.packed)
        elif self.unpack_hook is None and self.tensor._version != self.version:
            # PyTorch does not check versions of tensors that are saved through hooks
            raise RuntimeError(
                'one of the variables needed for gradient computation has been modified by an '
                f'inplace operation: a tensor of shape {tuple(self.tensor.shape)} in a block of '
                f'GCViT is at version {self.tensor._version} instead of {self.version}'
            )
        return self.tensor


def _computation_of(tensor: Tensor, eps: dict[Any, float]) -> Callable[[], Tensor] | None:
    """Return a function that recomputes an output of LayerNorm or GELU, None for other tensors."""
    node, shape = tensor.grad_fn, tensor.shape
    like = {'device': tensor.device, 'dtype': tensor.dtype}
    casts = 0
    while node is not None and node.name() in _VIEWS_AND_CASTS:
        casts += node.name() == 'ToCopyBackward0'
        node = node.next_functions[0][0]
    if node is None or casts > 1:
        # a single cast can be repeated, but of two casts, the first may have rounded the values
        return None
    if node in eps:
        # do not capture the dict: it refers to the nodes of later norms, which refer to this node
        norm_eps = eps[node]
        return lambda: _norm_again(node, norm_eps).to(**like).view(shape)
    if node.name() == 'GeluBackward0':
        return lambda: _gelu_again(node).to(**like).view(shape)
    return None


def _norm_again(node: Any, eps: float) -> Tensor:
    shape, weight, bias = node._saved_normalized_shape, node._saved_weight, node._saved_bias
    return F.layer_norm(node._saved_input, shape, weight, bias, eps)


def _gelu_again(node: Any) -> Tensor:
    return F.gelu(node._saved_self, approximate=node._saved_approximate)
