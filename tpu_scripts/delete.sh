#!/usr/bin/env bash
# delete.sh: give a TPU back: the queued resource and its nodes. Only what create.sh made from here.
#
#   delete.sh --name=my-tpu
#   delete.sh --all-mine
#
# --name=NAME --project=ID --zone=ZONE   as in create.sh
# --all-mine    all that this machine made, in every project and zone: lists them, then asks
# --yes         with --all-mine: do not ask
# --dry-run     print the commands and run none
#
# A request that was suspended or failed eats quota until it is deleted. Buckets are not touched.
source "$(dirname "$0")/lib.sh"

all_mine='' yes=''
parse 'name= project= zone= all-mine yes' "$@"

delete_and_forget() {
    delete_tpu
    [[ ! $dry_run ]] || return 0
    rm -r -- "$(record_of)"
    say "$project/$zone/$name: deleted"
}

if [[ ! $all_mine ]]; then
    open_tpu
    delete_and_forget
    exit
fi

mine=()
for token in "$STATE"/*/*/*/token; do
    [[ -e $token ]] || refuse "--all-mine: nothing was made from here ($STATE)"
    IFS=/ read -r project zone name _ <<<"${token#"$STATE"/}"
    mine+=("$project $zone $name")
    seen=$(describe)
    [[ $dry_run ]] || printf '%s/%s/%s %s\n' "$project" "$zone" "$name" "${seen%%[[:space:]]*}"
done
if [[ ! $dry_run && ! $yes ]]; then
    printf 'Delete all %d? Type yes: ' "${#mine[@]}" >&2
    read -r yes || true
    [[ $yes == yes ]] || refuse "--all-mine: nothing deleted"
fi
for one in "${mine[@]}"; do
    read -r project zone name <<<"$one"
    delete_and_forget
done
