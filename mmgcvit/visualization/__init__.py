"""Pictures of a training: its curves, and what the trained detector sees."""

from .curves import TrainingLog, plot_training_curves, read_training_log
from .predictions import draw_predictions

__all__ = ['TrainingLog', 'draw_predictions', 'plot_training_curves', 'read_training_log']
