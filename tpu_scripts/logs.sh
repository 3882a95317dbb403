#!/usr/bin/env bash
# logs.sh: the log of one worker, of the worker that failed first, or the logs of all.
#
#   logs.sh --name=my-tpu --follow
#   logs.sh --name=my-tpu --first-failed
#   logs.sh --name=my-tpu --fetch=logs
#
# --name=NAME --project=ID --zone=ZONE   as in create.sh
# --run=ID          another run than the newest
# --slice=N --worker=N   which one (default 0 and 0: it writes the metrics)
# --lines=N         how many from the end (default 50)
# --follow          go on as the log grows
# --first-failed    the worker that failed first: the others only tell that they lost it
# --fetch=FOLDER    copy all logs into a new folder
# --dry-run         print the commands and run none
source "$(dirname "$0")/lib.sh"

run=- slice=0 worker=0 lines=50 follow='' first_failed='' fetch=''
parse 'name= project= zone= run= slice= worker= lines= follow first-failed fetch=' "$@"
open_tpu
[[ $run == - ]] || check_run run "$run"
for flag in slice worker lines; do check_count "$flag" "${!flag}"; done
all=()
mapfile -t all < <(nodes)
[[ $slice -lt ${#all[@]} ]] || refuse "--slice=$slice: $name has ${#all[@]}"
node=${all[slice]}

if [[ $fetch ]]; then
    [[ ! -e $fetch ]] || refuse "--fetch=$(quoted "$fetch"): is there already; name a new folder"
    run mkdir -p -- "$fetch"
    count=$(workers)
    folder=mmx-tpu/runs/$run
    [[ $run != - ]] || folder=mmx-tpu/current
    for node in "${all[@]}"; do
        for ((i = 0; i < count; i++)); do
            tpus tpu-vm scp "$node:$folder/log" "$fetch/$node-w-$i.log" "--worker=$i"
        done
    done
    exit
fi
if [[ $first_failed ]]; then
    rows=$(worker report "$run") || true
    [[ ! $dry_run ]] || exit 0
    row=$(first_failed <<<"$rows")
    [[ $row ]] || { say "no worker failed" && exit 0; }
    echo "$row"
    read -r node worker _ <<<"$row"
    worker=${worker#w-}
fi
at_node "$node" "$worker" bash mmx-tpu/src/tpu_scripts/worker/log.sh "$run" "$lines" ${follow:+follow}
