"""Flags that all processes of a run act on in the same iteration."""

from collections.abc import Sequence

import torch
from mmengine.dist import all_reduce
from torch import Tensor


class ReducedFlags:
    """Maximum of a few flags over all processes, without making a GPU wait for the host.

    On a CPU, the flags of an iteration are available at once. On a GPU, they are copied to the host
    in the background and available one iteration later, in all processes alike. Every process has
    to make the same calls, because the reduction is a collective operation.

    Args:
        device: Device of the model.
    """

    def __init__(self, device: torch.device | str) -> None:
        self._device = torch.device(device)
        self._pending: Tensor | None = None
        self._copied: torch.cuda.Event | None = None

    def exchange(self, *flags: bool | Tensor) -> list[int] | None:
        """Reduce the flags of this iteration.

        Args:
            *flags: Booleans or 0-dim tensors; tensors stay on the device.

        Returns:
            The reduced flags of this iteration on a CPU, of the previous one on a GPU. None if
            there is none yet.
        """
        previous = self.flush()
        self._start(flags)
        return self.flush() if self._device.type == 'cpu' else previous

    def flush(self) -> list[int] | None:
        """Wait for flags that were not returned yet, and return them, or None if there are none."""
        pending, self._pending = self._pending, None
        if pending is None:
            return None
        if self._copied is not None:
            self._copied.synchronize()
        return pending.tolist()

    def _start(self, flags: Sequence[bool | Tensor]) -> None:
        values = torch.stack(
            [
                flag.detach().to(self._device, torch.int32).reshape(())
                if isinstance(flag, Tensor)
                else torch.full((), int(flag), dtype=torch.int32, device=self._device)
                for flag in flags
            ]
        )
        all_reduce(values, 'max')
        self._pending, self._copied = copy_to_host(values)


def copy_to_host(values: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Start to copy a tensor from CUDA to the host.

    Returns:
        The copy, and an event to wait for before the copy is read. The tensor itself and None if it
        is on another device.
    """
    if values.device.type != 'cuda':
        return values, None
    # page-locked: a copy to other memory would wait for the GPU
    copy = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    copy.copy_(values, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()
    return copy, copied
