#!/usr/bin/env bash
# setup.sh: install mmx[tpu,gcs] of mmx-tpu/src into mmx-tpu/venv, and say what is installed.
source "$(dirname "$0")/lib.sh"
log=$PWD/setup.log

# The images of Cloud TPU come with Python 3.10; mmx needs 3.11. Then uv brings one.
for python in ${PYTHON:-} python3.13 python3.12 python3.11 ''; do
    [[ $python ]] && "$python" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' \
        2>/dev/null && break
done
if [[ -z $python ]]; then
    if ! { python3 -m pip install --user --quiet uv && python3 -m uv python install 3.12; } >"$log" 2>&1; then
        answer "failed: no Python 3.11 or newer, and uv brought none: $(tail -n 1 "$log")" && exit 1
    fi
    python=$(python3 -m uv python find 3.12)
fi
cd src || exit
PYTHON=$python constraints/install.sh ../venv gcs tpu >"$log" 2>&1 ||
    { answer "failed: $(tail -n 1 "$log") (all of it: mmx-tpu/setup.log)" && exit 1; }
answer "installed commit=$(cut -c -12 COMMIT) $(../venv/bin/python "$HERE/versions.py")"
