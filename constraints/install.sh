#!/bin/sh
# Install mmx into a virtual environment: constraints/install.sh FOLDER EXTRAS [cpu|cuda]
# The Makefile's helper. $PYTHON names the Python to use; without it, the newest of those below.
set -eu
folder=$1 extras=$2 device=${3:-cpu}

say() { echo "mmx: $*" >&2; }
stop() { say "$*"; exit 1; }

# 1. A Python that is new enough and can make virtual environments.
python='' too_old='' no_venv=''
if [ -n "${PYTHON:-}" ]; then
    set -- "$PYTHON"
else
    set -- python3.13 python3.12 python3.11 python3 python # the newest first
fi
for name in "$@"; do
    version=$("$name" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
    if ! "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        too_old=${too_old:-"$name is $version"}
    elif ! "$name" -c 'import ensurepip, venv' 2>/dev/null; then
        no_venv=${no_venv:-$version}
    else
        python=$name
        break
    fi
done
if [ -z "$python" ]; then
    [ -z "$no_venv" ] || stop "Python $no_venv has no venv module: install it" \
        "(Debian, Ubuntu: apt install python$no_venv-venv) and run make again."
    stop "needs Python 3.11 or newer (${too_old:-no ${PYTHON:-python3} here}): install one," \
        "or say where it is: make PYTHON=/path/to/python3.11"
fi

# 2. The exact versions tested on this platform.
platform=$(uname -s | tr '[:upper:]' '[:lower:]' | sed s/darwin/macos/)-$(uname -m)
if [ "$device" != cpu ]; then
    platform=$platform-$device extras=$extras,$device
fi
versions=constraints/$platform-py$(echo "$version" | tr -d .).txt
if [ ! -f "$versions" ]; then
    say "$versions does not exist: installing the newest versions, which are untested together."
    versions=/dev/null
fi

# 3. The environment, made anew unless it works and has this Python, with uv in it.
log=$folder.log
if [ "$("$folder/bin/python" -c 'import pip, sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" != "$version" ]; then
    "$python" -m venv --clear "$folder" >"$log" 2>&1 ||
        stop "$python could not make $folder, see $log; another Python: make PYTHON=/path/to/python3.11"
fi
"$folder/bin/python" -m pip install --quiet --retries 1 --timeout 20 --constraint "$versions" uv >"$log" 2>&1 ||
    stop "the package registry cannot be reached (details: $log): check the network, the proxy" \
        "and PIP_INDEX_URL, then run make again."
# uv reads none of pip's settings: hand it the registry and the certificates that just worked.
setting() { "$folder/bin/python" -m pip config list | sed -n "s/^[a-z:]*\.$1='\(.*\)'\$/\1/p" | head -n 1; }
export UV_SYSTEM_CERTS="${UV_SYSTEM_CERTS:-1}"
for pair in UV_DEFAULT_INDEX=index-url SSL_CERT_FILE=cert; do
    value=$(setting "${pair#*=}")
    if [ -n "$value" ] && ! printenv "${pair%=*}" >/dev/null; then
        export "${pair%=*}=$value"
    fi
done
"$folder/bin/uv" pip install --python "$folder/bin/python" \
    --constraint "$versions" --build-constraint "$versions" --editable ".[$extras]" ||
    stop "the installation into $folder stopped, see above (is the package registry reachable?):" \
        "run make again to go on from there."
rm -f "$log"
