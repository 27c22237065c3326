#!/usr/bin/env bash
# Static checks: ruff check, ruff format --check and mypy (about a minute and a half in all). Installs genlab first if needed.
set -euo pipefail
. "$(dirname "$0")/setup.sh"
ruff check
ruff format --check
mypy
