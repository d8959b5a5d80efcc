"""Open-ended questions of MSVD-QA and MSR-VTT-QA (Xu et al., ACM Multimedia 2017).

========== ======= ========== ======
kind       train   validation test
========== ======= ========== ======
msvd_qa    30,933  6,415      13,157
msrvtt_qa  158,581 12,278     72,821
========== ======= ========== ======

``train_qa.json``, ``val_qa.json`` and ``test_qa.json``: a list of objects with
``question``, ``answer`` (a text), ``id`` (a number) and ``video_id`` (a number); the
``category_id`` of MSR-VTT-QA is not read. Video N is ``videoN`` of MSR-VTT and ``vidN``
of MSVD.

``youtube_mapping.txt`` of MSVD has a line ``YOUTUBE_START_END vidN`` for each video; if
it is there, clips may have either name.
"""

from pathlib import Path

from meta_opt.data.sources.video_annotations.annotation_files import (
    find_file,
    read_list,
)
from meta_opt.data.sources.video_annotations.sample import VideoTextSample
from meta_opt.text_files import read_text

SPLITS = ("train", "validation", "test")
PREFIXES = {"msvd_qa": "vid", "msrvtt_qa": "video"}
"""Prefix of the number in a video's name, by kind."""
_FILES = {
    "train": "train_qa.json",
    "validation": "val_qa.json",
    "test": "test_qa.json",
}
_MAPPING = "youtube_mapping.txt"
_FORM = '{"question": TEXT, "answer": TEXT, "id": 0, "video_id": 0}'


def read_video_qa(path: Path, split: str, prefix: str) -> list[VideoTextSample]:
    """Samples of a split, one per question, with its ``id`` as key.

    Args:
        path: the folder, or a file in it.
        split: ``train``, ``validation`` or ``test``.
        prefix: a value of :data:`PREFIXES`.

    Raises:
        ValueError: if a file is not of the form that the module describes, or a video
            of MSVD is not in ``youtube_mapping.txt``.
        FileNotFoundError: if the split's file is missing.
    """
    file = find_file(path, [_FILES[split]])
    mapping_file = file.parent / _MAPPING
    mapping = None
    if prefix == PREFIXES["msvd_qa"] and mapping_file.is_file():
        mapping = read_youtube_mapping(mapping_file)
    samples = []
    for entry in read_list(file, _FORM):
        video = f"{prefix}{entry.integer('video_id')}"
        if mapping is not None and video not in mapping:
            raise entry.error(f"{video} is not in {mapping_file}")
        samples.append(
            VideoTextSample(
                video,
                str(entry.integer("id")),
                split,
                question=entry.text("question"),
                answer=entry.text("answer"),
                clip_names=(video,) if mapping is None else (video, mapping[video]),
            )
        )
    return samples


def read_youtube_mapping(path: Path) -> dict[str, str]:
    r"""Names ``YOUTUBE_START_END`` of MSVD's clips by ``vidN``.

    Args:
        path: ``youtube_mapping.txt``.

    Raises:
        ValueError: if a line is not two names, or a name occurs twice.
        FileNotFoundError: if there is no such file.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "youtube_mapping.txt"
    >>> _ = path.write_text("-4wsuPCjDBc_5_15 vid1\n")
    >>> read_youtube_mapping(path)
    {'vid1': '-4wsuPCjDBc_5_15'}
    """
    mapping: dict[str, str] = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        names = line.split()
        where = f"{path}, line {number}"
        if len(names) != 2 or "/" in line or "\\" in line or len(line.encode()) > 200:
            raise ValueError(f"{where}: {line!r:.60}; expected YOUTUBE_START_END vidN")
        if names[1] in mapping:
            raise ValueError(f"{where}: {names[1]} occurs twice")
        mapping[names[1]] = names[0]
    return mapping
