# What the scripts on a worker share. They run in the home folder of a worker, where sync.sh left
# the sources in mmx-tpu/src; everything that they make lies in mmx-tpu/.
# shellcheck shell=bash

set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$HOME/mmx-tpu"

# answer WORD...: the line that the caller's machine looks for.
answer() { echo "mmx-answer w-${HOSTNAME##*-} $*"; }

# run_folder RUN: of a run; `-` is the newest.
run_folder() { if [[ $1 == - ]]; then echo current; else echo "runs/$1"; fi; }

# The lock is held by every process of a run: it is free once the last of them is gone, however it
# went, and a pid that was used again deceives nobody.
is_running() { ! flock --nonblock lock true; }
