# Sourced by the scripts beside it: the parts of an image's name in ECR, and logging in there.
# shellcheck shell=bash disable=SC2034

# ecr_image REGISTRY/NAME:TAG sets image, registry, repository and tag
ecr_image() {
  image=$1 registry=${1%%/*}
  local rest=${1#*/}
  repository=${rest%:*} tag=${rest##*:}
  if [[ $registry != *.dkr.ecr.*.amazonaws.com* || $rest != ?*:?* ]]; then
    echo "$1 must be ACCOUNT.dkr.ecr.REGION.amazonaws.com/NAME:TAG" >&2
    exit 2
  fi
}

ecr_login() { aws ecr get-login-password | "$DOCKER" login --username AWS --password-stdin "$registry"; }
