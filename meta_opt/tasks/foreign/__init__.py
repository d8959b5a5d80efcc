"""Tasks with independent model code: other data, libraries, names and layouts.

The training families of `meta_opt.tasks.families` share model code and initialisation,
so that good results on them say little about models of other authors. Every module here
is self-contained and follows other conventions: Equinox, Haiku, Flax linen, Flax NNX,
plain dicts, or the names and layouts of PyTorch and Hugging Face. None imports
`meta_opt.tasks.nets` or the model of another module.

`STYLE_VALIDATION` is used to select weights; `FOREIGN` is only reported, never used for
any choice.
"""

import functools
import importlib

from meta_opt.tasks.task import BuildTask, Task


def _build(module: str, function: str, library: str | None, folder: str | None) -> Task:
    """Imports the module of a task and builds the task, on the first call."""
    if library is not None:
        from meta_opt.tasks.foreign.data import need

        need(library)
    found = importlib.import_module(f"{__name__}.{module}")
    return getattr(found, function)(folder)


def _lazy(module: str, function: str, library: str | None = None) -> BuildTask:
    return functools.partial(_build, module, function, library)


STYLE_VALIDATION: dict[str, BuildTask] = {
    "validation_clipart_resnet": _lazy("clipart_equinox", "clipart_resnet", "equinox"),
    "validation_titles_gru": _lazy("titles_haiku", "titles_gru", "haiku"),
    "validation_prompts_tcn": _lazy("prompts_torch", "prompts_tcn"),
    "validation_currencies_bert": _lazy("currencies_linen", "currencies_bert"),
    "validation_terrain_siren": _lazy("terrain_siren", "terrain_siren"),
    "validation_titles_minilm_lora": _lazy("titles_minilm", "titles_minilm_lora"),
    "validation_source_llama": _lazy("source_nnx", "source_llama"),
    "validation_iris_mlp": _lazy("iris_plain", "iris_mlp"),
}
"""Functions from a data folder to a task, by name; may be used to select weights."""

FOREIGN: dict[str, BuildTask] = {
    "foreign_sayings_minilm_lora": _lazy(
        "sayings_equinox", "sayings_minilm_lora", "equinox"
    ),
    "foreign_docstrings_minilm": _lazy("docstrings_linen", "docstrings_minilm"),
    "foreign_manpages_lstm": _lazy("manpages_haiku", "manpages_lstm", "haiku"),
    "foreign_temperatures_lstm": _lazy("temperatures_torch", "temperatures_lstm"),
    "foreign_icons_convnext": _lazy("icons_timm", "icons_convnext"),
    "foreign_icons_fusion": _lazy("icons_nnx", "icons_fusion"),
    "foreign_sayings_writer_lora": _lazy("writer_gpt2", "sayings_writer_lora"),
    "foreign_kinds_few_shot": _lazy("writer_gpt2", "kinds_few_shot"),
    "foreign_code_transformer": _lazy("code_haiku", "code_transformer", "haiku"),
    "foreign_cars_regression": _lazy("cars_equinox", "cars_regression", "equinox"),
    "foreign_sayings_head": _lazy("sayings_head", "sayings_head"),
}
"""Functions from a data folder to a task, by name; never used for any choice."""

DEMO: dict[str, BuildTask] = {
    "demo_titles_writer": _lazy("demo_titles", "titles_writer"),
}
"""Tasks of ``make demo``, without prepared data; never used for any choice."""
