"""Speech features: silence trimming and log-mel spectrograms of fixed size."""

import functools

import numpy as np

RATE = 8000
"""Sampling rate in Hz of the speech datasets of this package."""

SECONDS = 1.5
"""Largest duration of their clips."""

_BLOCK_SECONDS = 0.01
_FLOOR_DECIBELS = 60.0


def trim_silence(
    pcm: np.ndarray, rate: int = RATE, threshold_decibels: float = 30.0
) -> np.ndarray:
    """Trims silence at the beginning and end of a clip.

    A block of 10 ms is quiet if its RMS, about the clip's mean, is more than
    ``threshold_decibels`` below that of the loudest block. A block on either side of
    the loud ones is kept.

    Args:
        pcm: int16 or float [T].
        rate: samples per second.
        threshold_decibels: how far below the loudest block silence begins.

    Returns:
        A slice of ``pcm``, [T'] with T' <= T; all of it if the signal is constant.

    Raises:
        ValueError: if ``pcm`` is not of rank 1.
    """
    _check_mono(pcm)
    block = max(1, round(rate * _BLOCK_SECONDS))
    count = -(-pcm.size // block)
    centred = np.zeros(count * block)
    centred[: pcm.size] = pcm - (pcm.mean() if pcm.size else 0.0)
    power = np.mean(np.square(centred.reshape(count, block)), axis=1)
    loud = np.flatnonzero(
        power > power.max(initial=0) * 10 ** -(threshold_decibels / 10)
    )
    if not loud.size:
        return pcm
    return pcm[max(0, loud[0] - 1) * block : (loud[-1] + 2) * block]


def log_mel(
    pcm: np.ndarray,
    rate: int = RATE,
    frames: int = 32,
    mels: int = 24,
    seconds: float = SECONDS,
) -> np.ndarray:
    """Computes a standardised log-mel spectrogram of a fixed size.

    Time is not stretched: the frames lie ``seconds / frames`` apart, the first half of
    that after the start; longer clips are truncated and shorter ones padded with
    silence. A frame is the power spectrum under a Hann window of at least 50 ms, summed
    over triangles that are evenly spaced in mel,

        mel(f) = 2595 log10(1 + f / 700),

    and taken in decibels, at least 60 below the loudest entry. The result has mean 0
    and standard deviation 1, so that it does not depend on the level; silence gives
    zeros.

    Args:
        pcm: int16 or float [T].
        rate: samples per second.
        frames: number of frames.
        mels: number of mel bands, from 0 Hz to ``rate / 2``.
        seconds: the length of time that the frames cover.

    Returns:
        float32 [frames, mels].

    Raises:
        ValueError: if ``pcm`` is not of rank 1, or there are more bands than the window
            can resolve.
    """
    _check_mono(pcm)
    hop = seconds * rate / frames
    window = 1 << (max(1, round(max(hop, 0.05 * rate)) - 1)).bit_length()
    padded = np.zeros(round(seconds * rate) + 2 * window)
    kept = pcm[: round(seconds * rate)]
    padded[window : window + kept.size] = kept - (kept.mean() if kept.size else 0.0)
    centres = np.round((np.arange(frames) + 0.5) * hop).astype(np.int64) + window
    samples = centres[:, None] + np.arange(window)[None, :] - window // 2
    hann = np.sin(np.pi * (np.arange(window) + 0.5) / window) ** 2
    power = np.abs(np.fft.rfft(padded[samples] * hann[None, :], axis=1)) ** 2
    bands = power @ mel_filters(rate, window, mels).T
    loudest = bands.max()
    if loudest <= 0:
        return np.zeros((frames, mels), np.float32)
    decibels = 10 * np.log10(np.maximum(bands / loudest, 10 ** -(_FLOOR_DECIBELS / 10)))
    deviation = decibels.std()
    if deviation == 0:
        return np.zeros((frames, mels), np.float32)
    return ((decibels - decibels.mean()) / deviation).astype(np.float32)


@functools.cache
def mel_filters(rate: int, window: int, mels: int) -> np.ndarray:
    """Returns the weights of triangular filters, evenly spaced in mel.

    Filter k rises from the corner frequency k to 1 at k + 1 and falls to 0 at k + 2.

    Args:
        rate: samples per second.
        window: samples of the Fourier transform.
        mels: number of filters.

    Returns:
        Read-only float64 [mels, window // 2 + 1], one row per filter.

    Raises:
        ValueError: if a filter is so narrow that it has no frequency of the transform.
    """
    top = 2595 * np.log10(1 + rate / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, top, mels + 2) / 2595) - 1)
    frequencies = np.fft.rfftfreq(window, 1 / rate)[None, :]
    low, middle, high = (corners[i : mels + i, None] for i in range(3))
    rising = (frequencies - low) / (middle - low)
    falling = (high - frequencies) / (high - middle)
    filters = np.maximum(np.minimum(rising, falling), 0.0)
    if not filters.any(axis=1).all():
        raise ValueError(
            f"{mels} mel bands are too many for a window of {window} samples at "
            f"{rate} Hz: some have no frequency"
        )
    filters.setflags(write=False)
    return filters


def _check_mono(pcm: np.ndarray) -> None:
    if pcm.ndim != 1:
        raise ValueError(f"a clip must be of shape [T], not {list(pcm.shape)}")
