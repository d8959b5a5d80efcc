"""Whisper's log-mel spectrograms (Radford et al. 2022), in NumPy."""

import functools
import math

import numpy as np

RATE = 16_000
"""Samples a second."""
_WINDOW, _HOP, _MELS = 400, 160, 80
FRAMES_A_SECOND = RATE // _HOP


def whisper_mel(pcm: np.ndarray, rate: int, seconds: float) -> np.ndarray:
    """Computes a spectrogram of fixed length; clips are truncated or padded.

    Frames lie 10 ms apart: power spectra under a Hann window of 25 ms, summed over
    Slaney's 80 triangles, log10 at least 1e-10 and 8 below the loudest, plus 4, over 4.

    Args:
        pcm: int16, or float in [-1, 1], [T].
        rate: samples per second.
        seconds: duration of the spectrogram.

    Returns:
        float32 [100 * seconds, 80].

    Raises:
        ValueError: if ``pcm`` is not of rank 1, or the length is not above 0.

    >>> whisper_mel(np.zeros(8000, np.int16), 8000, 2.0).shape
    (200, 80)
    """
    if pcm.ndim != 1:
        raise ValueError(f"a clip must be of shape [T], not {list(pcm.shape)}")
    if seconds <= 0:
        raise ValueError(f"seconds={seconds} must be above 0")
    length = round(seconds * FRAMES_A_SECOND) * _HOP
    wave = np.zeros(length, np.float32)
    sound = _at_rate(pcm, rate)[:length]
    wave[: len(sound)] = sound
    padded = np.pad(wave, _WINDOW // 2, mode="reflect")
    starts = np.arange(length // _HOP) * _HOP
    samples = padded[starts[:, None] + np.arange(_WINDOW)]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_WINDOW) / _WINDOW)
    power = np.abs(np.fft.rfft(samples * hann, axis=1)) ** 2
    logs = np.log10(np.maximum(power @ _filters().T, 1e-10))
    return ((np.maximum(logs, logs.max() - 8.0) + 4.0) / 4.0).astype(np.float32)


def _at_rate(pcm: np.ndarray, rate: int) -> np.ndarray:
    """Resamples to 16 kHz, in float."""
    from scipy.signal import resample_poly

    wave: np.ndarray = pcm.astype(np.float32)
    if np.issubdtype(pcm.dtype, np.integer):
        wave = wave / (np.iinfo(pcm.dtype).max + 1)
    if rate == RATE or not len(wave):
        return wave
    common = math.gcd(rate, RATE)
    return resample_poly(wave, RATE // common, rate // common)


@functools.cache
def _filters() -> np.ndarray:
    """Slaney's triangles of unit area, [80, 201]: linear to 1 kHz, then logarithmic."""
    step, knee, growth = 200.0 / 3, 1000.0, math.log(6.4) / 27

    def hertz(mel: np.ndarray) -> np.ndarray:
        above = knee * np.exp(growth * (mel - knee / step))
        return np.where(mel < knee / step, mel * step, above)

    top = knee / step + math.log(RATE / 2 / knee) / growth
    corners = hertz(np.linspace(0, top, _MELS + 2))
    frequencies = np.fft.rfftfreq(_WINDOW, 1 / RATE)[None, :]
    low, middle, high = (corners[i : _MELS + i, None] for i in range(3))
    rising = (frequencies - low) / (middle - low)
    falling = (high - frequencies) / (high - middle)
    filters = np.maximum(np.minimum(rising, falling), 0) * 2 / (high - low)
    filters.setflags(write=False)
    return filters
