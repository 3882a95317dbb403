#!/usr/bin/env bash
# status.sh: how the request, its nodes and the run on every worker stand.
#
#   status.sh --name=my-tpu
#
# --name=NAME --project=ID --zone=ZONE   as in create.sh
# --run=ID      another run than the newest
# --dry-run     print the commands and run none
source "$(dirname "$0")/lib.sh"

run=-
parse 'name= project= zone= run=' "$@"
open_tpu
[[ $run == - ]] || check_run run "$run"

seen=$(describe)
read -r state token <<<"$seen"
if [[ ! $dry_run ]]; then
    echo "$name $state: $(meaning "$state")"
    [[ $state == NONE || $token == $(recorded token) ]] || say "$name was made anew by somebody else"
    [[ $state == ACTIVE ]] || exit 0
fi
for node in $(nodes); do
    seen=$(describe_node "$node")
    read -r state workers _ health <<<"$seen"
    [[ $dry_run ]] || echo "$node $state, $workers workers, ${health:-health unknown}"
done
worker report "$run"
