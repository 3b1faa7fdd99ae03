import pytest
import torch

from mmgcvit.engine.reduced_flags import ReducedFlags


def test_on_a_cpu_flags_are_available_at_once():
    flags = ReducedFlags('cpu')
    assert flags.exchange(True, torch.tensor(False)) == [1, 0]
    assert flags.exchange(False, torch.tensor(2.0) > 1) == [0, 1]
    assert flags.flush() is None


def test_on_other_devices_flags_come_one_iteration_later():
    flags = ReducedFlags('cpu')
    flags._device = torch.device('xpu')  # not available here: the values stay on the CPU
    flags._start = lambda values: setattr(flags, '_pending', torch.tensor(values))
    assert flags.exchange(True, False) is None
    assert flags.exchange(False, True) == [1, 0]
    assert flags.flush() == [0, 1]
    assert flags.flush() is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_on_a_gpu_flags_come_one_iteration_later():
    flags = ReducedFlags('cuda')
    assert flags.exchange(torch.ones((), device='cuda') > 0) is None
    assert flags.exchange(False) == [1]
    assert flags.flush() == [0]
