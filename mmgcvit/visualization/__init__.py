"""Plots of training logs, images with predictions, and maps of attention."""

from .curves import plot_training_curves
from .drawing import DrawLoadedImages, adapt_drawing
from .maps import MapOptions
from .painting import PaintPredictions
from .predictions import draw_predictions
from .sheet import draw_maps
from .training_log import TrainingLog, read_training_log

__all__ = [
    'DrawLoadedImages',
    'MapOptions',
    'PaintPredictions',
    'TrainingLog',
    'adapt_drawing',
    'draw_maps',
    'draw_predictions',
    'plot_training_curves',
    'read_training_log',
]
