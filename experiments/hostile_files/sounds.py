"""Audio files."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

from experiments.hostile_files import samples
from experiments.hostile_files.format import Format, of_file


def _read_audio(path: Path) -> Any:
    from meta_opt.data.preprocessing.audio_files import read_clip

    return read_clip(path), read_clip(path.read_bytes(), 16_000, 30.0)


def _audio_formats() -> dict[str, Format]:
    made = {
        "wav": ("WAV", "PCM_16"),
        "wav_float": ("WAV", "FLOAT"),
        "ogg": ("OGG", "VORBIS"),
        "flac": ("FLAC", "PCM_16"),
        "mp3": ("MP3", None),
    }
    return {
        name: dataclasses.replace(
            of_file(
                f"a.{name}",
                functools.partial(samples.sound, *how),
                _read_audio,
                "bytes",
            ),
            errors=(OSError,),
            is_named=False,
        )
        for name, how in made.items()
    }


FORMATS = _audio_formats()
