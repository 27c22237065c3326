#!/usr/bin/env bash
# Installs genlab with its test tools and runs the tests. Arguments go to pytest: scripts/test.sh -m slow runs the slow tests.
# --cov as the first argument also measures the coverage of genlab/ and prints it at the end.
# Tests that need datasets read them from the folder GENLAB_DATA and are skipped if it is not set.
set -euo pipefail
. "$(dirname "$0")/setup.sh"
# One thread per test process; one process more than the two cores of a small machine, because some tests wait.
export OMP_NUM_THREADS=1
# The tests start many processes, which would each compile genlab again.
unset PYTHONDONTWRITEBYTECODE
coverage=()
if [ "${1:-}" = --cov ]; then
    coverage=(--cov=genlab --cov-report=term:skip-covered)
    shift
fi
[ $# -gt 0 ] || set -- -m "not slow and not gpu"
exec python -m pytest --numprocesses 3 --dist loadgroup ${coverage[@]+"${coverage[@]}"} "$@"
