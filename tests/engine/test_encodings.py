"""Encodings that readers of plain UTF-8 cannot parse."""

import shlex

import pytest

from mmgcvit.engine.encodings import encoding_fault


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16', 'utf-32-be'])
def test_commands_work_for_paths_with_spaces(encoding):
    text = encoding_fault('my data/train.json', '{"images"'.encode(encoding)[:4])
    assert 'my data/train.json' in shlex.split(text.partition('for example with ')[2])
