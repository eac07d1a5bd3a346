#!/usr/bin/env bash
# Runs a verb of promot-t5x on a Cloud TPU slice: requests the slice as a queued resource, installs this checkout on its
# workers, starts the verb on all of them, and deletes the slice. Needs gcloud, signed in.
#
# usage: launch/tpu_vm.sh SUB-COMMAND [OPTIONS] [-- VERB ARGS...]
#
#   up      request the slice and wait until it is active
#   setup   copy the checkout's HEAD to every worker and install it there
#   run     start `promot-t5x VERB ARGS... --multiprocess` on every worker; it keeps running without this machine
#   logs    follow the log of a worker until its run ends
#   status  print the state of the queued resource and of every worker
#   stop    end the run on every worker
#   down    delete the queued resource and its slice, with the workers' disks
#
# Every sub-command can be repeated; steps that are already done are skipped.
#
#   --name NAME          the queued resource and its slice; several slices are called NAME-0, NAME-1, ...
#   --zone ZONE          the zone, for example us-central2-b
#   --project PROJECT    the project (default: gcloud's)
#   --type TYPE          up: v4-128, v5p-128, v5litepod-32, v6e-32, ...; for v4 also a topology, v4:4x4x4
#   --version VERSION    up: the runtime version (default: the one for JAX on this type)
#   --slices N           N slices that train together (multislice; default: 1)
#   --spot, --reserved   up: spot or reserved capacity instead of on-demand
#   --env_file FILE      run: lines NAME=VALUE for the run's environment, such as keys; they are on no command line
#   --worker N           logs: the worker of the slice (default: 0)
#   --slice N            logs: the slice (default: 0)
#   --dry-run            print the commands and run nothing
#
# PROMOT_TPU_NAME, _ZONE, _PROJECT, _TYPE, _VERSION and _SLICES set the defaults of these flags. gcloud reaches several
# workers at once only if its key is in the agent: ssh-add ~/.ssh/google_compute_engine
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
source "$ROOT/launch/common.sh"

NAME=${PROMOT_TPU_NAME-}
ZONE=${PROMOT_TPU_ZONE-}
PROJECT=${PROMOT_TPU_PROJECT-}
TYPE=${PROMOT_TPU_TYPE-}
VERSION=${PROMOT_TPU_VERSION-}
SLICES=${PROMOT_TPU_SLICES:-1}
CAPACITY='' ENV_FILE='' WORKER=0 SLICE=0 DRY_RUN='' SUB_COMMAND='' VERB=()
exec 3>&1 # where a dry run prints, also from inside $( )

parse() {
  while (($#)); do
    case $1 in
      --) shift; break ;;
      --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
      --name) NAME=$(value "$@"); shift 2 ;;
      --zone) ZONE=$(value "$@"); shift 2 ;;
      --project) PROJECT=$(value "$@"); shift 2 ;;
      --type) TYPE=$(value "$@"); shift 2 ;;
      --version) VERSION=$(value "$@"); shift 2 ;;
      --slices) SLICES=$(value "$@"); shift 2 ;;
      --env_file) ENV_FILE=$(value "$@"); shift 2 ;;
      --worker) WORKER=$(value "$@"); shift 2 ;;
      --slice) SLICE=$(value "$@"); shift 2 ;;
      --spot | --reserved)
        [[ -z $CAPACITY || $CAPACITY == "$1" ]] || die "--spot and --reserved exclude each other"
        CAPACITY=$1
        shift
        ;;
      --dry-run | --dry_run) DRY_RUN=1; shift ;;
      --help | -h) usage; exit ;;
      -*) die "unknown flag $1; --help lists the flags" ;;
      *)
        [[ -z $SUB_COMMAND ]] || die "unexpected argument '$1': promot-t5x's verb and flags come after --"
        SUB_COMMAND=$1
        shift
        ;;
    esac
  done
  VERB=("$@")
  check
}

