"""All streams and fixed seeds that this project draws from. Their numbers are defined only here.

A random number is a function of (seed, stream word, sample id, element). Seeds cannot separate two draws: a user may
choose any seed, also one of those below, and one seed serves all draws of a step. So each draw has a stream of its own,
the low byte of the word:

    word = Stream + 256 * n

where n distinguishes the calls of one draw: the `stream` argument of an op, the index of a modality or of a parameter.
"""

from enum import IntEnum, unique


@unique
class Stream(IntEnum):
    """What is drawn, as the low byte of the counter's stream word. A new draw takes a new number below 256.

    `normal` and `uniform` also use 0 when their caller names no stream.
    """

    # udml.training.randomness: how noisy each modality of a sample is.
    LEVELS = 0
    # The ops. These numbers are part of the ops' results and documented in udml_kernels.normal.
    INJECT_NOISE = 1
    REPARAMETERIZE = 2
    NOISE_REGRESSION = 3
    MODALITY_DROPOUT = 4
    # udml.models: the authors' levels, and OGM-GE's noise on gradients.
    AUTHORS_LEVELS = 5
    OGM_GE = 6
    # udml.data.splits: the choice of the validation samples, and of the test digits.
    SPLIT = 7
    # udml.experiments.kinds: the kind of noise that a modality gets.
    KINDS = 8
    # The op reparameterize with pool=True.
    REPARAMETERIZE_POOLED = 9


@unique
class Seed(IntEnum):
    """Fixed seeds. All others come from a caller or are derived from a caller's seed by a `Purpose`."""

    # For what must be the same in every run: the test digits and, with 1, 2, ... added, the noise of the evaluation.
    # They share the number, and their streams make them independent.
    COMMON = 20260319
    # The seed of the first training run that chooses hyper-parameters; the runs that are reported count from 0.
    TUNING = 1000


@unique
class Purpose(IntEnum):
    """Purposes for which a training run derives seeds from its own seed; see udml.training.randomness."""

    ORDER = 0
    STEP = 1
    EPOCH = 2
