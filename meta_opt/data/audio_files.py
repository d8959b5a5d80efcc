"""Reads sound files (Ogg, WAV, FLAC) as short mono clips of one sampling rate."""

import math
from pathlib import Path

import numpy as np

from meta_opt.data.audio import RATE, SECONDS, trim_silence


def read_clip(path: Path, rate: int = RATE, seconds: float = SECONDS) -> np.ndarray:
    """Reads a sound file: channels averaged, resampled, silence cut off, then cut.

    Args:
        path: a file of a kind that libsndfile reads.
        rate: samples a second of the result.
        seconds: the most that is kept, from the first sound on.

    Returns:
        int16 [T], with T at most ``rate * seconds``.

    Raises:
        OSError: if the file cannot be read.
        ImportError: if ``soundfile`` or ``scipy`` is not installed.
    """
    try:
        import soundfile
        from scipy.signal import resample_poly
    except ImportError as error:
        raise ImportError(
            "reading sound files needs soundfile and SciPy: pip install "
            "'meta-opt[data]'"
        ) from error
    try:
        samples, found = soundfile.read(path, dtype="float64", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise OSError(f"{path} cannot be read as sound: {error}") from error
    mono = samples.mean(axis=1)
    if found != rate:
        common = math.gcd(found, rate)
        mono = resample_poly(mono, rate // common, found // common)
    clip = trim_silence(mono, rate)[: round(rate * seconds)]
    # A louder sample than the format has would wrap around.
    return np.clip(np.round(clip * 32768), -32768, 32767).astype(np.int16)
