"""All formats of untrusted files, by name."""

from collections.abc import Mapping

from experiments.hostile_files import (
    archives,
    datasets,
    model_settings,
    pictures,
    records,
    sounds,
    weights,
)
from experiments.hostile_files.format import Format

FORMATS: Mapping[str, Format] = {
    **pictures.FORMATS,
    **sounds.FORMATS,
    **archives.FORMATS,
    **datasets.FORMATS,
    **records.FORMATS,
    **model_settings.FORMATS,
    **weights.FORMATS,
}
