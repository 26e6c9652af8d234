"""Data sets of several modalities: watch, digits, hog, CREMA-D, Kinetics-Sound, NYU Depth v2. See docs/data.md."""

import inspect
from collections.abc import Callable
from pathlib import Path

from .base import IGNORED, Batch, DataError, DataSpec
from .cremad import load_cremad
from .digits import load_digits
from .hog import load_hog
from .kinetics_sound import load_kinetics_sound
from .nyud import load_nyud
from .sets import FolderSet, MultimodalData, TensorSet
from .watch import load_watch

__all__ = [
    "DATASETS",
    "IGNORED",
    "Batch",
    "DataError",
    "DataSpec",
    "FolderSet",
    "MultimodalData",
    "TensorSet",
    "load_data",
]

DATASETS: dict[str, Callable[..., MultimodalData]] = {
    "watch": load_watch,
    "digits": load_digits,
    "hog": load_hog,
    "cremad": load_cremad,
    "kinetics-sound": load_kinetics_sound,
    "nyud": load_nyud,
}


def load_data(name: str, root: Path | str | None = None, **options) -> MultimodalData:
    """Load a data set.

    Args:
        name: one of DATASETS.
        root: the data set's folder; watch, digits and hog come with installed packages and need none.
        options: of the set's own loader, such as seed, views or slow; None leaves an option at its default.

    Raises:
        ValueError: for an unknown name or option, listing the valid ones.
        DataError: naming the file and what was expected.
    """
    if name not in DATASETS:
        raise ValueError(f"name: expected one of {', '.join(DATASETS)}, got {name!r}")
    load = DATASETS[name]
    given = {key: value for key, value in options.items() if value is not None}
    known = [key for key in inspect.signature(load).parameters if key != "root"]
    for key in given:
        if key not in known:
            raise ValueError(f"{key}: {name} has no such option; expected one of {', '.join(known)}")
    return load(root, **given)
