"""Reads sound files (Ogg, WAV, FLAC) as short mono clips of one sampling rate."""

import io
import math
from pathlib import Path

import numpy as np

from meta_opt.data.preprocessing.audio import RATE, SECONDS, trim_silence


def read_clip(
    file: Path | bytes, rate: int = RATE, seconds: float = SECONDS
) -> np.ndarray:
    """Reads a sound file: channels averaged, resampled, silence cut off, then cut.

    Args:
        file: the path, or the bytes, of a file of a kind that libsndfile reads.
        rate: samples a second of the result.
        seconds: the most that is kept, from the first sound on.

    Returns:
        int16 [T], with T at most ``rate * seconds``.

    Raises:
        OSError: if the file cannot be read or has samples that are not finite.
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
    name: str | Path = "the file" if isinstance(file, bytes) else file
    opened = io.BytesIO(file) if isinstance(file, bytes) else file
    try:
        samples, found = soundfile.read(opened, dtype="float64", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise OSError(
            f"{name} cannot be read as sound: {error.error_string}"
        ) from error
    if not np.isfinite(samples).all():
        raise OSError(f"{name} has samples that are not finite")
    mono = samples.mean(axis=1)
    if found != rate:
        common = math.gcd(found, rate)
        mono = resample_poly(mono, rate // common, found // common)
    clip = trim_silence(mono, rate)[: round(rate * seconds)]
    # A louder sample than the format has would wrap around.
    return np.clip(np.round(clip * 32768), -32768, 32767).astype(np.int16)
