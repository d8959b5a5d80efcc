"""Where the trained model of a run is written to, and in which format."""

import dataclasses

from meta_opt.types import check_name

FORMATS = ("model", "adapters", "peft", "huggingface")


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """Where the final weights are written to, and as what.

    Attributes:
        path: "" for nowhere; of ``model`` without suffix, but of a picture classifier,
            of a video-text model and in other formats a folder.
        format: ``model``, adapters merged into it, in this package's own format;
            ``huggingface``, adapters merged too, a folder that Transformers reads and
            ``model.weights`` takes; ``adapters`` alone, as
            `meta_opt.models.adapters.load_adapters` reads them; ``peft``, adapters as
            ``peft.PeftModel.from_pretrained`` reads them.
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
        export: where to, and as what.
        kind: of the model, for the error.

    Raises:
        ValueError: a format other than ``model``.

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
