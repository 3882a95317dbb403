#!/usr/bin/env bash
# launch.sh RUN ARG...: start `mmx train ARG...` apart from this session. The log, the pid and in the
# end the exit code lie in mmx-tpu/runs/RUN. Already running: says so.
source "$(dirname "$0")/lib.sh"
run=$1 folder=runs/$1
shift

exec 9>>lock
if ! flock --nonblock 9; then
    busy=$(basename "$(readlink current)")
    if [[ $busy == "$run" && ! -e $folder/exit ]]; then answer running && exit; fi
    answer "busy: processes of run $busy are alive" && exit 1
fi
mkdir -p "$folder"
rm -f "$folder"/{exit,stopped,pid}
ln -sfn "$folder" current

# Variables of an earlier slice would make jax.distributed wait for hosts that are gone.
unset "${!MEGASCALE_@}"
if [[ -e data.source ]]; then
    mountpoint --quiet data || { answer "failed: data is not mounted; setup.sh mounts it" && exit 1; }
    export TFDS_DATA_DIR=${TFDS_DATA_DIR:-$PWD/data}
fi
nohup setsid bash "$HERE/wrap.sh" "$folder" "$@" </dev/null >>"$folder/log" 2>&1 &
for _ in {1..50}; do
    [[ ! -s $folder/pid ]] || break
    sleep 0.1
done
[[ -s $folder/pid ]] || { answer "not started: see $folder/log" && exit 1; }
answer launched