check() {
  local slice
  case $SUB_COMMAND in
    up | setup | run | logs | status | stop | down) ;;
    '') die "no sub-command: up, setup, run, logs, status, stop or down; --help says what they do" ;;
    *) die "no sub-command '$SUB_COMMAND': there are up, setup, run, logs, status, stop and down" ;;
  esac
  [[ -n $NAME ]] || die "the slice has no name: give --name=NAME or set PROMOT_TPU_NAME"
  [[ -n $ZONE ]] || die "no zone: give --zone=ZONE or set PROMOT_TPU_ZONE, for example us-central2-b"
  positive --slices "$SLICES"
  [[ $WORKER =~ ^[0-9]+$ ]] || die "--worker=$WORKER is not a worker's number"
  if [[ ! $SLICE =~ ^[0-9]+$ ]] || ((SLICE >= SLICES)); then
    die "--slice=$SLICE is not a slice's number: with --slices=$SLICES they are 0 to $((SLICES - 1))"
  fi
  [[ -n $DRY_RUN ]] || command -v gcloud >/dev/null ||
    die "gcloud was not found: install the Google Cloud CLI and sign in with 'gcloud auth login'"
  WHERE=("--zone=$ZONE" ${PROJECT:+"--project=$PROJECT"})
  NODES=("$NAME") # of the slices
  for ((slice = 0; slice < SLICES && SLICES > 1; slice++)); do NODES[slice]=$NAME-$slice; done
}

# --- what the slice is ---------------------------------------------------------------------------------------------

# describe_type: from TYPE sets ACCELERATOR (gcloud's flags), SIZE (a description) and VERSION, unless it is set.
describe_type() {
  local generation=${TYPE%%[-:]*} size=${TYPE#*[-:]} name cores=1 chips version
  [[ -n $TYPE ]] || die "no type: give --type=TYPE or set PROMOT_TPU_TYPE, for example v4-128 or v5litepod-32"
  name=$generation
  case $generation in # up to v4 and for v5p names count TensorCores, two per chip; for the others, chips
    v2 | v3 | v4) cores=2 version=tpu-ubuntu2204-base ;;
    v5p) cores=2 version=v2-alpha-tpuv5 ;;
    v5e | v5litepod) name=v5litepod version=v2-alpha-tpuv5-lite ;;
    v6e) version=v2-alpha-tpuv6e ;;
    *) die "--type=$TYPE: TPU VMs are v2, v3, v4, v5p, v5litepod or v6e; write for example v4-128" ;;
  esac
  if [[ $TYPE =~ ^[a-z0-9]+:[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]]; then
    chips=$((${size//x/*}))
    name+=-$((chips * cores))
    [[ $generation == v4 ]] || die "--type=$TYPE: gcloud takes topologies of v4 only; $chips chips are --type=$name"
    ACCELERATOR=(--type=v4 "--topology=$size")
  elif [[ $TYPE =~ ^[a-z0-9]+-[1-9][0-9]*$ ]] && ((size % cores == 0)); then
    chips=$((size / cores))
    name+=-$size
    [[ $generation != v5e ]] || die "--type=$TYPE: Google Cloud's name for it is --type=$name"
    ACCELERATOR=("--accelerator-type=$TYPE")
  else
    die "--type=$TYPE has no size: write for example v4-128 (64 chips) or v5litepod-32 (32 chips)"
  fi
  SIZE="$name ($chips chips)"
  ((SLICES == 1)) || SIZE="$SLICES slices of $name ($chips chips each)"
  VERSION=${VERSION:-$version}
}

# --- gcloud --------------------------------------------------------------------------------------------------------

# act COMMAND...: runs the command, or prints it in a dry run.
act() {
  if [[ -n $DRY_RUN ]]; then
    printf '%s\n' "$(quoted "$@")" >&3
  else
    "$@" 3>&-
  fi
}

# look: sets STATE, empty if there is no such queued resource, and MADE, the requested type. It lists the zone's queued
# resources, which fails for a wrong zone, while a description would only report that nothing was found.
look() {
  local format listed name state type topology
  format='csv[no-heading](name.basename(),state.state,tpu.nodeSpec[0].node.acceleratorType.basename()'
  format+=',tpu.nodeSpec[0].node.acceleratorConfig.topology)'
  STATE='' MADE=''
  listed=$(act gcloud compute tpus queued-resources list "${WHERE[@]}" "--format=$format") ||
    die "gcloud could not list the queued resources in $ZONE; what it said is above"
  while IFS=, read -r name state type topology; do
    [[ $name == "$NAME" ]] || continue
    STATE=$state MADE=$type
    [[ $TYPE != *:* ]] || MADE=${topology:+v4:$topology}
  done <<<"$listed"
}

# need_slice: ends the script if there is no active slice.
need_slice() {
  look
  case ${DRY_RUN:+ACTIVE}$STATE in
    ACTIVE) ;;
    '') die "there is no queued resource $NAME in $ZONE: 'up' creates it" ;;
    *) die "queued resource $NAME is $STATE, expected ACTIVE: 'up' waits for it" ;;
  esac
}

