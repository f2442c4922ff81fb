# Sourced by the scripts beside it: the container engine that DOCKER names (default: docker).
# shellcheck shell=bash disable=SC2034

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd) # used by what sources this
DOCKER=${DOCKER:-docker}
[[ $DOCKER == */* ]] && DOCKER=$(realpath -- "$DOCKER")

NO_ENGINE=77 # exit status of a script that could not try

need_engine() {
  if ! command -v "$DOCKER" >/dev/null || ! "$DOCKER" info >/dev/null 2>&1; then
    echo "skipped: no container engine ($DOCKER does not answer); set DOCKER to one that does" >&2
    exit "$NO_ENGINE"
  fi
}
