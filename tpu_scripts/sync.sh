#!/usr/bin/env bash
# sync.sh: put one exact commit of this repository on every worker (mmx-tpu/src in its home folder).
#
#   sync.sh --name=my-tpu
#
# --name=NAME --project=ID --zone=ZONE   as in create.sh
# --commit=REV      another commit than HEAD
# --ignore-dirty    leave changes that are not committed behind; else they are refused
# --dry-run         print the commands and run none
#
# Refused while a run is alive there. The hash is kept in mmx-tpu/src/COMMIT and in the log of a run.
source "$(dirname "$0")/lib.sh"

commit='' ignore_dirty=''
parse 'name= project= zone= commit= ignore-dirty' "$@"
open_tpu
hash=$(git -C "$HERE" rev-parse --verify --quiet --end-of-options "${commit:-HEAD}^{commit}") ||
    refuse "--commit=$(quoted "${commit:-HEAD}"): no commit of $HERE"
if [[ -z $commit && -z $ignore_dirty && $(git -C "$HERE/.." --no-optional-locks status --porcelain | head -n 1) ]]; then
    refuse "the tree has changes that are not committed: commit them, or --ignore-dirty leaves them behind"
fi

archive=$(record_of)/mmx-$hash.tar.gz
[[ -e $archive ]] || run git -C "$HERE/.." archive --format=tar.gz "--output=$archive" "$hash"
for node in $(nodes); do
    tpus tpu-vm scp "$archive" "$node:" --worker=all
done
# The worker's shell expands these; $0 there is the hash.
# shellcheck disable=SC2016
unpack='mkdir -p mmx-tpu/src.new && tar -xzf mmx-$0.tar.gz -C mmx-tpu/src.new && '
# shellcheck disable=SC2016
unpack+='exec bash mmx-tpu/src.new/tpu_scripts/worker/sync.sh $0'
rows=$(answers bash -c "$unpack" "$hash") || fail "not on every worker:"$'\n'"$rows"
[[ ! $dry_run ]] || exit 0
record commit "$hash"
say "$(wc -l <<<"$rows") workers have ${hash:0:12}; next: setup.sh --name=$name"
