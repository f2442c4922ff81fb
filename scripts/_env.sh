# Sourced by the scripts beside it: keeps .venv in step with requirements/ and pyproject.toml.
# What is installed is remembered by the hash of its locks, so that later starts only compare two small files.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
PYTHON=$venv/bin/python
export ORT_DISABLE_TELEMETRY=1 HF_HUB_OFFLINE=1 # as trimodal does, for what imports their libraries before it

_say() { echo "set-up: $*" >&2; }

_find_python() {
  local candidate
  for candidate in python3.11 python3 python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
      if ! "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
        _say "$candidate cannot make virtual environments; on Debian: apt-get install python3-venv"
        return 1
      fi
      command -v "$candidate"
      return 0
    fi
  done
  _say "Python 3.11 is needed, and neither python3.11 nor python3 is that version"
  return 1
}

_pip() { "$PYTHON" -m pip --disable-pip-version-check -qq "$@"; }

# The locks name every package, so pip has nothing left to resolve (--no-deps), and the two that are published as source
# are built with the pinned setuptools (--no-build-isolation).
_install_lock() {
  local lock
  for lock in "$@"; do
    _pip install --no-deps --no-build-isolation --require-hashes -r "$root/requirements/$lock.txt"
  done
}

_install_serve() {
  local python
  python=$(_find_python)
  _say "making .venv (about a minute, once)"
  "$python" -m venv --clear "$venv"
  _install_lock build serve
}

_install_dev() {
  _say "adding torch and the development tools (about two minutes, once)"
  _install_lock full
  _pip install -r "$root/requirements/torch.txt"
  _install_lock dev
}

_install_fuzz() {
  _say "adding the fuzzers (half a minute, once)"
  _install_lock fuzz
}

_install_project() { _pip install --no-deps --no-build-isolation -e "$root"; }

_hash() { (cd "$root" && echo "$root" && cat "$@") | sha256sum | cut -d' ' -f1; }

# _step NAME FILE…: runs _install_NAME unless it has succeeded with these very files
_step() {
  local name=$1 want
  shift
  want=$(_hash "$@")
  [[ $(cat "$venv/.done-$name" 2>/dev/null) == "$want" ]] && return
  "_install_$name"
  echo "$want" >"$venv/.done-$name"
}

_set_up() {
  _step serve requirements/{build,serve}.txt
  [[ $1 == dev ]] && _step dev requirements/{build,serve,full,torch,dev}.txt
  [[ $1 == fuzz ]] && _step fuzz requirements/{build,serve,fuzz}.txt
  _step project pyproject.toml
}

# set_up serve|dev|fuzz. Two at once wait for each other. In a subshell, so that what is started later inherits no lock;
# not under `if` or `||`, where bash would ignore a failed step.
set_up() {
  (
    set -euo pipefail
    exec 9>"$root/.venv.lock"
    if command -v flock >/dev/null; then flock 9; fi
    _set_up "$1"
  )
}
