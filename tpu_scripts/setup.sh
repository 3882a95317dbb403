#!/usr/bin/env bash
# setup.sh: install mmx on every worker, mount the data, check that all workers have the same.
#
#   setup.sh --name=my-tpu --data=gs://my-bucket/tensorflow_datasets
#
# --name=NAME --project=ID --zone=ZONE   as in create.sh
# --data=gs://...   mount this at mmx-tpu/data, read-only (gcsfuse); launch.sh points
#                   TFDS_DATA_DIR there, so that no config has to name it
# --dry-run         print the commands and run none
#
# Needs sync.sh before; again after a sync, setup.sh takes seconds.
source "$(dirname "$0")/lib.sh"

data=''
parse 'name= project= zone= data=' "$@"
open_tpu
data=${data:-$(recorded data)}
[[ -z $data ]] || check_bucket data "$data"

rows=$(worker setup) || fail "not on every worker:"$'\n'"$rows"
if [[ ! $dry_run ]]; then
    # What differs between two hosts shows up as a hang or as wrong numbers, hours later.
    kinds=$(grep -E '^[^ ]+ w-[0-9]+ ' <<<"$rows" | cut -d ' ' -f 3- | sort | uniq -c)
    [[ $(wc -l <<<"$kinds") == 1 ]] || fail "the workers differ:"$'\n'"$rows"
    say "${kinds##* installed }"
fi
if [[ $data ]]; then
    rows=$(worker mount "$data") || fail "not mounted on every worker:"$'\n'"$rows"
    record data "$data"
    say "$data is mounted"
fi