# on_workers COMMAND: runs a shell command on every worker, slice by slice, as gcloud may ask for a password.
on_workers() {
  local node
  for node in "${NODES[@]}"; do
    act gcloud compute tpus tpu-vm ssh "$node" "${WHERE[@]}" --worker=all "--command=$1" || return
  done
}

# to_workers FILE DESTINATION: copies a file, with its mode, to every worker.
to_workers() {
  local node
  for node in "${NODES[@]}"; do
    act gcloud compute tpus tpu-vm scp "$1" "$node:$2" "${WHERE[@]}" --worker=all --scp-flag=-p || return
  done
}

# worker ARGS...: prints the shell command that calls launch/tpu_worker.sh on a worker, if it is set up.
worker() {
  printf 'if [ -e promot_t5x/version ]; then bash promot_t5x/source/launch/tpu_worker.sh %s; ' "$(quoted "$@")"
  # shellcheck disable=SC2016  # for the worker's shell
  printf 'else echo "$(hostname): not set up"; fi'
}

# survey: sets SURVEY to the status line of every worker, see launch/tpu_worker.sh.
survey() {
  SURVEY=$(on_workers "$(worker status)") || die "not every worker of $NAME was reached; what gcloud said is above"
}

# make_tmp: sets TMP to a private folder that is deleted when the script ends.
make_tmp() {
  TMP=${TMPDIR:-/tmp}/promot_t5x
  [[ -z $DRY_RUN ]] || return 0
  TMP=$(mktemp -d "$TMP.XXXXXX")
  trap 'rm -rf "$TMP"' EXIT
}

# --- the sub-commands ----------------------------------------------------------------------------------------------

up() {
  local nodes seen=''
  describe_type
  look
  if [[ -z $STATE ]]; then
    printf '%sAsking for %s as %s in %s.\n' "${DRY_RUN:+# }" "$SIZE" "$NAME" "$ZONE"
    nodes=("--node-id=$NAME")
    ((SLICES == 1)) || nodes=("--node-count=$SLICES" "--node-prefix=$NAME")
    act gcloud compute tpus queued-resources create "$NAME" "${WHERE[@]}" "${ACCELERATOR[@]}" "${nodes[@]}" \
      "--runtime-version=$VERSION" ${CAPACITY:+"$CAPACITY"} || die "gcloud could not ask for it; what it said is above"
    look
  elif [[ -n $MADE && $MADE != "$TYPE" ]]; then
    die "queued resource $NAME is of --type=$MADE, not $TYPE: take 'down' first, or another --name"
  fi
  [[ -z $DRY_RUN ]] || return 0
  while [[ $STATE != ACTIVE ]]; do
    [[ $STATE == "$seen" ]] || echo "$NAME is $STATE."
    seen=$STATE
    case $STATE in
      FAILED | SUSPENDED) die "queued resource $NAME is $STATE and stays so: 'down', then 'up' again" ;;
      DELETING | SUSPENDING | '') die "queued resource $NAME is being deleted: 'up' again when 'status' finds none" ;;
    esac
    sleep 30
    look
  done
  echo "$NAME is ACTIVE: $SIZE."
}

