"""A finished run's model: loaded with its adapter, asked about new images, scored, exported."""

from fedvlm.trained.ask import ask
from fedvlm.trained.export import export_merged
from fedvlm.trained.model import TrainedModel, load_trained
from fedvlm.trained.predict import Prediction, predict
from fedvlm.trained.score import evaluate

__all__ = [
    "Prediction",
    "TrainedModel",
    "ask",
    "evaluate",
    "export_merged",
    "load_trained",
    "predict",
]
