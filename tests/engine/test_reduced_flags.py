import forks
import pytest
import torch

from mmgcvit.engine import reduced_flags
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


def test_a_copy_is_read_only_after_its_event(monkeypatch):
    """Before that, the memory may still hold the flags of an earlier iteration."""

    class Event:
        """A copy that arrives when it is waited for."""

        def __init__(self, values):
            self.values, self.copy = values, torch.full_like(values, -1)

        def synchronize(self):
            self.copy.copy_(self.values)

    def copy_to_host(values):
        event = Event(values)
        return event.copy, event

    monkeypatch.setattr(reduced_flags, 'copy_to_host', copy_to_host)
    flags = ReducedFlags('cpu')
    assert flags.exchange(True, False) == [1, 0]
    assert flags.exchange(torch.tensor(3), False) == [3, 0]


PROCESSES = """
import torch
from mmengine.config import Config
from mmengine.dist import get_rank
from mmgcvit.engine import run_tool
from mmgcvit.engine.launch import start_processes
from mmgcvit.engine.reduced_flags import ReducedFlags

def main():
    start_processes(Config(dict(launcher='pytorch')), 'cpu')
    rank = get_rank()
    flags = ReducedFlags('cpu')
    assert flags.exchange(rank == 1, torch.tensor(rank == 0), False) == [1, 1, 0]
    assert flags.exchange(False, rank == 1, torch.tensor(False)) == [0, 1, 0]
run_tool(main)
"""


def test_all_processes_get_the_flags_of_each(tmp_path):
    (tmp_path / 'processes.py').write_text(PROCESSES)
    code, printed = forks.run(tmp_path / 'processes.py', out=tmp_path / 'out', timeout=60, ranks=2)
    assert code == 0, printed


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_on_a_gpu_flags_come_one_iteration_later():
    flags = ReducedFlags('cuda')
    assert flags.exchange(torch.ones((), device='cuda') > 0) is None
    assert flags.exchange(False) == [1]
    assert flags.flush() == [0]
