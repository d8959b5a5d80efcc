"""Makes few-shot data: classes x 40 images, four phases, three widths.

    python -m experiments.few_shot_data --config configs/few_shot_data.py:openclipart
    python -m experiments.few_shot_data --config configs/few_shot_data.py:own \
        --config.data.name=products/ --config.out=data/few_shot/products

`meta_opt/data/sources/few_shot/files.py` describes the output.
"""

import sys
from pathlib import Path

# Make the repository importable from any working directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments import cli

CONFIG = cli.define_config(partial=True)


def main() -> None:
    """Selects and writes the data, and prints a summary."""
    from meta_opt.data.sources.few_shot.protocol import FewShotConfig
    from meta_opt.data.sources.few_shot.source import SourceConfig, build
    from meta_opt.types import check_keys, from_config

    config = CONFIG.value.to_dict()
    check_keys("config", config, ("data", "protocol", "out"))
    source = from_config(SourceConfig, config["data"], "config.data")
    protocol = from_config(FewShotConfig, config["protocol"], "config.protocol")
    about = build(source, protocol, config["out"])
    counts, left_out = about["counts"], about["left_out"]
    print(f"{source.name}: {len(about['classes'])} classes, {protocol.per_class} each")
    for name, value in {
        "training": f"{counts['train']}, in {protocol.phases} phases of "
        f"{counts['train'] // protocol.phases}",
        "validation": counts["validation"],
        "test": counts["test"],
        "widths": ", ".join(map(str, protocol.widths)),
        "skipped, unreadable": len(left_out["unreadable"]),
        "left out, copies": left_out["copies"],
        "left out, near duplicates": left_out["near_duplicates_of_another_class"],
    }.items():
        print(f"  {name:26} {value}")
    print(f"  written: {config['out']}")


if __name__ == "__main__":
    cli.run(main)
