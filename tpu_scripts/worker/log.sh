#!/usr/bin/env bash
# log.sh RUN LINES [follow]: the end of a run's log.
source "$(dirname "$0")/lib.sh"
exec tail -n "$2" ${3:+--follow} "$(run_folder "$1")/log"
