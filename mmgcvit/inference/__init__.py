"""Trained models applied to image files."""

from .model import TrainedModel, load_trained

__all__ = ['TrainedModel', 'load_trained']
