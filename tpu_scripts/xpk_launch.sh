#!/usr/bin/env bash
# xpk_launch.sh: the run as an xpk workload on a GKE cluster, which restarts it when it is preempted.
#
#   xpk_launch.sh --cluster=my-cluster --run=muse-1 --accelerator-type=v5litepod-256 \
#       --image=us-docker.pkg.dev/my-project/mmx/mmx:abc123 -- --config muse/base_3b --workdir gs://my-bucket/muse-1
#
# --cluster=NAME --project=ID --zone=ZONE --accelerator-type=TYPE
# --run=ID            the workload's name: letters, digits, dashes, at most 40
# --image=IMAGE       with mmx[tpu,gcs] in it; name an exact tag or digest
# --slices=N          default 1
# --max-restarts=N    default 50: preemptions count too
# --dry-run           print the command and do not run it
# -- ARG...           of `mmx train`; they arrive exactly as you write them
#
# Needs `pip install xpk` (1.16). xpk restarts on 42 and 127-255, and here on 75 (mmx was preempted
# and saved), 76 (it lost a peer) and 70 (a fault, or a store that does not answer); 1 (training
# failed) and 2 (bad input) end the workload.
source "$(dirname "$0")/lib.sh"

cluster='' run='' image='' slices=1 max_restarts=50
parse 'cluster= project= zone= accelerator-type= run= image= slices= max-restarts=' "$@"
check_place
check cluster "$cluster" '[a-z]([a-z0-9-]{0,38}[a-z0-9])?' my-cluster
check run "$run" '[a-z]([a-z0-9-]{0,38}[a-z0-9])?' muse-1
check accelerator-type "$accelerator_type" 'v[0-9]+[a-z]*-[0-9]+' v5litepod-16
check image "$image" '[a-z0-9][A-Za-z0-9._/:@-]+' us-docker.pkg.dev/my-project/mmx/mmx:abc123
check_count slices "$slices"
check_count max-restarts "$max_restarts"
check_train
command -v xpk >/dev/null || [[ $dry_run ]] || refuse "no xpk here: pip install xpk"

# A worker has 30 s between SIGTERM and SIGKILL unless told: give the save more.
run xpk workload create "--workload=$run" "--cluster=$cluster" "--project=$project" "--zone=$zone" \
    "--tpu-type=$accelerator_type" "--num-slices=$slices" "--docker-image=$image" \
    "--max-restarts=$max_restarts" --restart-on-exit-codes=70,75,76 --termination-grace-period-seconds=300 \
    "--command=mmx train $(quoted "${rest[@]}")" </dev/null
