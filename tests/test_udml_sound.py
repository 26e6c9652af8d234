"""Files of sound and images: read, resampled, damaged. Needs Pillow and soundfile."""

import math
import shutil
import struct

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from udml.data import DataError
from udml.data.audio import AudioFormat, fit, log_spectrogram, read_spectrogram, read_wav, resample
from udml.data.files import open_image

from .folders import (
    refused,
    tone,
    write_image,
    write_wav,
)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2])
def test_wav_files_of_every_width(width, channels, tmp_path):
    signal = np.random.default_rng(0).uniform(-1, 0.99, (50, channels))
    write_wav(tmp_path / "a.wav", signal, rate=8000, width=width)
    x, rate = read_wav(tmp_path / "a.wav")
    assert rate == 8000 and x.dtype == torch.float32
    np.testing.assert_allclose(x, signal.mean(1), rtol=0, atol=2.0 ** -(8 * min(width, 3) - 1))


def test_broken_wav_files_name_themselves(tmp_path):
    path = tmp_path / "a.wav"
    with refused("a wav file, got No such file", path):
        read_wav(path)
    write_wav(path, np.zeros(0))
    with refused("at least one sample, got a wav file of length 0", path):
        read_wav(path)
    write_wav(path, np.zeros(100))
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    with refused("200 bytes of samples, as its header says, got 170", path):
        read_wav(path)
    path.write_bytes(b"")
    with refused("got an empty file", path):
        read_wav(path)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with refused("got a pointer of Git LFS", path):
        read_wav(path)
    for content, got in ((b"page" + whole, "Format not recognised"), (whole[:20], "Error in WAV/W64/RF64 file")):
        path.write_bytes(content)
        with refused(f"a wav file, got {got}", path):
            read_wav(path)
    write_wav(path, np.zeros(100), rate=10)
    with refused("1000 to 384000 Hz, got 10 Hz", path):
        read_wav(path)
    soundfile.write(path, np.array([0.5, np.nan]), 16000, subtype="FLOAT")
    with refused("finite samples, got NaN or infinity", path):
        read_wav(path)


def extensible(signal: np.ndarray, width: int, subformat: int, rate: int) -> bytes:
    """A wav file of WAVE_FORMAT_EXTENSIBLE, byte by byte as the format's definition has it: integers or floats."""
    channels, align = signal.shape[1], width * signal.shape[1]
    if subformat == 3:
        data = signal.astype("<f4").tobytes()
    else:
        integers = np.round(signal * 2 ** (8 * width - 1)).astype("<i4")
        data = integers.reshape(-1, 1).view(np.uint8)[:, :width].tobytes()
    guid = struct.pack("<IHH", subformat, 0, 16) + bytes.fromhex("800000aa00389b71")
    chunk = struct.pack("<HHIIHHHHI", 0xFFFE, channels, rate, rate * align, align, 8 * width, 22, 8 * width, 0) + guid
    body = b"WAVEfmt " + struct.pack("<I", len(chunk)) + chunk + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize("width, subformat", [(2, 1), (3, 1), (4, 1), (4, 3)])
@pytest.mark.parametrize("channels", [1, 2])
def test_extensible_wav_files(width, subformat, channels, tmp_path):
    signal = np.random.default_rng(0).uniform(-1, 0.99, (50, channels))
    (tmp_path / "a.wav").write_bytes(extensible(signal, width, subformat, 44100))
    x, rate = read_wav(tmp_path / "a.wav")
    assert rate == 44100
    np.testing.assert_allclose(x, signal.mean(1), rtol=0, atol=2.0 ** -(8 * min(width, 3) - 1))


def test_wav_files_that_were_written_into_a_pipe(tmp_path):
    """Their header has no length."""
    signal = np.linspace(-1, 0.99, 50)
    write_wav(tmp_path / "a.wav", signal)
    content = bytearray((tmp_path / "a.wav").read_bytes())
    content[4:8] = content[40:44] = b"\xff" * 4
    (tmp_path / "a.wav").write_bytes(content)
    np.testing.assert_allclose(read_wav(tmp_path / "a.wav")[0], signal, rtol=0, atol=2.0**-15)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_files_give_a_data_error_or_nothing_worse(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged", numbered=True)
    name = data.draw(st.sampled_from(["a.wav", "a.jpg", "a.png"]))
    if name == "a.wav":
        write_wav(folder / name, tone(440, 0.01))
    else:
        write_image(folder / name, np.arange(300, dtype=np.uint8).reshape(10, 10, 3))
    content = bytearray((folder / name).read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / name).write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        if name == "a.wav":
            read_spectrogram(folder / name, AudioFormat(8000, 0.1, 64, 32))
        else:
            open_image(folder / name)
    except DataError as error:
        assert str(error).startswith(str(folder / name))
    shutil.rmtree(folder)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from([(16000, 22050), (44100, 22050), (48000, 16000), (8000, 16000), (22050, 16000)]), st.data())
def test_resampling_keeps_what_both_rates_can_hold(rates, data):
    old, new = rates
    # A tenth of a second holds whole periods of these tones, so the signal is periodic.
    hertz = 10 * data.draw(st.integers(0, min(old, new) // 20 - 1))
    phase = data.draw(st.floats(0, 2 * math.pi))
    x, expected = (
        torch.cos(2 * math.pi * hertz * torch.arange(rate // 10, dtype=torch.float64) / rate + phase) for rate in rates
    )
    torch.testing.assert_close(resample(x, old, new), expected, rtol=0, atol=1e-9)
    high = torch.cos(2 * math.pi * (old // 20 * 10 - 10) * torch.arange(old // 10, dtype=torch.float64) / old)
    if new < old:
        torch.testing.assert_close(resample(high, old, new), torch.zeros(new // 10).double(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("old, new", [(16000, 22050), (22050, 16000), (44100, 22050)])
def test_resampling_drops_the_highest_frequency(old, new):
    highest = torch.cos(math.pi * min(old, new) / old * torch.arange(old, dtype=torch.float64))
    torch.testing.assert_close(resample(highest, old, new), torch.zeros(new).double(), rtol=0, atol=1e-9)


def test_resampling_of_any_length_does_not_change_the_pitch():
    x = torch.from_numpy(tone(440, 1.0, 16000)[:15_997])
    y = resample(x, 16000, 22050)
    assert len(y) == math.ceil(15_997 * 22050 / 16000)
    inside = slice(500, -500)
    np.testing.assert_allclose(y[inside], tone(440, 1.0, 22050)[: len(y)][inside], rtol=0, atol=5e-3)


def test_clips_are_cut_or_repeated():
    x = torch.arange(5)
    assert fit(x, 3, False).tolist() == [0, 1, 2] and fit(x, 3, True).tolist() == [1, 2, 3]
    assert fit(x, 12, True).tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]


def test_spectrogram_is_the_windowed_fourier_transform():
    n_fft, hop = 64, 20
    x = torch.randn(300, generator=torch.Generator().manual_seed(0))
    spectrogram = log_spectrogram(x, n_fft, hop).numpy()
    padded = np.pad(x.double().numpy(), n_fft // 2)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    frames = [np.abs(np.fft.rfft(window * padded[t : t + n_fft])) for t in range(0, 301, hop)]
    np.testing.assert_allclose(spectrogram, np.log(np.array(frames).T + 1e-7), rtol=1e-3, atol=1e-3)
