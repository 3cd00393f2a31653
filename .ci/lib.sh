# What the checks have in common. They run from the root of the repository, print
# each command that they run, and say in a line "not run: …" what they could not.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export NO_COLOR=1
export IMAGE=${IMAGE:-localhost/appup:ci}

tools=../shared/tools # not part of appup: what stands in where no download is possible
version=$(sed -nE 's/^  "version": "(.*)",/\1/p' deno.json)
shipped=$(sed -n 's/^ARG DENO_VERSION=//p' Dockerfile)
descriptors=$(sed -nE 's/^ENTRYPOINT .*ulimit -n ([0-9]+).*/\1/p' Dockerfile)
seeded=2.7.11 # the version that they can compile with

scratch=$(mktemp -d)
at_exit=("rm -rf $scratch") # commands, of which each may fail
clean_up() {
  local last
  for last in "${at_exit[@]}"; do $last >/dev/null 2>&1 || true; done
}
trap clean_up EXIT

step() { printf '\n=== %s\n' "$*"; }
not_run() { printf 'not run: %s\n' "$*"; }
run() {
  printf '$ %s\n' "$*" >&2
  "$@"
}
fail() {
  printf 'FAILED: %s\n' "$*" >&2
  exit 1
}
expect() { # expect OUTPUT COMMAND...
  local expected=$1 actual
  shift
  actual=$(run "$@") || true
  printf '%s\n' "$actual"
  [[ $actual == "$expected" ]] || fail "expected: $expected"
}
sees() { # sees PATTERN COMMAND...: within a minute, its output has that in it
  local wanted=$1 deadline=$((SECONDS + 60)) seen
  shift
  printf '$ %s\n' "$*"
  until
    seen=$("$@" 2>&1) || true
    [[ $seen == *$wanted* ]]
  do
    ((SECONDS < deadline)) || fail "expected: $wanted"$'\n'"but seen: $seen"
    sleep 0.5
  done
  printf '%s\n' "$seen"
}
deno() { # deno VERSION ARGUMENT...
  run npx -y "deno@$1" "${@:2}"
}

find_podman() { # sets podman; where there is none, the check ends
  if [[ $(id -u) != 0 ]]; then
    not_run "${0##*/}: only root may bound a container's memory"
    exit
  elif [[ -x $tools/podman && (${CI:-} == true || -n $(command -v podman)) ]]; then
    podman=$tools/podman
    run "$tools/container-bases"
  elif command -v podman >/dev/null; then
    podman=podman
  else
    not_run "${0##*/}: there is no podman"
    exit
  fi
}

url_of() { # url_of PID: where this process serves
  sees "pid=$1," ss -Hltnp >&2
  ss -Hltnp | sed -nE "s|.*:([0-9]+) .*pid=$1,.*|http://localhost:\1|p"
}
