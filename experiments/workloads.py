"""Which workload a run's settings are of."""

from collections.abc import Mapping
from typing import Any


def read_run(settings: Mapping[str, Any], name: str = "config") -> Any:
    """Builds the configuration of a run, of the workload that its sections are of.

    Args:
        settings: a config file's: with ``clips`` of video-text workloads, with
            ``inputs`` of multimodal ones, with ``pictures`` of image classifiers,
            else of images with texts.
        name: name of the mapping, for error messages.

    Raises:
        ValueError: as `meta_opt.finetuning.run_config.read_run_config`.
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
