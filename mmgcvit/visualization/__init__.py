"""Plots of training logs, and images with predictions."""

from .curves import plot_training_curves
from .drawing import DrawLoadedImages, adapt_drawing
from .painting import PaintPredictions
from .predictions import draw_predictions
from .training_log import TrainingLog, read_training_log

__all__ = [
    'DrawLoadedImages',
    'PaintPredictions',
    'TrainingLog',
    'adapt_drawing',
    'draw_predictions',
    'plot_training_curves',
    'read_training_log',
]
