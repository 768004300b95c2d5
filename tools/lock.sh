#!/bin/sh
# Writes both lock files anew from pyproject.toml, with the newest versions it allows:
#   requirements-run.lock   what the program needs (make demo)
#   requirements.lock       that, and the tools of test, lint and bench
# Both pin by hash every file of a version, so that a lock made here serves other architectures too.
set -eu
cd "$(dirname "$0")/.."

tools=build/lock
[ -x "$tools/bin/pip-compile" ] || {
  echo "lock: installing pip-tools into $tools"
  python3 -m venv "$tools"
  "$tools/bin/pip" install --quiet pip-tools
}

compile() { # output file, arguments
  output=$1
  shift
  "$tools/bin/pip-compile" --quiet --upgrade --generate-hashes --allow-unsafe --all-build-deps --strip-extras \
    --no-header --no-emit-index-url --no-emit-find-links --no-emit-options --no-emit-trusted-host \
    --output-file "$tools/$output" "$@" pyproject.toml
  { printf '# Made by tools/lock.sh (make lock) from pyproject.toml; not edited by hand.\n\n'; cat "$tools/$output"; } \
    >"$output"
  echo "lock: $output: $(grep -c == "$output") packages"
}

compile requirements.lock --all-extras
compile requirements-run.lock --constraint requirements.lock
