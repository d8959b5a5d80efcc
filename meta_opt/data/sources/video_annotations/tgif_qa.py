"""Questions about animated GIFs: TGIF-QA (Jang et al., CVPR 2017).

=================== ======= ====== ============================================
kind                train   test   answer
=================== ======= ====== ============================================
tgif_qa_action      20,475  2,274  index of one of five options
tgif_qa_transition  52,704  6,232  index of one of five options
tgif_qa_frame       39,392  13,691 a word
tgif_qa_count       26,843  3,554  a number from 0 to 10, 10 for "10 or more"
=================== ======= ====== ============================================

Files are ``Train_TASK_question.csv`` and ``Test_TASK_question.csv`` (or ``.tsv``), with
``action``, ``transition``, ``frameqa`` and ``count`` for TASK, separated by tabs in
spite of their name. Columns: ``gif_name``, ``question``, ``a1`` to ``a5`` of the tasks
with options, ``answer`` (indices are from 0), ``type`` of frame questions (0 object, 1
number, 2 color, 3 location), ``vid_id`` and ``key``. In the published files ``vid_id``
identifies the question (``ACTION4``) and ``key`` numbers the GIF, so a sample's key is
its ``vid_id``. The counts above are the paper's; some releases have a few rows fewer.

There is no official validation split; hold a part of ``train`` out by ``video_id``,
with `meta_opt.data.splits.held_out_split`, since several questions share a GIF.
"""

from pathlib import Path

from meta_opt.data.sources.video_annotations.annotation_files import (
    find_file,
    read_table,
)
from meta_opt.data.sources.video_annotations.sample import VideoTextSample

SPLITS = ("train", "test")
TASKS = {
    "tgif_qa_action": "action",
    "tgif_qa_transition": "transition",
    "tgif_qa_frame": "frameqa",
    "tgif_qa_count": "count",
}
"""Names of the tasks in file names, by kind."""
_OPTIONS = ("a1", "a2", "a3", "a4", "a5")
_CHOICE = ("action", "transition")
_MOST = 10
_TYPES = 4


def read_tgif_qa(path: Path, split: str, task: str) -> list[VideoTextSample]:
    """Samples of a task, one per question.

    Args:
        path: the folder, or a file in it.
        split: ``train`` or ``test``.
        task: a value of :data:`TASKS`.

    Raises:
        ValueError: if the file is not of the form that the module describes.
        FileNotFoundError: if it is missing.
    """
    stem = f"{split.capitalize()}_{task}_question"
    columns = [
        *("gif_name", "question"),
        *(_OPTIONS if task in _CHOICE else ()),
        *("answer", "vid_id"),
        *(("type",) if task == "frameqa" else ()),
    ]
    samples = []
    for row in read_table(
        find_file(path, [f"{stem}.csv", f"{stem}.tsv"]), columns, "\t"
    ):
        answer: int | float | str
        if task in _CHOICE:
            answer = row.integer("answer", 0, len(_OPTIONS) - 1)
        elif task == "count":
            answer = float(row.integer("answer", 0, _MOST))
        else:
            answer = row.text("answer")
        samples.append(
            VideoTextSample(
                row.identifier("gif_name"),
                row.text("vid_id"),
                split,
                question=row.text("question"),
                options=tuple(row.text(a) for a in _OPTIONS) if task in _CHOICE else (),
                answer=answer,
                category=row.integer("type", 0, _TYPES - 1)
                if task == "frameqa"
                else None,
            )
        )
    return samples
