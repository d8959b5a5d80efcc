#!/usr/bin/env bash
# Runs one command on every host of a Cloud TPU, and again after a preemption.
set -euo pipefail

usage() {
  cat <<'EOF'
Usage: launch_tpu.sh run NAME --zone ZONE --type TYPE [options] -- COMMAND...
       launch_tpu.sh delete NAME --zone ZONE [options]

run     creates the TPU VM NAME or uses the existing one, copies the checkout
        (all that git does not ignore), installs it, and runs COMMAND on every host;
        the hosts' output goes to the terminal and to runs/launch/NAME.log. If the TPU is
        preempted it is recreated and COMMAND runs again, so COMMAND must resume by
        itself: give it a --workdir on a disk that all hosts share (a gs:// path does
        not work; mount the bucket on every host).
delete  deletes it.

  --zone ZONE        such as us-east5-b
  --type TYPE        such as v5litepod-16, v6e-16, v4-32
  --version VERSION  of the TPU software (default: by type)
  --project PROJECT  Google Cloud project (default: that of gcloud)
  --spot             cheaper, may be preempted
  --queued           request a queued resource and wait until it is provisioned
  --retries N        how often a preempted TPU is recreated (default 20)
  --poll SECONDS     polling interval of a queued resource (default 30)
  --delete-after     delete it when COMMAND has succeeded
  --dry-run          print the commands instead of running them

Example:
  ./launch_tpu.sh run so400m --zone us-east5-b --type v6e-16 --spot -- \
    python experiments/finetune.py --config configs/finetune.py:so400m_lora \
    --workdir /mnt/shared/so400m
EOF
}

fail() {
  echo "launch_tpu.sh: $*" >&2
  exit 2
}

version_of() {
  case "$1" in
    v2-* | v3-*) echo tpu-ubuntu2204-base ;;
    v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) fail "no software version is known for --type $1: name one with --version" ;;
  esac
}

# Runs a command, or prints it.
act() {
  if [[ $dry_run == yes ]]; then
    printf '+'
    printf ' %q' "$@"
    printf '\n'
  else
    "$@"
  fi
}

tpu() {
  act gcloud compute tpus tpu-vm "$@" "${place[@]}"
}

queue() {
  act gcloud compute tpus queued-resources "$@" "${place[@]}"
}

# READY, CREATING, PREEMPTED, ...; nothing if there is none.
state() {
  [[ $dry_run == yes ]] && return 0
  gcloud compute tpus tpu-vm describe "$name" "${place[@]}" \
    --format='value(state)' 2>/dev/null || true
}

queued_state() {
  gcloud compute tpus queued-resources describe "$name" "${place[@]}" \
    --format='value(state.state)' 2>/dev/null || true
}

remove() {
  if [[ $queued == yes ]]; then
    queue delete "$name" --force --quiet
  else
    tpu delete "$name" --quiet
  fi
}

wait_for_queue() {
  [[ $dry_run == yes ]] && return 0
  local now
  while true; do
    now=$(queued_state)
    case "$now" in
      ACTIVE) return 0 ;;
      FAILED | SUSPENDED | SUSPENDING) fail "the queued resource $name is $now" ;;
      *)
        echo "queued resource $name: ${now:-unknown}; waiting"
        sleep "$poll"
        ;;
    esac
  done
}

create() {
  local options=(--accelerator-type "$type")
  [[ $spot == yes ]] && options+=(--spot)
  if [[ $queued == yes ]]; then
    queue create "$name" --node-id "$name" --runtime-version "$version" "${options[@]}"
    wait_for_queue
  else
    tpu create "$name" --version "$version" "${options[@]}"
  fi
}

ensure() {
  local now
  now=$(state)
  case "$now" in
    READY)
      echo "TPU $name is there"
      return
      ;;
    '') ;;
    CREATING | STARTING | RESTARTING | REPAIRING)
      fail "TPU $name is $now; try again when it is READY"
      ;;
    *)
      echo "TPU $name is $now: recreating it"
      remove
      ;;
  esac
  create
}

on_hosts() {
  tpu ssh "$name" --worker=all --command "$1"
}

install_on_hosts() {
  local archive=/tmp/meta_opt_$name.tar.gz
  if [[ $dry_run == yes ]]; then
    echo "+ tar of what git does not ignore > $archive"
  else
    git -C "$root" ls-files -z --cached --others --exclude-standard --deduplicate |
      (cd "$root" && xargs -0 ls -d 2>/dev/null | tar -czf "$archive" -T -)
  fi
  tpu scp "$archive" "$name:$archive" --worker=all &&
    on_hosts "mkdir -p meta_opt && tar -xzf $archive -C meta_opt && cd meta_opt && \
python3 -m venv .venv && .venv/bin/pip install --quiet '.[train,data,tpu]'"
}

run() {
  local attempt=0 now status
  mkdir -p "$root/runs/launch"
  while true; do
    ensure
    status=0
    # pipefail: the status is the command's, or that of what failed before it.
    { install_on_hosts &&
      on_hosts "cd meta_opt && . .venv/bin/activate && $command"; } 2>&1 |
      tee -a "$root/runs/launch/$name.log" || status=$?
    if [[ $status == 0 ]]; then
      [[ $delete_after == yes ]] && remove
      return 0
    fi
    now=$(state)
    if [[ $now == READY ]]; then
      echo "launch_tpu.sh: the command failed on $name (status $status)" >&2
      return "$status"
    fi
    attempt=$((attempt + 1))
    if ((attempt > retries)); then
      echo "launch_tpu.sh: $name was lost $attempt times; gave up" >&2
      return "$status"
    fi
    echo "TPU $name is ${now:-gone} (loss $attempt of at most $retries); recreating it"
  done
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
  run | delete) what=$1 ;;
  *) fail "unknown command '$1'; available: run, delete (--help)" ;;
esac
shift
name=${1:-}
[[ $name =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] ||
  fail "'$name' is not a valid name for a TPU: lower-case letters, digits and dashes"
shift

zone='' type='' version='' project='' command='' retries=20 poll=30
spot=no queued=no delete_after=no dry_run=no
while [[ $# -gt 0 ]]; do
  case "$1" in
    --zone | --type | --version | --project | --retries | --poll)
      [[ $# -gt 1 ]] || fail "$1 needs a value"
      declare "${1#--}=$2"
      shift 2
      ;;
    --spot) spot=yes && shift ;;
    --queued) queued=yes && shift ;;
    --delete-after) delete_after=yes && shift ;;
    --dry-run) dry_run=yes && shift ;;
    --)
      shift
      command=$(printf '%q ' "$@")
      break
      ;;
    *) fail "no option '$1' (--help)" ;;
  esac
done
[[ -n $zone ]] || fail "--zone is missing"
[[ $retries =~ ^[0-9]+$ ]] || fail "--retries $retries must be an integer"
place=(--zone "$zone")
[[ -n $project ]] && place+=(--project "$project")
if [[ $dry_run == no ]] && ! command -v gcloud >/dev/null; then
  fail "gcloud is not installed: https://cloud.google.com/sdk/docs/install"
fi

if [[ $what == delete ]]; then
  remove
  exit 0
fi
[[ -n $type ]] || fail "--type is missing"
[[ -n ${command// /} ]] || fail "no command: write it after --"
version=${version:-$(version_of "$type")}
run
