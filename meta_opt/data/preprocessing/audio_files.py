"""Reads audio files (Ogg, WAV, FLAC) as short mono clips of one sampling rate."""

import io
import math
from pathlib import Path

import numpy as np

from meta_opt.data.preprocessing.audio import RATE, SECONDS, trim_silence

MIN_RATE, MAX_RATE = 1_000, 768_000
"""Supported range of sampling rates in Hz."""
MAX_SAMPLES = 30_000_000
"""Largest number of samples, before and after resampling: 10 minutes at 48 kHz, which
takes a gigabyte of memory.
"""
_BLOCK = 1 << 16


def read_clip(
    file: Path | bytes, rate: int = RATE, seconds: float = SECONDS
) -> np.ndarray:
    """Reads an audio file as mono, resampled, with silence trimmed, then truncated.

    Args:
        file: path or contents of a file in a format that libsndfile supports.
        rate: samples per second of the result.
        seconds: largest duration that is kept, after the leading silence.

    Returns:
        int16 [T], with T at most ``rate * seconds``.

    Raises:
        OSError: if the file cannot be read, has samples that are not finite, is longer
            than `MAX_SAMPLES`, or has a rate below `MIN_RATE` or above `MAX_RATE`.
        ImportError: if ``soundfile`` or ``scipy`` is not installed.
    """
    try:
        import soundfile
        from scipy.signal import resample_poly
    except ImportError as error:
        raise ImportError(
            "reading audio files needs soundfile and SciPy: pip install "
            "'meta-opt[data]'"
        ) from error
    name: str | Path = "the file" if isinstance(file, bytes) else file
    opened = io.BytesIO(file) if isinstance(file, bytes) else file
    try:
        with soundfile.SoundFile(opened) as sound:
            found = sound.samplerate
            if not MIN_RATE <= found <= MAX_RATE:
                raise OSError(
                    f"{name} has {found:,} samples per second; {MIN_RATE:,} to "
                    f"{MAX_RATE:,} can be read"
                )
            # Read in blocks, since the length in the header may be wrong.
            blocks, length = [], 0
            for block in sound.blocks(_BLOCK, dtype="float64", always_2d=True):
                blocks.append(block.mean(axis=1))
                length += len(block)
                if length * max(1, rate / found) > MAX_SAMPLES:
                    raise OSError(
                        f"{name} has more than {MAX_SAMPLES:,} samples; cut it"
                    )
    except soundfile.LibsndfileError as error:
        raise OSError(
            f"{name} cannot be read as audio: {error.error_string}"
        ) from error
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise OSError(f"{name} cannot be read as audio: {error}") from error
    mono = np.concatenate([np.zeros(0), *blocks])
    if not np.isfinite(mono).all():
        raise OSError(f"{name} has samples that are not finite")
    if found != rate:
        common = math.gcd(found, rate)
        mono = resample_poly(mono, rate // common, found // common)
    clip = trim_silence(mono, rate)[: round(rate * seconds)]
    # Clip, since samples beyond the integer range would wrap around.
    return np.clip(np.round(clip * 32768), -32768, 32767).astype(np.int16)
