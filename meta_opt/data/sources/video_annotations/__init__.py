"""Official annotation files of MSR-VTT, YouCook2, TGIF-QA, MSVD-QA and CMU-MOSI.

For users who have the files and the clips: :func:`read_annotations` reads them into
:class:`VideoTextSample`, each module describes the files of its data set, and
`meta_opt.data.sources.video_annotations.clips` the folder of clips.
"""

from meta_opt.data.sources.video_annotations.reader import (
    KINDS,
    VideoTextData,
    read_annotations,
)
from meta_opt.data.sources.video_annotations.sample import VideoTextSample

__all__ = ["KINDS", "VideoTextData", "VideoTextSample", "read_annotations"]
