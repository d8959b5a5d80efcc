"""The stress test as a user runs it."""

import json

import pytest
from commands import run_command


@pytest.mark.slow
def test_smoke_reports_and_goes_on(tmp_path):
    made = run_command(
        "few_shot_data",
        "--config=configs/few_shot_data.py:smoke",
        f"--config.out={tmp_path / 'data'}",
        "--config.protocol.widths=(32,64)",
    )
    assert made.returncode == 0, made.stderr
    arguments = (
        "--config=configs/stress.py:smoke",
        f"--config.data.folder={tmp_path / 'data'}",
        f"--workdir={tmp_path / 'work'}",
    )
    done = run_command("stress", *arguments)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "work" / "stress.json").read_text())["conditions"]
    assert len(rows) == 9 and {row["examples"] for row in rows} == {8}
    page = (tmp_path / "work" / "wrong_answers.html").read_text()
    assert "data:image/png" in page
    # Nothing is run again, and a mistake is one line.
    again = run_command("stress", *arguments, "--report_only")
    assert again.stdout == done.stdout, again.stderr
    refused = run_command("stress", *arguments, f"--config.models.m={tmp_path}")
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith(f"stress: models.m='{tmp_path}'")
