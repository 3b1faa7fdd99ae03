"""What is on the screen, and what is in the log file alone."""

import logging

import mmengine
import pytest
from mmengine.logging import MMLogger
from toy import toy_config

from mmgcvit.engine import build_runner, run_tool
from mmgcvit.engine.screen import _is_shown, logging_from
from mmgcvit.errors import UserError


@pytest.fixture(autouse=True)
def no_logger(monkeypatch):
    """Loggers of other tests write to the screens of those tests."""
    monkeypatch.setattr(MMLogger, '_instance_dict', MMLogger._instance_dict.__class__())


def log_of(folder):
    (file,) = folder.glob('*/*.log')
    return file.read_text()


def test_the_level_of_the_log_is_restored(capsys):
    logger = MMLogger.get_current_instance()
    with pytest.raises(KeyError), logging_from(logging.ERROR):
        logger.warning('hidden')
        raise KeyError
    logger.info('shown')
    printed = capsys.readouterr().out
    assert 'shown' in printed and 'hidden' not in printed


@pytest.mark.parametrize('kind', ['Runner', 'FlexibleRunner'])
def test_dumps_are_only_in_the_log_file(tmp_path, capfd, kind):
    cfg = toy_config(tmp_path, iterations=2, runner_type=kind, env_cfg={}, randomness=dict(seed=0))
    cfg.optim_wrapper.paramwise_cfg = dict(bias_decay_mult=0.0)
    runner = build_runner(cfg)
    assert type(runner).__name__ == kind
    if kind == 'Runner':
        runner.train()
    runner.logger.info('two\nlines of a metric')
    runner.logger.warning('Config:\na warning')
    printed, log = capfd.readouterr().out, log_of(tmp_path)
    dumps = ['System environment', 'bias_decay_mult=0.0', 'Hooks will be executed']
    dumps += ['paramwise_options -- '] * (kind == 'Runner')
    for dump in dumps:
        assert dump in log and dump not in printed, dump
    assert printed.count('environment, config and hooks: ') == 1
    assert printed.split('config and hooks: ')[1].splitlines()[0] == str(
        next(tmp_path.glob('*/*.log'))
    )
    for shown in ('two\nlines of a metric', 'Config:\na warning'):
        assert shown in printed and shown in log
    if kind == 'Runner':
        assert 'loss_cls: ' in printed
        assert printed.count('\n') < 20


@pytest.mark.parametrize(('level', 'shown'), [(logging.INFO, False), (logging.WARNING, True)])
def test_warnings_of_several_lines_are_shown(level, shown):
    file = mmengine.runner.runner.__file__
    record = logging.LogRecord('mmengine', level, file, 1, 'first\nsecond', (), None)
    assert _is_shown(record) == shown


def test_the_traceback_of_a_known_error_is_in_the_log_file(tmp_path, capfd):
    def main():
        cfg = toy_config(tmp_path)
        cfg.train_cfg.max_itres = 3
        build_runner(cfg).train()

    with pytest.raises(SystemExit) as end:
        run_tool(main)
    assert end.value.code == 1
    out, error = capfd.readouterr()
    start = (
        'error: train_cfg.max_itres: IterBasedTrainLoop has no argument max_itres (did you mean '
    )
    assert error.startswith(start)
    assert error.count('\n') == 1 and 'Traceback' not in out
    log = log_of(tmp_path)
    assert 'Traceback' in log and "unexpected keyword argument 'max_itres'" in log
    assert start in log


def test_the_traceback_of_another_error_is_on_the_screen_and_in_the_log_file(tmp_path, capfd):
    def main():
        build_runner(toy_config(tmp_path))
        raise ZeroDivisionError('a mistake in the code')

    with pytest.raises(SystemExit):
        run_tool(main)
    error = capfd.readouterr().err
    assert error.startswith('Traceback') and error.endswith('Error: a mistake in the code\n')
    assert error in log_of(tmp_path)


def test_text_of_files_cannot_control_the_terminal(tmp_path, capfd):
    def main():
        runner = build_runner(toy_config(tmp_path))
        runner.logger.warning('name \x1b[2J in\n\ta checkpoint %s', '\x9b1A')
        raise UserError('name \x1b]0;title\x07 in a file')

    with pytest.raises(SystemExit):
        run_tool(main)
    out, error = capfd.readouterr()
    assert 'name \\x1b[2J in\n\ta checkpoint \\x9b1A' in out
    assert error == 'error: name \\x1b]0;title\\x07 in a file\n'
