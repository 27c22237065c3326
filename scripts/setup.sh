# Sourced by the other scripts: creates .venv with genlab and its test tools. Needs Python 3.11, 3.12 or 3.13 and nothing else.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ ! -x .venv/bin/python ]; then
    for python in python3.13 python3.12 python3.11 python3; do
        if "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then break; fi
        python=
    done
    if [ -z "$python" ]; then
        echo "genlab needs Python 3.11, 3.12 or 3.13; none of them is on the PATH" >&2
        exit 1
    fi
    "$python" -m venv .venv
fi
if ! cmp -s pyproject.toml .venv/installed.toml; then
    echo "installing genlab and its dependencies into .venv (PyTorch is large: this takes some minutes)"
    .venv/bin/python -m pip install --quiet --editable '.[dev]'
    cp pyproject.toml .venv/installed.toml
fi
export PATH="$PWD/.venv/bin:$PATH"
