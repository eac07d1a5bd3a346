# shellcheck shell=bash
# Functions shared by the launch scripts: errors, help, flags, and commands as text. Sourced, never run.

# ${word@Q} is the newest feature used here; macOS still ships bash 3.2.
if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  printf 'error: this is bash %s, expected 4.4 or newer: install one and put it first on PATH\n' "$BASH_VERSION" >&2
  exit 1
fi

die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# usage: prints the comment at the top of the running script.
usage() {
  sed -n -e '1d' -e '/^#/!q' -e 's/^# \{0,1\}//p' "$0"
}

# value FLAG VALUE...: prints the value of the flag that comes first in the arguments.
value() {
  [[ -n ${2-} ]] || die "$1 has no value: write $1=VALUE"
  printf '%s' "$2"
}

# positive FLAG VALUE: refuses anything but a whole number of at least 1.
positive() {
  [[ $2 =~ ^[1-9][0-9]*$ ]] || die "$1=$2 is not a whole number of at least 1"
}

# quoted WORD...: prints the words as one line that a shell splits into the same words again.
quoted() {
  local word line=''
  for word; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word=${word@Q}
    line+=" $word"
  done
  printf '%s' "${line# }"
}
