"""Early stopping that survives an interruption."""

import logging
from typing import Any

from mmengine.hooks import EarlyStoppingHook
from mmengine.logging import print_log
from mmengine.runner import Runner

from ...registry import HOOKS


@HOOKS.register_module()
class ResumableEarlyStoppingHook(EarlyStoppingHook):
    """mmengine's EarlyStoppingHook, whose state is saved in checkpoints.

    A resumed training continues to count validations without improvement, and a training that was
    stopped early does not continue unless the settings of this hook have changed. Takes the
    arguments of mmengine's hook.
    """

    _stopped = False

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        # ExactResumeHook has just loaded the state
        if self._stopped:
            runner.train_loop.stop_training = True

    def before_train(self, runner: Runner) -> None:
        if self._stopped:
            print_log(
                f'The training was stopped early after iteration {runner.iter}, because '
                f'{self.monitor} did not improve (best: {self.best_score:.4g}). To continue, '
                'increase patience of EarlyStoppingHook, or remove the hook from the config.',
                'current',
                logging.WARNING,
            )

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        super().after_val_epoch(runner, metrics)
        self._stopped = getattr(runner.train_loop, 'stop_training', False)

    def state_dict(self) -> dict[str, Any]:
        """Return the counts, the decision and the settings that they depend on."""
        return {
            'settings': self._settings(),
            'wait_count': self.wait_count,
            'best_score': float(self.best_score),
            'stopped': self._stopped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the counts, and the decision if it was made with the same settings."""
        settings, saved = self._settings(), state['settings']
        if any(saved[name] != settings[name] for name in ('monitor', 'rule')):
            print_log(
                f'EarlyStoppingHook monitors {self.monitor} ({self.rule}), but in the checkpoint '
                f'{saved["monitor"]} ({saved["rule"]}): it counts from zero.',
                'current',
                logging.WARNING,
            )
            return
        self.wait_count, self.best_score = state['wait_count'], state['best_score']
        self._stopped = state['stopped'] and saved == settings

    def _settings(self) -> dict[str, Any]:
        names = ('monitor', 'rule', 'min_delta', 'check_finite', 'patience', 'stopping_threshold')
        return {name: getattr(self, name) for name in names}
