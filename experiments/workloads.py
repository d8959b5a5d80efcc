"""Reads the configuration of a run for any workload."""

from collections.abc import Mapping
from typing import Any


def read_run(settings: Mapping[str, Any], name: str = "config") -> Any:
    """Builds the configuration of a run; the workload follows from its sections.

    Args:
        settings: contents of a config file. ``clips`` means a video-text workload,
            ``inputs`` a multimodal one, ``pictures`` an image classifier, and none of
            these an image-text workload.
        name: name of the mapping, for error messages.

    Raises:
        ValueError: invalid settings, see
            `meta_opt.finetuning.run_config.read_run_config`.
    """
    from meta_opt.finetuning.run_config import read_run_config
    from meta_opt.workloads.classification import ClassificationConfig
    from meta_opt.workloads.image_text import ImageTextConfig
    from meta_opt.workloads.multimodal import MultimodalConfig
    from meta_opt.workloads.video_text import VideoTextConfig

    workload: Any = ImageTextConfig
    if "clips" in settings:
        workload = VideoTextConfig
    elif "inputs" in settings:
        workload = MultimodalConfig
    elif "pictures" in settings:
        workload = ClassificationConfig
    return read_run_config(workload, settings, name)
