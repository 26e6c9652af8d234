"""Training, evaluation and the command line; needs the train extra (Lightning and torchmetrics)."""

from .config import TrainConfig
from .evaluate import MIX, Evaluation, evaluate
from .fit import Result, load_model, train

__all__ = ["MIX", "Evaluation", "Result", "TrainConfig", "evaluate", "load_model", "train"]
