"""Activation recomputation: what a block keeps for the backward pass and what it computes again."""

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
# None in older versions of torch
_active_hooks = getattr(torch._C._autograd, '_top_saved_tensors_default_hooks', None)
# between what a norm or an activation returns and what the layer after it keeps
_VIEWS_AND_CASTS = {'ViewBackward0', 'UnsafeViewBackward0', 'ToCopyBackward0'}


def recompute(policy: str, block: nn.Module, x: Tensor, *args: Any) -> Tensor:
    """Return block(x, *args), keeping for the backward pass what a policy says.

    Compilers, tracers and torch.func decide what they keep; only 'block' also applies under
    torch.compile. Versions of torch that do not expose the active hooks on saved tensors, such as
    2.1, have no 'cheap': it is 'none' there. Attention on a CPU computes its scores again with
    every policy, see :mod:`.cpu_attention`.

    Args:
        policy: 'none' keeps what PyTorch keeps. 'cheap' does not keep the outputs of LayerNorm
            and GELU, which take little time to compute again. 'block' keeps nothing but the
            inputs and computes the block again.
        block: A module that takes ``x`` and ``args``.
        x: A tensor.
        args: Other inputs.

    Returns:
        The block's output.
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
    """Let autograd keep instructions in place of the outputs of LayerNorm and GELU.

    The linear layer after a norm keeps the norm's output, and the norm its own input, from which
    the output can be computed again. Only autograd's graph is used for it, so that a block is
    written, hooked and wrapped like any other module.
    """
    eps: dict[Any, float] = {}

    def note_eps(norm: nn.Module, _: Any, out: Any) -> None:
        # autograd keeps all that a norm computes from but this number
        node = getattr(out, 'grad_fn', None)
        # hooks or a replaced forward may have returned something else
        if node is not None and node.name() == 'NativeLayerNormBackward0':
            eps[node] = norm.eps

    # a forward of the instance may compute with another number
    norms = [m for m in block.modules() if type(m) is nn.LayerNorm and 'forward' not in vars(m)]
    # before the norm's own hooks, which may return what another norm returned
    handles = [norm.register_forward_hook(note_eps, prepend=True) for norm in norms]
    # only the innermost hooks are called: from these, those around them, such as a checkpoint's
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
        # PyTorch keeps the hooks alive, and through this dict the nodes: break the cycle
        eps.clear()


class _Kept:
    """A tensor that autograd keeps, by the hooks around if there are any."""

    def __init__(self, tensor: Tensor, hooks: tuple[Callable, Callable] | None) -> None:
        # detached: an operation that keeps its own output, and so its node, would never be freed
        self.tensor = tensor.detach() if hooks is None else None
        self.version = tensor._version
        self.packed = None if hooks is None else hooks[0](tensor)
        self.unpack_hook = None if hooks is None else hooks[1]

    def unpack(self) -> Tensor:
        if self.tensor is None:
            # Once only: a checkpoint's hooks can be asked only once, but a norm's input is read to
            # compute its output again, and then by the norm.
            self.tensor = self.unpack_hook(self.packed)
        elif self.unpack_hook is None and self.tensor._version != self.version:
            # PyTorch does not check it where there are hooks
            raise RuntimeError(
                'one of the variables needed for gradient computation has been modified by an '
                f'inplace operation: a tensor of shape {tuple(self.tensor.shape)} in a block of '
                f'GCViT is at version {self.tensor._version} instead of {self.version}'
            )
        return self.tensor


def _computation_of(tensor: Tensor, eps: dict[Any, float]) -> Callable[[], Tensor] | None:
    """Return what computes a LayerNorm's or GELU's output again, None for other tensors."""
    node, shape = tensor.grad_fn, tensor.shape
    like = {'device': tensor.device, 'dtype': tensor.dtype}
    casts = 0
    while node is not None and node.name() in _VIEWS_AND_CASTS:
        casts += node.name() == 'ToCopyBackward0'
        node = node.next_functions[0][0]
    if node is None or casts > 1:
        # one cast is made again, but not a rounding between two
        return None
    if node in eps:
        # not the dict: it would keep the nodes of later norms, which keep this one
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
