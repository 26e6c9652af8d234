"""Every stream and every fixed seed that this project draws from: the only place where their numbers stand.

A random number is a function of (seed, stream word, sample id, element). Seeds cannot keep two draws apart: a user may
choose any, also one of those below, and one seed serves all draws of a step. So each draw has a stream of its own, the
low byte of the word:

    word = Stream + 256 * n

where n tells apart the calls of one draw: the `stream` argument of an op, a modality's place, a parameter's place.
"""

from enum import IntEnum, unique


@unique
class Stream(IntEnum):
    """What is drawn, by the low byte of the counter's stream word. A new draw takes a new number below 256.

    0 is also what `normal` and `uniform` use when their caller names no stream.
    """

    # udml.training.randomness: how noisy each modality of a sample is.
    LEVELS = 0
    # The ops: part of what their results are, documented in udml_kernels.normal.
    INJECT_NOISE = 1
    REPARAMETERIZE = 2
    NOISE_REGRESSION = 3
    MODALITY_DROPOUT = 4
    # udml.models: the authors' levels, and OGM-GE's noise on gradients.
    AUTHORS_LEVELS = 5
    OGM_GE = 6
    # udml.data.splits: which samples validate, and which digits test.
    SPLIT = 7
    # udml.experiments.kinds: which kind of noise hits a modality.
    KINDS = 8


@unique
class Seed(IntEnum):
    """Fixed seeds. All others are a caller's, or `Purpose`s of it."""

    # Of what must be the same for every run: the test digits, and with 1, 2, ... added the draws of the noise in
    # evaluation. They share the number, and are independent by their streams.
    COMMON = 20260319
    # The first of the training runs that choose hyper-parameters; those that are reported count from 0.
    TUNING = 1000


@unique
class Purpose(IntEnum):
    """What a training run derives seeds for from its own; see udml.training.randomness."""

    ORDER = 0
    STEP = 1
    EPOCH = 2
