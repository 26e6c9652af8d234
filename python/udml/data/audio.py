"""Sound: wav files to log-spectrograms."""

import math
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .files import fail, not_data

_RATES = (1_000, 384_000)


@dataclass(frozen=True)
class AudioFormat:
    """How a clip's sound becomes a spectrogram.

    Attributes:
        rate: samples a second.
        seconds: the length that is cut out; a shorter clip is repeated.
        n_fft, hop: samples of a window and between two windows.
        centre: cut out the middle of a longer clip, not its beginning.
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
    """A wav file of integer PCM (8, 16, 24 or 32 bits), its channels averaged.

    Returns:
        float32 (samples,) in [-1, 1), and the samples a second.

    Raises:
        DataError: missing, empty, cut off, or no such file.
    """
    expected = "a wav file of integer PCM"
    try:
        with wave.open(str(path), "rb") as file:
            channels, width, rate, count = file.getparams()[:4]
            data = file.readframes(count)
    except OSError as error:
        fail(path, expected, error.strerror, error)
    except (wave.Error, EOFError, RuntimeError) as error:
        fail(path, expected, not_data(path) or error or "the end of the file", error)
    if count == 0:
        fail(path, "at least one sample", "a wav file of length 0")
    if len(data) != count * width * channels:
        fail(path, f"{count * width * channels} bytes of samples, as its header says", len(data))
    if width > 4 or not _RATES[0] <= rate <= _RATES[1]:
        fail(path, f"8 to 32 bits at {_RATES[0]} to {_RATES[1]} Hz", f"{8 * width} bits at {rate} Hz")
    words = np.zeros((count * channels, 4), np.uint8)
    words[:, 4 - width :] = np.frombuffer(data, np.uint8).reshape(-1, width)
    if width == 1:
        # Samples of 8 bits are the only ones without a sign.
        words[:, 3] ^= 0x80
    values = words.view("<i4").reshape(count, channels).mean(1) / 2**31
    return torch.from_numpy(values.astype(np.float32)), rate


def resample(x: Tensor, old: int, new: int) -> Tensor:
    """(samples,) at `old` to (ceil(samples new / old),) at `new` samples a second, by its Fourier series.

    Frequencies at and above half of either rate are left out. The signal counts as periodic, after it is
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
    """(samples,): a longer signal's beginning or centre; a shorter one, repeated."""
    start = max(0, len(x) - samples) // 2 if centre else 0
    return x.repeat(-(-samples // len(x)))[start : start + samples]


def log_spectrogram(x: Tensor, n_fft: int, hop: int) -> Tensor:
    """log(|STFT| + 1e-7) of (samples,): float32 (n_fft / 2 + 1, samples // hop + 1).

    A periodic Hann window, frames centred, zeros outside: librosa's `stft` at its defaults.
    """
    window = torch.hann_window(n_fft, device=x.device)
    spectrum = torch.stft(x, n_fft, hop, window=window, center=True, pad_mode="constant", return_complex=True)
    return (spectrum.abs() + 1e-7).log()


def read_spectrogram(path: Path, audio: AudioFormat) -> Tensor:
    """A wav file's log-spectrogram, float32 of the shape `audio.shape`."""
    x, rate = read_wav(path)
    # Cut first: only what is kept is resampled.
    x = fit(x, min(len(x), math.ceil(audio.seconds * rate)), audio.centre)
    x = fit(resample(x, rate, audio.rate).clamp(-1, 1), audio.samples, audio.centre)
    return log_spectrogram(x, audio.n_fft, audio.hop)[None]
