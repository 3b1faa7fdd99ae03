"""Trained models applied to image files and videos."""

from .demo import run_demo
from .inferencers import build_inferencer
from .model import TrainedModel, load_trained

__all__ = ['TrainedModel', 'build_inferencer', 'load_trained', 'run_demo']