setup() {
  local version unpack
  version=$(git -C "$ROOT" rev-parse HEAD 2>/dev/null) || die "$ROOT is not a git checkout, of which setup copies HEAD"
  [[ -z $(git -C "$ROOT" status --porcelain) ]] || echo "note: what is not committed is not copied" >&2
  need_slice
  survey
  [[ $SURVEY != *": running"* ]] || die "a run is going on $NAME: 'stop' it before its program is replaced"
  if [[ -n $DRY_RUN ]] || grep -qv " at $version\$" <<<"$SURVEY"; then
    make_tmp
    act git -C "$ROOT" archive --format=tar.gz "--output=$TMP/source.tar.gz" HEAD
    to_workers "$TMP/source.tar.gz" promot_t5x.tar.gz || die "not every worker got the checkout: repeat 'setup'"
    unpack="rm -rf promot_t5x/version promot_t5x/source && mkdir -p promot_t5x/source && chmod 700 promot_t5x"
    unpack+=" && tar -xzf promot_t5x.tar.gz -C promot_t5x/source && rm promot_t5x.tar.gz"
    on_workers "$unpack && bash promot_t5x/source/launch/tpu_worker.sh setup $version" ||
      die "not every worker is set up; what they said is above, and 'setup' can be repeated"
  fi
  [[ -n $DRY_RUN ]] || echo "Every worker is set up at $version."
}

# check_env_file: its errors quote no content, which may be secret.
check_env_file() {
  local line number=0
  [[ -f $ENV_FILE && -r $ENV_FILE ]] || die "--env_file=$ENV_FILE is not a file that can be read"
  while IFS= read -r line || [[ -n $line ]]; do
    number=$((number + 1))
    [[ $line =~ ^($|#|[A-Za-z_][A-Za-z0-9_]*=) ]] || die "line $number of --env_file=$ENV_FILE is not NAME=VALUE"
  done <"$ENV_FILE"
}

run() {
  ((${#VERB[@]})) || die "no verb of promot-t5x: write it after --, for example 'run -- train --gin_file=...'"
  [[ -z $ENV_FILE ]] || check_env_file
  need_slice
  survey
  if [[ -z $DRY_RUN ]]; then
    [[ $SURVEY != *": running"* ]] || die "a run is going on $NAME: follow it with 'logs' or end it with 'stop'"
    [[ $SURVEY != *": not set up"* && $(grep -o ' at [0-9a-f]*$' <<<"$SURVEY" | sort -u | wc -l) -eq 1 ]] ||
      die "the workers of $NAME are not all set up at one version: 'setup' first"
  fi
  if [[ -n $ENV_FILE ]]; then
    make_tmp
    act install -m 600 "$ENV_FILE" "$TMP/env"
    to_workers "$TMP/env" promot_t5x/env || die "not every worker got --env_file; what gcloud said is above"
  fi
  on_workers "$(worker start ${ENV_FILE:+--env} "${VERB[@]}" --multiprocess)" ||
    die "not every worker started; what they said is above: 'stop', then 'run' again"
  [[ -n $DRY_RUN ]] || echo "Started on every worker of $NAME; follow it with 'logs'."
}

logs() {
  need_slice
  act gcloud compute tpus tpu-vm ssh "${NODES[SLICE]}" "${WHERE[@]}" "--worker=$WORKER" "--command=$(worker log)"
}

status() {
  look
  [[ -n $DRY_RUN ]] || echo "$NAME in $ZONE: ${STATE:-there is no such queued resource}${MADE:+, $MADE}"
  [[ -z $DRY_RUN && $STATE != ACTIVE ]] || on_workers "$(worker status)"
}

stop() {
  look
  if [[ -n $DRY_RUN || $STATE == ACTIVE ]]; then
    on_workers "$(worker stop)" || die "not every worker was reached or stopped; what was said is above"
  else
    echo "Nothing runs: $NAME in $ZONE is ${STATE:-not there}."
  fi
}

down() {
  look
  case ${DRY_RUN:+ACTIVE}$STATE in
    '') echo "There is no queued resource $NAME in $ZONE." ;;
    DELETING) echo "$NAME is being deleted already." ;;
    *) act gcloud compute tpus queued-resources delete "$NAME" "${WHERE[@]}" --force --quiet ;;
  esac
}

parse "$@"
"$SUB_COMMAND"
