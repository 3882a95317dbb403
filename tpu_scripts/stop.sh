#!/usr/bin/env bash
# stop.sh: ask the run to save and stop (SIGTERM), wait for it, then kill what is left.
#
#   stop.sh --name=my-tpu
#
# --name=NAME --project=ID --zone=ZONE   as in create.sh
# --run=ID          another run than the newest
# --wait=SECONDS    how long the save may take (default 300)
# --restart         somebody will start it again: for supervise.sh
# --dry-run         print the commands and run none
#
# supervise.sh sees that the run was stopped on purpose and ends. The TPU stays, and costs money.
source "$(dirname "$0")/lib.sh"

run=- wait=300 restart=''
parse 'name= project= zone= run= wait= restart' "$@"
open_tpu
[[ $run == - ]] || check_run run "$run"
check_count wait "$wait"
worker stop "$run" "$wait" ${restart:+restart} || fail "not stopped everywhere, see above"
