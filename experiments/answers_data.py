"""Makes questions about images, with answers, for pretraining.

    python -m experiments.answers_data \
        --config configs/answers_data.py:emoji_tuxpaint

`experiments/pretrain.py` with ``configs/pretrain.py:answers`` trains on the output;
`meta_opt/data/sources/answers/files.py` describes its format.
"""

import sys
from pathlib import Path

# Make the repository importable from any working directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments import cli

CONFIG = cli.define_config(partial=True)


def main() -> None:
    """Writes the data and prints counts."""
    from meta_opt.data.sources.answers.files import AnswersDataConfig, build
    from meta_opt.data.sources.answers.questions import QuestionsConfig
    from meta_opt.types import check_keys, from_config

    config = CONFIG.value.to_dict()
    check_keys("config", config, ("data", "questions", "out"))
    data = from_config(AnswersDataConfig, config["data"], "config.data")
    questions = from_config(QuestionsConfig, config["questions"], "config.questions")
    about = build(data, questions, config["out"])
    print(f"{', '.join(data.names)}: {about['pictures']} images")
    for split, count in about["questions"].items():
        print(f"  {f'questions, {split}':26} {count}")
    print(f"  {'skipped, unreadable':26} {len(about['unreadable'])}")
    print(f"  written: {config['out']}")


if __name__ == "__main__":
    cli.run(main)
