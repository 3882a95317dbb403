#!/usr/bin/env bash
# doctor.sh: is every worker fit to train? Chips, a sum over all chips, the bucket, the data mount,
# leftovers of earlier processes, variables of earlier slices. Ends with 1 when something is bad.
#
#   doctor.sh --name=my-tpu --workdir=gs://my-bucket/muse-1
#
# --name=NAME --project=ID --zone=ZONE   as in create.sh
# --workdir=gs://...   write a small file there from every worker, and remove it
# --dry-run            print the commands and run none
#
# Needs sync.sh and setup.sh before. While a run is alive the chips are not tried.
source "$(dirname "$0")/lib.sh"

workdir=''
parse 'name= project= zone= workdir=' "$@"
open_tpu
workdir=${workdir:-$(recorded workdir)}
[[ -z $workdir ]] || check_bucket workdir "$workdir"

code=0
rows=$(worker doctor "$(($(workers) * $(nodes | wc -l)))" "${workdir:--}") || code=1
[[ ! $dry_run ]] || exit 0
echo "$rows"
if grep -qE '^[^ ]+ w-[0-9]+ (bad|unsynced)' <<<"$rows"; then code=1; fi
[[ $code == 0 ]] || fail "see the lines with bad, and the workers without an answer"
say "all workers are fit"
