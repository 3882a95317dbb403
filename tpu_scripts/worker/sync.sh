#!/usr/bin/env bash
# sync.sh COMMIT: src.new, which lies unpacked beside src, takes its place.
source "$(dirname "$0")/lib.sh"
if is_running; then
    rm -r src.new
    answer "busy: run $(basename "$(readlink current)") is alive; stop.sh first" && exit 1
fi
echo "$1" >src.new/COMMIT
rm -rf src.old
[[ ! -e src ]] || mv src src.old
mv src.new src
rm -rf src.old "$HOME/mmx-$1.tar.gz"
answer "synced $1"
