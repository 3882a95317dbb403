#!/usr/bin/env bash
# stop.sh RUN SECONDS [restart]: ask mmx to save and stop, wait, then kill. Without `restart` the run
# counts as stopped on purpose, so that nobody starts it again.
source "$(dirname "$0")/lib.sh"
folder=$(run_folder "$1")
seconds=$2
if [[ ! -e $folder ]]; then answer none && exit; fi
if [[ ! $folder -ef current ]] || ! is_running; then answer "not running" && exit; fi
[[ ${3:-} == restart ]] || touch "$folder/stopped"

pid=$(cat "$folder/pid")
if [[ ! -e $folder/exit ]]; then kill -TERM "$pid" 2>/dev/null || true; fi
for ((i = 0; i < seconds * 5; i++)); do
    is_running || break
    sleep 0.2
done
if is_running; then
    # mmx first, so that its exit code is noted; then what is left of its session.
    kill -KILL "$pid" 2>/dev/null || true
    for _ in {1..50}; do
        [[ ! -e $folder/exit ]] || break
        sleep 0.2
    done
    pkill -KILL --session "$(cat "$folder/session")" || true
fi
answer "exited $(cat "$folder/exit" 2>/dev/null || echo lost)"
