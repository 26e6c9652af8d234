"""Ways of training that the experiments on designs and on suppression compare."""

from typing import Any

# AdamW with the default phases, or SGD with noise and weights from the first epoch on.
REGIMES = ("adamw", "sgd")
SGD_RATE = 0.02
EPOCHS = {"digits": 60, "watch": 18, "hog": 40}


def changes(regime: str, epochs: int) -> dict[str, Any]:
    """The fields of `TrainConfig` that a regime changes."""
    if regime == "adamw":
        return {}
    return {"optimizer": "sgd", "learning_rate": SGD_RATE, "phases": [0, 0, epochs]}
