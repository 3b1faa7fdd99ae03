"""The device of the tests that need a GPU.

``MMGCVIT_GPU_TESTS_ON=cpu`` rehearses them: the same code runs on a CPU, with gloo instead of NCCL,
where a CPU has what is tested. A rehearsal finds faults of the tests, and says nothing about GPUs.
"""

import os

import pytest
import torch

DEVICE = os.environ.get('MMGCVIT_GPU_TESTS_ON', 'cuda')
assert DEVICE in ('cuda', 'cpu'), f'MMGCVIT_GPU_TESTS_ON must be cuda or cpu, got {DEVICE!r}'


def _needs(number, reason):
    missing = DEVICE == 'cuda' and torch.cuda.device_count() < number
    return pytest.mark.skipif(missing, reason=reason)


needs_gpu = _needs(1, 'needs a GPU')
needs_two_gpus = _needs(2, 'needs two GPUs')
not_on_a_cpu = pytest.mark.skipif(DEVICE == 'cpu', reason='a CPU does not have what is tested')
