#!/usr/bin/env bash
# launch.sh: start `mmx train` on every worker, apart from this session: you may close the laptop.
#
#   launch.sh --name=my-tpu --run=muse-1 -- --config muse/base_3b --workdir gs://my-bucket/muse-1
#
# --name=NAME --project=ID --zone=ZONE   as in create.sh
# --run=ID      names the log and the exit code on the workers (mmx-tpu/runs/ID)
# --dry-run     print the commands and run none
# -- ARG...     of `mmx train`; they arrive exactly as you write them
#
# The same command again goes on from the last checkpoint, or says that it is running. A run that
# has to outlive a preemption is started by supervise.sh instead, with the same arguments.
source "$(dirname "$0")/lib.sh"

run=''
parse 'name= project= zone= run=' "$@"
check_launch
open_tpu

rows=$(worker launch "$run" "${rest[@]}") || fail "not started everywhere; stop.sh, then again:"$'\n'"$rows"
if grep unsynced <<<"$rows" >&2; then fail "nothing to run: sync.sh and setup.sh first"; fi
record run "$run"
record workdir "$workdir"
say "$run is running; logs.sh --name=$name --follow"
