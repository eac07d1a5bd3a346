#!/usr/bin/env bash
# Runs a verb of promot-t5x on this machine, on its CPU, GPUs or TPU, as one process or as several that train together.
#
# usage: launch/local.sh [OPTIONS] -- VERB ARGS...
#
#   --platform cpu|gpu|tpu   the platform (default: cpu)
#   --devices N              split the CPU into N devices per process, to try meshes without accelerators
#   --processes N            start N processes that connect at 127.0.0.1; each gets its share of the GPUs
#                            (of those in CUDA_VISIBLE_DEVICES, or else of all)
#   --port P                 the port at which they connect (default: a free one)
#   --log_dir DIR            the first process writes to the terminal, process I to DIR/process_I.log
#                            (default: out/launch)
#   --dry-run                print the commands and run nothing
#
# PYTHON is the interpreter, python3 by default; the package is that of this checkout. SIGINT, SIGTERM and SIGHUP are
# passed on to all processes. When one fails, the others are ended and the script exits with its exit code.
#
#   launch/local.sh --devices 8 -- train --gin_file=... --gin.NUM_PARTITIONS=2
#   launch/local.sh --processes 2 --devices 4 -- train --gin_file=...
#   launch/local.sh --platform gpu --processes 4 -- pipeline --gin_file=...
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
source "$ROOT/launch/common.sh"

PLATFORM=cpu
DEVICES=''
PROCESSES=1
PORT=''
LOG_DIR=out/launch
DRY_RUN=''
VERB=()
GPUS=()
declare -A RUNNING=() # process id -> index
CAUGHT=''             # the signal that was last passed on

parse() {
  while (($#)); do
    case $1 in
      --) shift; break ;;
      --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
      --platform) PLATFORM=$(value "$@"); shift 2 ;;
      --devices) DEVICES=$(value "$@"); shift 2 ;;
      --processes) PROCESSES=$(value "$@"); shift 2 ;;
      --port) PORT=$(value "$@"); shift 2 ;;
      --log_dir) LOG_DIR=$(value "$@"); shift 2 ;;
      --dry-run | --dry_run) DRY_RUN=1; shift ;;
      --help | -h) usage; exit ;;
      *) die "unexpected argument '$1': promot-t5x's verb and flags come after --; --help lists the options" ;;
    esac
  done
  VERB=("$@")
  check
}

check() {
  ((${#VERB[@]})) || die "no verb of promot-t5x: write it after --, for example launch/local.sh -- doctor"
  positive --processes "$PROCESSES"
  [[ -z $DEVICES ]] || positive --devices "$DEVICES"
  [[ -z $PORT ]] || positive --port "$PORT"
  case $PLATFORM in
    cpu) ;;
    gpu) [[ -z $DEVICES ]] || die "--devices divides a CPU: choose GPUs with CUDA_VISIBLE_DEVICES" ;;
    tpu)
      [[ -z $DEVICES ]] || die "--devices divides a CPU: on a TPU a process has all chips of its machine"
      ((PROCESSES == 1)) || die "--processes=$PROCESSES: on a TPU one process drives all chips of its machine"
      ;;
    *) die "--platform=$PLATFORM is neither cpu nor gpu nor tpu" ;;
  esac
}

