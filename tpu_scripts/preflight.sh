#!/usr/bin/env bash
# preflight.sh: before renting, compile the real train step for the TPU on this machine: does it fit?
#
#   preflight.sh --accelerator-type=v5litepod-256 --config=muse/base_3b
#
# --accelerator-type=TYPE   what create.sh will ask for; also from MMX_TPU_ACCELERATOR_TYPE or the file
# --topology=v5e:16x16      instead of a type: another shape
# --config=FILE:ARGS        as in `mmx train`
# --dry-run                 print the command and do not run it
# -- ARG...                 more of `mmx preflight`: --sample, --json FILE, --config.mesh.slice=2 (slices)
#
# Needs `pip install mmx[preflight]`. Ends with 1 when it does not fit.
source "$(dirname "$0")/lib.sh"

topology='' config=''
parse 'accelerator-type= topology= config=' "$@"
[[ $config ]] || refuse "--config: not given; say --config=muse/base_3b"

# The shape that Cloud TPU gives a type without --topology (v4 and v5p count cores, two a chip).
shape_of() {
    case $1 in
        v5litepod-*) shape_2d v5e "${1#*-}" ;;
        v6e-*) shape_2d v6e "${1#*-}" ;;
        v4-* | v5p-*) shape_3d "${1%-*}" "$((${1#*-} / 2))" ;;
    esac
}
shape_2d() {
    local x=1 y=1
    while ((x * y < $2)); do
        if ((x == y)); then y=$((y * 2)); else x=$((x * 2)); fi
    done
    ((x * y != $2)) || echo "$1:${x}x$y"
}
shape_3d() {
    local x=2 y=2 z=1
    while ((x * y * z < $2)); do
        if ((z < y || z == x)); then
            z=$((z * 2))
        elif ((y == x)); then
            y=$((y * 2))
        else
            x=$((x * 2))
        fi
    done
    ((x * y * z != $2)) || echo "$1:${x}x${y}x$z"
}
if [[ -z $topology ]]; then
    check accelerator-type "$accelerator_type" 'v[0-9]+[a-z]*-[0-9]{1,5}' v5litepod-16
    topology=$(shape_of "$accelerator_type")
    [[ $topology ]] || refuse "--accelerator-type=$accelerator_type: its shape is not known here; give --topology"
fi
command -v mmx >/dev/null || [[ $dry_run ]] || refuse "no mmx here: pip install 'mmx[preflight]', or activate its environment"
run mmx preflight --config "$config" --topology "$topology" "${rest[@]}"
