"""Path and format of a run's exported model."""

import dataclasses

from meta_opt.types import check_name

FORMATS = ("model", "adapters", "peft", "huggingface")


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """Path and format of the exported weights.

    Attributes:
        path: "" for no export. For the format ``model`` a path without suffix, except
            for image classifiers and video-text models; otherwise a folder.
        format: ``model``: this package's own format, with adapters merged;
            ``huggingface``: a folder that Transformers reads and ``model.weights``
            takes, with adapters merged; ``adapters``: only the adapters, for
            `meta_opt.models.adapters.load_adapters`; ``peft``: only the adapters, for
            ``peft.PeftModel.from_pretrained``.
    """

    path: str = ""
    format: str = "model"

    def __post_init__(self) -> None:
        """Checks the name, and that a format has a path."""
        check_name("export.format", self.format, FORMATS)
        if self.format != "model" and not self.path:
            raise ValueError(f"export.format={self.format!r} needs an export.path")


def check_model_format(export: ExportConfig, kind: str) -> None:
    """Checks, before training, that a model can be written as one of this package.

    Args:
        export: path and format.
        kind: kind of model, for the error message.

    Raises:
        ValueError: the format is not ``model``.

    >>> check_model_format(ExportConfig("tuned", "peft"), "picture classifier")
    ... # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: export.format='peft' is for vision-text models; a picture classifier ...
    """
    if export.path and export.format != "model":
        raise ValueError(
            f"export.format={export.format!r} is for vision-text models; a {kind} is "
            "written as 'model'"
        )
