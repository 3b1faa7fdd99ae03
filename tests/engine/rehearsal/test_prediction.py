"""The prediction of what a training needs."""

import pytest
from mmengine.config import Config

from mmgcvit.engine.device import Machine
from mmgcvit.engine.rehearsal import prediction

GB = 10**9


@pytest.mark.parametrize(
    ('limit', 'fits'), [('max', True), (f'{4 * GB}', True), (f'{2 * GB}', False)]
)
def test_memory_is_compared_with_the_limit_of_the_container(tmp_path, monkeypatch, limit, fits):
    (tmp_path / 'memory.max').write_text(f'{limit}\n')
    limits = (str(tmp_path / 'missing'), str(tmp_path / 'memory.max'))
    monkeypatch.setattr(prediction, 'CONTAINER_LIMITS', limits)
    monkeypatch.setattr(prediction.os, 'sysconf', lambda name: 10**5)
    cfg = Config(dict(model=dict(), train_dataloader=dict(batch_size=2)))
    text, proposal = prediction.predict_memory(cfg, Machine('cpu', 2), GB)
    total = '10.0' if limit == 'max' else f'{int(limit) / GB:.1f}'
    assert text == f'2.0 of {total} GB memory'
    assert (proposal is None) == fits
    assert fits or 'train_dataloader.batch_size=1' in proposal
