#!/usr/bin/env bash
# Installs genlab with its test tools and runs the tests; arguments go to pytest (the slow ones: scripts/test.sh -m slow).
# Tests that need data sets read them from the folder that GENLAB_DATA names, and are skipped where it is not set.
set -euo pipefail
. "$(dirname "$0")/setup.sh"
export OMP_NUM_THREADS=1 # one thread a test process: they share the cores
[ $# -gt 0 ] || set -- -m "not slow and not gpu"
exec python -m pytest --numprocesses 2 --dist loadgroup "$@"
