#!/usr/bin/env bash
# The worker's part of launch/tpu_vm.sh, which calls it over ssh on every worker:
#
#   tpu_worker.sh setup VERSION       install the checkout that contains this file
#   tpu_worker.sh start [--env] VERB ARGS...
#                                     start promot-t5x detached from the connection; --env reads the file env
#   tpu_worker.sh status              print one line, "HOST: STATE at VERSION"
#   tpu_worker.sh log                 print the end of the log and follow it until the run ends
#   tpu_worker.sh stop                end the run
#
# ~/promot_t5x has the checkout in source, and next to it venv, version (the installed one), run.log, run.pid, run.exit
# and, until a run is started, env.
set -euo pipefail

SOURCE=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
source "$SOURCE/launch/common.sh"
cd "$SOURCE/.."

say() {
  printf '%s: %s\n' "$(hostname)" "$*"
}

# make_venv: with an installed Python, or else with uv, which downloads one: Ubuntu 22.04 has Python 3.10.
make_venv() {
  local python
  rm -rf venv
  for python in python3.12 python3.11 python3.13; do
    if "$python" -c 'import ensurepip' 2>/dev/null; then
      "$python" -m venv venv
      return
    fi
  done
  curl -LsSf https://astral.sh/uv/install.sh | env UV_UNMANAGED_INSTALL="$PWD/uv" sh
  uv/uv venv --python 3.12 --seed venv
}

setup() {
  venv/bin/python -m pip --version >/dev/null 2>&1 || make_venv
  venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint source/constraints.txt \
    --editable './source[tpu]'
  printf '%s\n' "$1" >version
  say "set up at $1"
}

# running: whether the process of run.pid is a run; after a reboot another process may have its number.
running() {
  [[ -e run.pid ]] && grep -qs tpu_worker.sh "/proc/$(<run.pid)/cmdline"
}

# load_env FILE: exports its lines NAME=VALUE, taken literally.
load_env() {
  local line
  while IFS= read -r line || [[ -n $line ]]; do
    [[ -z $line || $line == \#* ]] || export "${line?}"
  done <"$1"
}

start() {
  # A worker that cannot reach its TPU must fail rather than train on its CPU.
  export JAX_PLATFORMS=tpu,cpu PYTHONUNBUFFERED=1
  if [[ $1 == --env ]]; then
    load_env env
    shift
  fi
  rm -f env # secrets are not kept for another run
  ! running || die "$(hostname) has a run, process $(<run.pid)"
  rm -f run.exit
  [[ ! -e run.log ]] || mv run.log run.previous.log
  setsid nohup bash "$SOURCE/launch/tpu_worker.sh" attend "$@" </dev/null >run.log 2>&1 &
  printf '%s\n' $! >run.pid
  say "started, process $!"
}

# attend VERB ARGS...: the run itself, in its own session.
attend() {
  local code=0
  (cd source && exec ../venv/bin/promot-t5x "$@") || code=$?
  printf '%s\n' "$code" >run.exit
}

status() {
  local state=idle
  if running; then
    state="running, process $(<run.pid),"
  elif [[ -e run.exit ]]; then
    state="ended with exit code $(<run.exit)"
  elif [[ -e run.pid ]]; then
    state="stopped or killed"
  fi
  say "$state at $(<version)"
}

log() {
  [[ -e run.log ]] || die "$(hostname) has no log: nothing was run yet"
  if running; then
    tail -n 100 --pid="$(<run.pid)" -F run.log
  else
    tail -n 100 run.log
  fi
  status
}

# alive SESSION: whether a process of the session is running; zombies do not count.
alive() {
  # shellcheck disable=SC2009  # pgrep does not distinguish them
  ps -o stat= --sid "$1" | grep -qv '^Z'
}

stop() {
  local pid waited
  if ! running; then
    say "nothing to stop"
    return
  fi
  pid=$(<run.pid)
  kill -TERM -- "-$pid"
  for ((waited = 0; waited < 300; waited++)); do
    alive "$pid" || break
    sleep 0.1
  done
  if alive "$pid"; then
    kill -KILL -- "-$pid"
    say "killed, as it did not end within 30 seconds"
  else
    say "stopped"
  fi
}

case ${1-} in
  setup | start | attend | status | log | stop) "$@" ;;
  *) die "tpu_worker.sh has no sub-command '${1-}'" ;;
esac
