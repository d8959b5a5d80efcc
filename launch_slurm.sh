#!/usr/bin/env bash
# Submits one command to SLURM, one process per node with all of its GPUs.
set -euo pipefail

usage() {
  cat <<'EOF'
Usage: launch_slurm.sh NAME [options] -- COMMAND...

Submits COMMAND as the job NAME: one process on each node, which finds the others
automatically (jax.distributed reads SLURM's variables). Before its time limit, and when
it is preempted, the job gets SIGTERM, saves, and is requeued; so COMMAND must have a
--workdir on a disk that all nodes share. Output goes to runs/launch/NAME-JOB.log.

With --array every task of the array runs COMMAND independently, which must then share
its work (--shared, or --storage of a search).

  --nodes N          nodes per task (default 1)
  --array TASKS      such as 0-7, or 0-63%8 for eight at a time (default: no array)
  --gpus N           GPUs per node (default 8)
  --cpus N           CPUs per node (default 8 per GPU)
  --time LIMIT       such as 12:00:00 (default 24:00:00)
  --partition NAME   (default: the cluster's)
  --account NAME     (default: yours)
  --venv FOLDER      virtual environment (default .venv)
  --grace SECONDS    between SIGTERM and the time limit (default 300)
  --dry-run          print the job script instead of submitting it

Example:
  ./launch_slurm.sh so400m --nodes 2 --gpus 8 -- \
    python experiments/finetune.py --config configs/finetune.py:so400m_lora \
    --workdir /shared/so400m
  ./launch_slurm.sh tables --array 0-7 --gpus 1 -- \
    python -m experiments.reproduce_tables --config configs/tables.py:table1 --shared \
    --config.workers=1 --workdir /shared/tables --config.results=/shared/table1
EOF
}

fail() {
  echo "launch_slurm.sh: $*" >&2
  exit 2
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[[ $# -gt 0 ]] || {
  usage
  exit 2
}
case "$1" in
  -h | --help)
    usage
    exit 0
    ;;
  -*) fail "the first argument is the job's name (--help)" ;;
esac
name=$1
shift
[[ $name =~ ^[A-Za-z0-9_.-]+$ ]] || fail "'$name' is not a valid name for a job"

nodes=1 array='' gpus=8 cpus='' time=24:00:00 partition='' account='' venv=.venv grace=300
dry_run=no command=''
while [[ $# -gt 0 ]]; do
  case "$1" in
    --nodes | --array | --gpus | --cpus | --time | --partition | --account | --venv | --grace)
      [[ $# -gt 1 ]] || fail "$1 needs a value"
      declare "${1#--}=$2"
      shift 2
      ;;
    --dry-run) dry_run=yes && shift ;;
    --)
      shift
      command=$(printf '%q ' "$@")
      break
      ;;
    *) fail "no option '$1' (--help)" ;;
  esac
done
[[ -n ${command// /} ]] || fail "no command: write it after --"
cpus=${cpus:-$((8 * gpus))}
for number in nodes gpus cpus grace; do
  [[ ${!number} =~ ^[1-9][0-9]*$ ]] || fail "--$number ${!number} must be at least 1"
done

[[ -z $array || $array =~ ^[0-9][0-9,:%-]*$ ]] ||
  fail "--array $array must name tasks, such as 0-7"
job_log=%j
[[ -z $array ]] || job_log=%A-%a

script=$(
  cat <<EOF
#!/usr/bin/env bash
#SBATCH --job-name=$name
${array:+#SBATCH --array=$array
}#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=$gpus
#SBATCH --cpus-per-task=$cpus
#SBATCH --time=$time
#SBATCH --signal=B:TERM@$grace
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --chdir=$root
#SBATCH --output=runs/launch/$name-$job_log.log
${partition:+#SBATCH --partition=$partition
}${account:+#SBATCH --account=$account
}set -uo pipefail
. $(printf %q "$venv")/bin/activate
# The batch shell gets the signal: it passes it on and, once all is saved, queues again.
# Once: a second signal ends the step at once. It may come before the step is known.
stopped=no step='' passed=no
pass_on() {
  stopped=yes
  if [[ -n \$step && \$passed == no ]]; then
    passed=yes
    kill -TERM "\$step" 2>/dev/null
  fi
}
trap pass_on TERM
srun --kill-on-bad-exit=1 $command&
step=\$!
if [[ \$stopped == yes ]]; then pass_on; fi
status=0
wait "\$step" || status=\$?
if [[ \$stopped == yes ]]; then
  wait "\$step"
  scontrol requeue "\$SLURM_JOB_ID"
  exit 0
fi
exit "\$status"
EOF
)
if [[ $dry_run == yes ]]; then
  printf '%s\n' "$script"
  exit 0
fi
command -v sbatch >/dev/null || fail "sbatch is not installed: no SLURM cluster here"
mkdir -p "$root/runs/launch"
printf '%s\n' "$script" | sbatch
