#!/usr/bin/env bash
# profile.sh: bring the traces of a run here and say how TensorBoard shows them.
#
#   launch.sh --name=my-tpu --run=muse-1 -- --config muse/base_3b --workdir gs://my-bucket/muse-1 --profile 100:110
#   profile.sh --name=my-tpu --to=trace
#
# --name=NAME --project=ID --zone=ZONE   as in create.sh
# --workdir=gs://...   of another run than the last that was launched
# --to=FOLDER          where the traces go; what is there already is not copied again
# --dry-run            print the commands and run none
source "$(dirname "$0")/lib.sh"

workdir='' to=''
parse 'name= project= zone= workdir= to=' "$@"
[[ $to ]] || refuse "--to: not given; name a folder for the traces"
if [[ ! $workdir ]]; then
    open_tpu
    workdir=$(recorded workdir)
    [[ $workdir ]] || refuse "--workdir: not given, and nothing was launched from here"
fi
check_bucket workdir "$workdir"

traces=plugins/profile
run mkdir -p -- "$to/$traces"
run gcloud storage rsync --recursive --no-clobber "${workdir%/}/$traces" "$to/$traces" </dev/null ||
    fail "no traces in ${workdir%/}/$traces: launch the run with --profile FIRST:LAST (steps)"
say "tensorboard --logdir $(quoted "$to")   # needs: pip install tensorboard xprof; tab Profile"
