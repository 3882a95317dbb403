#!/usr/bin/env bash
# create.sh: ask Google Cloud for a TPU (a queued resource) and wait until it is there.
#
#   create.sh --name=my-tpu --accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite
#   create.sh --name=my-tpu --accelerator-type=v6e-256 --runtime-version=v2-alpha-tpuv6e --spot --slices=2
#
# --name=NAME --project=ID --zone=ZONE --accelerator-type=TYPE --runtime-version=VERSION
#                       also from MMX_TPU_NAME, MMX_TPU_PROJECT, ... or the lines `project = my-project`
#                       of ~/.config/mmx/tpu.conf (MMX_TPU_CONFIG names another file); versions:
#                       v4 tpu-ubuntu2204-base, v5e (v5litepod-N) v2-alpha-tpuv5-lite,
#                       v5p v2-alpha-tpuv5, v6e v2-alpha-tpuv6e
# --spot | --reserved   cheaper and may be taken away | of your reservation; else on demand
# --slices=N            several slices of that type, joined by the data centre's network (default 1)
# --valid-until=6h      give the request up when it was not served by then
# --timeout=SECONDS     how long to wait here (default 3600; 0: only ask); the request stays queued
# --dry-run             print the commands and run none
# -- FLAG...            more flags of `gcloud compute tpus queued-resources create`: --network=...
#
# The same command again goes on waiting; another spec under the same name is refused. What was made
# is recorded in ~/.local/state/mmx/tpu (MMX_TPU_STATE): delete.sh deletes nothing else.
source "$(dirname "$0")/lib.sh"

spot='' reserved='' slices=1 valid_until='' timeout=3600
parse 'name= project= zone= accelerator-type= runtime-version= spot reserved slices= valid-until= timeout=' "$@"
check_name
check_place
check accelerator-type "$accelerator_type" 'v[0-9]+[a-z]*-[0-9]+' v5litepod-16
check runtime-version "$runtime_version" '[a-z0-9][a-z0-9.-]+' v2-alpha-tpuv5-lite
check_count slices "$slices"
check_count timeout "$timeout"
[[ $slices -ge 1 ]] || refuse "--slices=$slices: at least 1"
[[ -z $valid_until || $valid_until =~ ^[0-9]+[smhd]$ ]] || refuse "--valid-until=$(quoted "$valid_until"): give one like 6h"
[[ -z $spot || -z $reserved ]] || refuse "--spot --reserved: give one of them"
tier=on-demand
[[ -z $spot ]] || tier=spot
[[ -z $reserved ]] || tier=reserved
[[ ! ${rest[*]} =~ [[:cntrl:]] ]] || refuse "a flag after -- has a line break"
extra=$(printf '%s\n' "${rest[@]}")

flags=("--accelerator-type=$accelerator_type" "--runtime-version=$runtime_version")
if [[ $slices == 1 ]]; then
    flags+=("--node-id=$name")
else
    flags+=("--node-count=$slices" "--node-prefix=$name")
fi
[[ $tier == on-demand ]] || flags+=("--$tier")
[[ -z $valid_until ]] || flags+=("--valid-until-duration=$valid_until")

value_of() {
    local variable=${1//-/_}
    printf '%s\n' "${!variable}"
}

create() {
    local field token
    # The token tells what was made here from what has the same name by chance, or was made anew
    # by somebody else. It is on record before anything is made: a lost reply loses no TPU.
    token=$(od -An -N6 -tx1 /dev/urandom | tr -d ' \n')
    [[ ! $dry_run ]] || token=TOKEN
    for field in "${SPEC[@]}"; do record "$field" "$(value_of "$field")"; done
    record token "$token"
    [[ $dry_run ]] || rm -f "$(record_of)/workers"
    say "asking for $name: ${slices} x $accelerator_type, $tier"
    tpus queued-resources create "$name" "${flags[@]}" "--labels=mmx_token=$token" --async "${rest[@]}"
}

seen=$(describe)
[[ ! $dry_run ]] || { create && exit; }
read -r state token <<<"$seen"
if [[ $state == NONE ]]; then
    create || [[ $(describe) == *"$(recorded token)" ]] || fail "$name was not made, see above"
else
    [[ $token && $token == $(recorded token) ]] ||
        refuse "--name=$name: $project/$zone has one that was not made from here; choose another name"
    for field in "${SPEC[@]}"; do
        new=$(value_of "$field")
        [[ $(recorded "$field") == "$new" ]] ||
            refuse "--name=$name: there with $field $(quoted "$(recorded "$field")"), not $(quoted "$new");" \
                "delete.sh --name=$name, or choose another name"
    done
fi

waited=0 last=''
while [[ $state != ACTIVE ]]; do
    seen=$(describe)
    read -r state token <<<"$seen"
    if [[ $state != "$last" ]]; then say "$name: $state: $(meaning "$state")"; fi
    last=$state
    case $state in
        ACTIVE) break ;;
        FAILED | SUSPENDING | SUSPENDED | DELETING) fail "$name is $state: delete.sh --name=$name, then again" ;;
        NONE) [[ $waited -lt 60 ]] || fail "$name is gone: somebody deleted it, or the request was refused" ;;
    esac
    [[ $timeout != 0 ]] || exit 0
    [[ $waited -lt $timeout ]] || fail "$name is $state after $waited s; the request stays in the queue:" \
        "the same command waits on, delete.sh gives it up"
    sleep 20
    waited=$((waited + 20))
done
count=$(workers)
say "$name is there: ${slices} x $accelerator_type, $count workers a slice; next: sync.sh --name=$name"