# find_gpus: sets GPUS; refuses a number of GPUs that does not divide evenly among the processes.
find_gpus() {
  if [[ -n ${CUDA_VISIBLE_DEVICES-} ]]; then
    IFS=, read -ra GPUS <<<"$CUDA_VISIBLE_DEVICES"
  else
    command -v nvidia-smi >/dev/null || die "nvidia-smi was not found: name the GPUs in CUDA_VISIBLE_DEVICES"
    mapfile -t GPUS < <(nvidia-smi --query-gpu=index --format=csv,noheader)
  fi
  ((${#GPUS[@]} && ${#GPUS[@]} % PROCESSES == 0)) ||
    die "${#GPUS[@]} GPUs (${GPUS[*]}) do not divide among --processes=$PROCESSES"
}

# free_port: prints a free port below the range that the kernel uses for outgoing connections.
free_port() {
  local port
  while true; do
    port=$((20000 + RANDOM % 10000))
    (: <>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
  done
  printf '%s' "$port"
}

# compose INDEX: sets COMMAND to the command of process INDEX.
compose() {
  local index=$1 share=$((${#GPUS[@]} / PROCESSES)) gpus
  COMMAND=(env "PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH}" "JAX_PLATFORMS=${PLATFORM/gpu/cuda}")
  if [[ -n $DEVICES ]]; then
    COMMAND+=("XLA_FLAGS=${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$DEVICES")
  fi
  if ((share)); then
    gpus=$(IFS=, && printf '%s' "${GPUS[*]:index * share:share}")
    COMMAND+=("CUDA_VISIBLE_DEVICES=$gpus")
  fi
  COMMAND+=("${PYTHON:-python3}" -m promot_t5x.cli "${VERB[@]}")
  if ((PROCESSES > 1)); then
    COMMAND+=("--coordinator_address=127.0.0.1:$PORT" "--process_count=$PROCESSES" "--process_index=$index")
  fi
}

log_of() {
  printf '%s/process_%s.log' "$LOG_DIR" "$1"
}

# show INDEX: prints the command of process INDEX.
show() {
  compose "$1"
  quoted "${COMMAND[@]}"
  if (($1)); then printf ' >%s 2>&1' "$(quoted "$(log_of "$1")")"; fi
  printf '\n'
}

# start INDEX: starts process INDEX in the background.
start() {
  compose "$1"
  if (($1)); then
    "${COMMAND[@]}" </dev/null >"$(log_of "$1")" 2>&1 &
  else
    "${COMMAND[@]}" </dev/null &
  fi
  RUNNING[$!]=$1
}

# pass_on SIGNAL: sends it to every process and its children.
pass_on() {
  local pid
  for pid in "${!RUNNING[@]}"; do
    kill -s "$1" -- "-$pid" 2>/dev/null || true
  done
}

# finish SECONDS: waits that long for the processes to end, then kills the rest.
finish() {
  local pid end=$((SECONDS + $1))
  while ((${#RUNNING[@]})); do
    ((SECONDS < end)) || pass_on KILL
    for pid in "${!RUNNING[@]}"; do
      kill -0 "$pid" || unset "RUNNING[$pid]"
    done
    sleep 0.1
  done 2>/dev/null # bash would report every process that a signal ended
}

# fail INDEX CODE: ends the other processes and the script, because this one failed.
fail() {
  local index=$1 code=$2 where="what it printed is above"
  ((index == 0)) || where="its log is $(log_of "$index")"
  printf 'error: process %s of %s failed with exit code %s; %s\n' "$index" "$PROCESSES" "$code" "$where" >&2
  pass_on TERM
  finish 10
  exit "$code"
}

# supervise: returns when all processes have succeeded; polls them, as `wait -n` can miss one that ended before it.
supervise() {
  local pid index code
  while ((${#RUNNING[@]})); do
    for pid in "${!RUNNING[@]}"; do
      [[ -z $CAUGHT ]] || interrupted
      kill -0 "$pid" 2>/dev/null && continue
      index=${RUNNING[$pid]} code=0
      wait "$pid" 2>/dev/null || code=$?
      unset "RUNNING[$pid]"
      ((code == 0)) || fail "$index" "$code"
    done
    sleep 0.1
  done
}

# caught SIGNAL: passes it on to the processes; so is a second signal.
caught() {
  CAUGHT=$1
  pass_on "$1"
}

# interrupted: gives the processes 30 seconds to finish writing, and exits as a shell does after a signal.
interrupted() {
  finish 30
  exit $((128 + $(kill -l "$CAUGHT")))
}

main() {
  local index signal
  parse "$@"
  if [[ $PLATFORM == gpu ]] && ((PROCESSES > 1)); then find_gpus; fi
  if ((PROCESSES > 1)); then PORT=${PORT:-$(free_port)}; fi
  if [[ -n $DRY_RUN ]]; then
    for ((index = 0; index < PROCESSES; index++)); do
      show "$index"
    done
    return
  fi
  command -v "${PYTHON:-python3}" >/dev/null || die "PYTHON=${PYTHON:-python3} was not found"
  if ((PROCESSES == 1)); then
    compose 0
    exec "${COMMAND[@]}"
  fi
  mkdir -p "$LOG_DIR"
  # Job control gives every process its own group; without it, background processes of bash ignore SIGINT.
  set -m
  for signal in INT TERM HUP; do
    # shellcheck disable=SC2064  # expand the signal now
    trap "caught $signal" "$signal"
  done
  for ((index = 0; index < PROCESSES; index++)); do
    [[ -n $CAUGHT ]] || start "$index"
  done
  supervise
}

main "$@"
