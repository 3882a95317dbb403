#!/usr/bin/env bash
# report.sh RUN: how a run stands on this worker: none, running, exited CODE TIME, stopped CODE TIME
# (somebody asked for it) or lost (no process and no exit code: killed, or the host restarted).
source "$(dirname "$0")/lib.sh"
folder=$(run_folder "$1")
if [[ -s $folder/exit ]]; then
    how=exited
    [[ ! -e $folder/stopped ]] || how=stopped
    answer "$how $(cat "$folder/exit")"
elif [[ ! -e $folder ]]; then
    answer none
elif is_running && [[ $folder -ef current ]]; then
    answer running
elif [[ -e $folder/stopped ]]; then
    answer stopped lost
else
    answer lost
fi
