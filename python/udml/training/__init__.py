"""Training, evaluation and the command line; needs the train extra (Lightning and torchmetrics)."""

from .config import TrainConfig
from .evaluate import MIX, Evaluation, evaluate
from .fit import Result, train
from .load import load_model

__all__ = ["MIX", "Evaluation", "Result", "TrainConfig", "evaluate", "load_model", "train"]
