"""Sound: wav files as log-spectrograms."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .files import fail, not_data

_RATES = (1_000, 384_000)
# The line in libsndfile's log for a header that promises more samples than the file holds.
_CUT_OFF = re.compile(r"^data : (\d+) \(should be (\d+)\)", re.M)
# The length in the header of a file written through a pipe, where the writer could not go back to the header.
_UNKNOWN_LENGTH = 2**32 - 1


@dataclass(frozen=True)
class AudioFormat:
    """How a clip's sound becomes a spectrogram.

    Attributes:
        rate: samples per second.
        seconds: the length that is cut out; a shorter clip is repeated.
        n_fft, hop: samples per window, and between the starts of two windows.
        centre: cut out the middle of a longer clip instead of its beginning.
    """

    rate: int
    seconds: float
    n_fft: int
    hop: int
    centre: bool = False

    @property
    def samples(self) -> int:
        return round(self.rate * self.seconds)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(1, frequencies, times) of the spectrogram."""
        return 1, self.n_fft // 2 + 1, self.samples // self.hop + 1


def read_wav(path: Path) -> tuple[Tensor, int]:
    """A wav file (or another format that libsndfile reads), with its channels averaged.

    Returns:
        float32 (samples,), integer samples scaled to [-1, 1), and the samples per second.

    Raises:
        DataError: missing, empty, cut off, not a sound file, or samples that are not finite.
        ImportError: without soundfile.
    """
    with _opened(path) as file:
        values = file.read(dtype="float64", always_2d=True)
        if len(values) != file.frames:
            fail(path, f"{file.frames} samples, as its header says", len(values))
        if not np.isfinite(values).all():
            fail(path, "finite samples", "NaN or infinity")
        return torch.from_numpy(values.mean(1).astype(np.float32)), file.samplerate


def check_wav(path: Path) -> None:
    """Read only a wav file's header. Raises DataError as `read_wav` does for what the header shows."""
    with _opened(path):
        pass


@contextmanager
def _opened(path: Path) -> Iterator:
    """soundfile's SoundFile; its errors, also those while it is read, become a DataError that names the file."""
    try:
        import soundfile
    except ImportError as error:
        raise ImportError("Sound is read with soundfile: pip install soundfile") from error
    expected = "a wav file"
    try:
        with open(path, "rb") as source, soundfile.SoundFile(source.fileno(), closefd=False) as file:
            cut = _CUT_OFF.search(file.extra_info)
            if cut and int(cut[1]) != _UNKNOWN_LENGTH:
                fail(path, f"{cut[1]} bytes of samples, as its header says", cut[2])
            if file.frames == 0:
                fail(path, "at least one sample", "a wav file of length 0")
            if not _RATES[0] <= file.samplerate <= _RATES[1]:
                fail(path, f"{_RATES[0]} to {_RATES[1]} Hz", f"{file.samplerate} Hz")
            yield file
    except OSError as error:
        fail(path, expected, error.strerror, error)
    except (soundfile.SoundFileError, ValueError, TypeError) as error:
        got = getattr(error, "error_string", str(error)).rstrip(".")
        fail(path, expected, not_data(path) or got, error)


def resample(x: Tensor, old: int, new: int) -> Tensor:
    """Resample (samples,) from `old` to `new` samples a second by its Fourier series: (ceil(samples new / old),).

    Frequencies at and above half of either rate are left out. The signal is treated as periodic, after it is
    padded with zeros until both rates have a whole number of samples.
    """
    if old == new:
        return x
    common = math.gcd(old, new)
    up, down = new // common, old // common
    blocks = -(-len(x) // down)
    spectrum = torch.fft.rfft(x, blocks * down)
    resampled = torch.fft.irfft(spectrum[: (blocks * min(up, down) + 1) // 2], blocks * up) * (up / down)
    return resampled[: -(-len(x) * up // down)]


def fit(x: Tensor, samples: int, centre: bool) -> Tensor:
    """(samples,): the beginning or the centre of a longer signal; a shorter signal is repeated."""
    start = max(0, len(x) - samples) // 2 if centre else 0
    return x.repeat(-(-samples // len(x)))[start : start + samples]


def log_spectrogram(x: Tensor, n_fft: int, hop: int) -> Tensor:
    """log(|STFT| + 1e-7) of (samples,): float32 (n_fft / 2 + 1, samples // hop + 1).

    A periodic Hann window, centred frames, zero padding: librosa's `stft` with its defaults.
    """
    window = torch.hann_window(n_fft, device=x.device)
    spectrum = torch.stft(x, n_fft, hop, window=window, center=True, pad_mode="constant", return_complex=True)
    return (spectrum.abs() + 1e-7).log()


def read_spectrogram(path: Path, audio: AudioFormat) -> Tensor:
    """A wav file's log-spectrogram, float32 of the shape `audio.shape`."""
    x, rate = read_wav(path)
    # Cut before resampling, so that only what is kept is resampled.
    x = fit(x, min(len(x), math.ceil(audio.seconds * rate)), audio.centre)
    x = fit(resample(x, rate, audio.rate).clamp(-1, 1), audio.samples, audio.centre)
    return log_spectrogram(x, audio.n_fft, audio.hop)[None]
