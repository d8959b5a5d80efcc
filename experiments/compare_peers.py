"""Compares `meta_opt.fit` with other libraries on the same data and encoder.

    python -m venv .venv-peers
    .venv-peers/bin/pip install --requirement experiments/peers/requirements.txt
    python -m experiments.compare_peers --config configs/peers.py:texts

Stored results are reused; ``--report_only`` writes the table of stored results without
measuring. The encoders and packages of ``make data`` are required.
"""

import sys
from pathlib import Path

# Make the repository importable from any working directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments import cli
from meta_opt.types import check_keys

CONFIG = cli.define_config(partial=True)
WORKDIR = cli.define_workdir("runs/peers", "Folder for the tasks' files.")
CHOSEN = cli.define_only()
REPORT_ONLY = cli.define_report_only()

_SETTINGS = ("tasks", "peers", "seeds", "python", "data_dir", "results")


def main() -> None:
    """Measures missing cells and writes the report."""
    from tqdm import tqdm

    from experiments.peers.report import summarise_peers, write_peers
    from experiments.peers.tasks import write_task
    from experiments.peers.trials import Peer, peer_cells, run_peer
    from meta_opt.data import data_dir as default_data_dir
    from meta_opt.parallel.workdir import hold_workdir

    config = CONFIG.value.to_dict()
    check_keys("config", config, _SETTINGS)
    peers = [Peer(**peer) for peer in config["peers"]]
    cells = peer_cells(config, peers)
    chosen = CHOSEN(c.name for c in cells)
    missing = [c for c in cells if c.name in chosen and c.stored() is None]
    if missing and not REPORT_ONLY.value:
        root = Path(WORKDIR.value).absolute()
        with hold_workdir(root), tqdm(missing, desc="cells", unit="cell") as bar:
            for cell in bar:
                bar.set_postfix_str(cell.name)
                folder = root / cell.task
                counts, data_dir = config["tasks"][cell.task], config["data_dir"]
                labels = write_task(cell.task, counts, folder, data_dir or None)
                python, scratch = config["python"], root / "scratch"
                data = Path(data_dir or default_data_dir())
                found = run_peer(cell, python, folder, scratch, labels["test"], data)
                cell.write(found)
    records: dict[str, dict[str, list]] = {peer.name: {} for peer in peers}
    left = 0
    for cell in cells:
        if (record := cell.stored()) is None:
            left += 1
        else:
            records[cell.peer.name].setdefault(cell.task, []).append(record)
    rows = summarise_peers(records, peers)
    print(write_peers(config["results"], rows, cli.command_line(), left))
    print(f"written: {config['results']}/peers.md, peers.json")


if __name__ == "__main__":
    cli.run(main)
