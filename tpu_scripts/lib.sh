# What the scripts of this folder share. They source it; it does nothing by itself.
# shellcheck shell=bash
#
# Names: a TPU is one queued resource NAME with one node a slice (NAME, or NAME-0 NAME-1 ...), and
# each node has one or more workers (hosts) w-0 w-1 ... A run is one training under one RUN id.

set -euo pipefail
LC_ALL=C # [a-z] is 26 letters
SCRIPT=${0##*/}
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

say() { printf '%s: %s\n' "${SCRIPT%.sh}" "$*" >&2; }
fail() { say "error: $*"; exit 1; }  # it did not work
refuse() { say "error: $*"; exit 2; } # bad input, or not ours: nothing was done

[[ ${BASH_VERSINFO[0]}${BASH_VERSINFO[1]} -ge 44 ]] ||
    refuse "bash $BASH_VERSION is too old: install bash 4.4 or newer and run bash $0"
shopt -s inherit_errexit

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# quoted WORD...: one line that a shell reads back as exactly these words. What needs no quotes
# gets none; what does gets single ones, or $'...' when it has a newline.
quoted() {
    local word line=''
    for word; do
        if [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]]; then
            line+=" $word"
        elif [[ $word == *[$'\n\r\t\e']* ]]; then
            line+=" $(printf %q "$word")"
        else
            line+=" '${word//\'/\'\\\'\'}'"
        fi
    done
    printf '%s\n' "${line# }"
}

# run WORD...: the command, or with --dry-run its line on the script's stdout.
exec 3>&1
run() {
    if [[ $dry_run ]]; then quoted "$@" >&3; else "$@"; fi
}

# --- flags and settings --------------------------------------------------------------------------

# A setting comes from its flag, else from the environment, else from the file; nothing is guessed.
SETTINGS=(name project zone accelerator-type runtime-version)
CONFIG=${MMX_TPU_CONFIG:-$HOME/.config/mmx/tpu.conf}
name='' project='' zone='' accelerator_type='' runtime_version='' dry_run=''
rest=() # what follows `--`

# The comment at the head of a script is its help.
help() { sed -n '2,/^[^#]/ s/^#$//p; 2,/^[^#]/ s/^# //p' "$0"; }

# parse "FLAG= SWITCH ..." ARG...: sets $flag from `--flag VALUE` or `--flag=VALUE` and $switch to 1
# from `--switch`; each script sets its own to '' before.
parse() {
    local known=" $1 dry-run " arg key value
    shift
    read_settings
    while (($#)); do
        arg=$1 key=${1%%=*}
        shift
        case $arg in
            --) rest=("$@") && return ;;
            --help | -h) help && exit 0 ;;
            --*) ;;
            *) refuse "$(quoted "$arg"): not a flag; see $SCRIPT --help" ;;
        esac
        key=${key#--}
        if [[ $key =~ ^[a-z-]+$ && $known == *" $key= "* ]]; then
            if [[ $arg == *=* ]]; then
                value=${arg#*=}
            else
                (($#)) || refuse "--$key: needs a value, --$key=VALUE"
                value=$1
                shift
            fi
            [[ $value ]] || refuse "--$key: the value is empty"
        elif [[ $arg == "--$key" && $key =~ ^[a-z-]+$ && $known == *" $key "* ]]; then
            value=1
        else
            refuse "$(quoted "$arg"): no such flag; see $SCRIPT --help"
        fi
        printf -v "${key//-/_}" %s "$value"
    done
}

read_settings() {
    local key value number=0 variable
    if [[ -f $CONFIG ]]; then
        while IFS='=' read -r key value || [[ $key ]]; do
            number=$((number + 1)) key=${key//[[:space:]]/}
            [[ $key && $key != '#'* ]] || continue
            [[ " ${SETTINGS[*]} " == *" $key "* ]] ||
                refuse "$CONFIG line $number: $(quoted "$key") is none of: ${SETTINGS[*]}"
            value=${value#"${value%%[![:space:]]*}"}
            printf -v "${key//-/_}" %s "${value%"${value##*[![:space:]]}"}"
        done <"$CONFIG"
    elif [[ ${MMX_TPU_CONFIG:-} ]]; then
        refuse "MMX_TPU_CONFIG=$MMX_TPU_CONFIG: no such file"
    fi
    for key in "${SETTINGS[@]}"; do
        variable=${key//-/_} value=MMX_TPU_${key//-/_}
        value=${value^^}
        [[ -z ${!value:-} ]] || printf -v "$variable" %s "${!value}"
    done
}

# check FLAG VALUE PATTERN EXAMPLE: refuses what the whole pattern does not match.
check() {
    local upper=${1//-/_}
    [[ $2 ]] || refuse "--$1: not given; say --$1=$4 (or MMX_TPU_${upper^^}, or a line in $CONFIG)"
    [[ $2 =~ ^($3)$ ]] || refuse "--$1=$(quoted "$2"): give one like $4"
}
check_name() { check name "$name" '[a-z]([a-z0-9-]{0,55}[a-z0-9])?' my-tpu; }
check_place() {
    check project "$project" '[a-z][a-z0-9.:-]{4,60}[a-z0-9]' my-project
    check zone "$zone" '[a-z]+-[a-z]+[0-9]+-[a-z]' us-central2-b
    [[ $dry_run ]] || command -v gcloud >/dev/null || refuse "no gcloud here: install the Google Cloud CLI"
}
check_run() { [[ $2 =~ ^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$ ]] ||
    refuse "--$1=$(quoted "$2"): letters, digits, dot, dash, underscore; such as muse-1"; }
check_count() { [[ $2 =~ ^[0-9]{1,6}$ ]] || refuse "--$1=$(quoted "$2"): give a whole number"; }
check_bucket() { [[ $2 =~ ^gs://[a-z0-9][a-z0-9._-]+[a-z0-9](/|$) && $2 != *[[:cntrl:]]* ]] ||
    refuse "--$1=$(quoted "$2"): give gs://BUCKET or gs://BUCKET/FOLDER"; }

# check_train: what follows `--` is for `mmx train`; sets workdir.
check_train() {
    local i
    workdir=''
    [[ " ${rest[*]}" =~ ' --config'[=' '] ]] || refuse "--config: not given; say -- --config FILE:ARGS --workdir gs://..."
    for ((i = 0; i < ${#rest[@]}; i++)); do
        case ${rest[i]} in
            --workdir) workdir=${rest[i + 1]:-} ;;
            --workdir=*) workdir=${rest[i]#*=} ;;
        esac
    done
    # Many hosts share one workdir, and the disk of a TPU is lost with it.
    check_bucket workdir "$workdir"
}
check_launch() {
    check_run run "$run"
    check_train
}

# --- the record: what this machine made ----------------------------------------------------------

STATE=${MMX_TPU_STATE:-${XDG_STATE_HOME:-$HOME/.local/state}/mmx/tpu}
SPEC=(accelerator-type runtime-version slices tier valid-until extra)

# A record is a folder of small files, one a field: token, workers, commit, data and the spec.
record_of() { printf '%s/%s/%s/%s\n' "$STATE" "$project" "$zone" "$name"; }
recorded() {
    local file=$STATE/$project/$zone/$name/$1
    [[ ! -e $file ]] || printf '%s\n' "$(<"$file")"
}
record() {
    [[ $dry_run ]] && return
    mkdir -p "$(record_of)"
    printf '%s\n' "$2" >"$(record_of)/$1.new"
    mv "$(record_of)/$1.new" "$(record_of)/$1"
}

# The settings that name a TPU, and that this machine made it.
open_tpu() {
    check_name
    check_place
    [[ $dry_run || $(recorded token) ]] ||
        refuse "--name=$name: not made from here ($(record_of) is not there); create.sh makes one"
}

nodes() {
    local i slices
    slices=$(recorded slices)
    if [[ ${slices:-1} == 1 ]]; then echo "$name"; fi
    for ((i = 0; ${slices:-1} > 1 && i < slices; i++)); do echo "$name-$i"; done
}

# --- Google Cloud --------------------------------------------------------------------------------

# tpus WORD...: a gcloud command in the project and zone. Never reads our stdin.
tpus() {
    run gcloud compute tpus "$@" "--project=$project" "--zone=$zone" </dev/null
}

# ask WORD...: stdout of a gcloud command that may come twice (it reads, or deletes); NONE when there
# is no such thing. Tries again with back-off, because one refused connection must not end a run of
# weeks. Ends the shell that it runs in, call it in one of its own: with 2 when we may not, else 1.
ask() {
    local try errors=$scratch/errors
    if [[ $dry_run ]]; then tpus "$@" && return; fi
    for try in 1 2 3 4 5; do
        if tpus "$@" 2>"$errors"; then return; fi
        if grep -qE 'NOT_FOUND|code=404' "$errors"; then echo NONE && return; fi
        # Not `auth login`: gcloud says that of a network that is down, too.
        if grep -qE 'PERMISSION_DENIED|UNAUTHENTICATED|active account|invalid_grant|Reauthentication' "$errors"; then
            refuse "gcloud: $(first_error); gcloud auth login, or ask for the role"
        fi
        [[ $try == 5 ]] || sleep $((2 ** try * 5))
    done
    fail "gcloud: $(first_error)"
}

first_error() { grep -m 1 ERROR "$scratch/errors" || tail -n 1 "$scratch/errors"; }

# "STATE TOKEN" of the queued resource: a state of Google Cloud's, or NONE.
describe() {
    ask queued-resources describe "$name" \
        '--format=value(state.state,tpu.nodeSpec[0].node.labels.mmx_token)'
}
# "STATE WORKERS TOKEN HEALTH" of a node: READY, PREEMPTED, ..., or NONE.
describe_node() {
    ask tpu-vm describe "$1" \
        '--format=value(state,networkEndpoints.len(),labels.mmx_token,health)'
}

meaning() {
    case $1 in
        NONE) echo "there is no such request" ;;
        CREATING) echo "the request is being checked" ;;
        ACCEPTED | WAITING_FOR_RESOURCES) echo "in the queue; there is no capacity yet" ;;
        PROVISIONING) echo "capacity was found; the machines are being made" ;;
        ACTIVE) echo "the machines are there, and cost money" ;;
        SUSPENDING) echo "the machines are being taken away" ;;
        SUSPENDED) echo "the machines were taken away; it never comes back by itself and eats quota until deleted" ;;
        FAILED) echo "not served: no quota, a type that the zone lacks, or too late; it eats quota until deleted" ;;
        DELETING) echo "being deleted" ;;
        *) echo "a state that these scripts do not know" ;;
    esac
}

# delete_tpu: the request and its nodes, and wait until they are gone. The record stays. Each step says
# itself what is to happen when it fails, for `delete_tpu || ...` switches `set -e` off.
delete_tpu() {
    local seen state token node waited=0 mine
    mine=$(recorded token)
    seen=$(describe) || return
    read -r state token <<<"$seen"
    if [[ $dry_run || $state != NONE ]]; then
        [[ $dry_run || ($token && $token == "$mine") ]] ||
            refuse "--name=$name: the one in $project/$zone was made anew by somebody else; not deleted"
        # When the reply was lost, the second try can be refused though the first one works.
        [[ $state == DELETING ]] || (ask queued-resources delete "$name" --force --quiet >/dev/null) ||
            [[ $(describe) =~ ^(NONE|DELETING) ]] || return 1
    fi
    while [[ ! $dry_run && $(describe) != NONE* ]]; do
        [[ $waited -lt 900 ]] || fail "$name is still there 900 s after it was deleted"
        sleep 15
        waited=$((waited + 15))
    done
    for node in $(nodes); do # a request that is gone can leave a node behind, which costs money
        seen=$(describe_node "$node") || return
        read -r state _ token _ <<<"$seen"
        [[ $dry_run || $state == NONE || $token != "$mine" ]] ||
            (ask tpu-vm delete "$node" --quiet >/dev/null) || return
    done
}

# How many workers a node has, as create.sh recorded it, else as Google Cloud says.
workers() {
    local seen count
    count=$(recorded workers)
    if [[ ! $count && ! $dry_run ]]; then
        seen=$(describe_node "$(nodes | head -n 1)")
        read -r _ count _ <<<"$seen"
        [[ $count ]] || fail "$name has no machines yet: create.sh waits for them"
        record workers "$count"
    fi
    echo "${count:-1}"
}

# at_node NODE ROUTE WORD...: a command on workers of a node (ROUTE: all, or 3), in their home folder.
at_node() {
    tpus tpu-vm ssh "$1" "--worker=$2" "--command=$(quoted "${@:3}")"
}

# on_workers WORD...: a command on every worker of every node at the same time; "NODE| LINE" lines.
on_workers() {
    local node code=0 jobs=()
    if [[ $dry_run ]]; then
        for node in $(nodes); do at_node "$node" all "$@"; done
        return
    fi
    for node in $(nodes); do
        at_node "$node" all "$@" >"$scratch/$node.out" 2>"$scratch/$node.err" &
        jobs+=($!)
    done
    for node in $(nodes); do
        wait "${jobs[0]}" || code=$?
        jobs=("${jobs[@]:1}")
        sed "s/^/$node| /" "$scratch/$node.out"
        grep -vE '^(SSH|SCP): Attempting|^Using ssh batch size|^SSH key found' \
            "$scratch/$node.err" | sed "s/^/$node| /" >&2 || true
    done
    return "$code"
}

# again SCRIPT FLAG...: another script of this folder for the same TPU.
again() {
    bash "$HERE/$1.sh" "--name=$name" "--project=$project" "--zone=$zone" ${dry_run:+--dry-run} "${@:2}"
}

# answers WORD...: a command on every worker that answers in lines "mmx-answer w-N WORD..."; on stdout
# they are "NODE w-N WORD...". Returns 3 when a worker failed, or did not answer: one that is missing
# lets all others wait in silence.
answers() {
    local code=0 node i count missing='' said=$scratch/answers
    count=$(workers) || return
    on_workers "$@" >"$said" || code=3
    [[ ! $dry_run ]] || return 0
    sed -n 's/^\([^|]*\)| mmx-answer /\1 /p' "$said" | sort -V
    grep -v '| mmx-answer ' "$said" >&2 || true
    for node in $(nodes); do
        for ((i = 0; i < count; i++)); do
            [[ $'\n'$(<"$said") == *$'\n'"$node| mmx-answer w-$i "* ]] || missing+=" $node/w-$i"
        done
    done
    [[ $missing ]] || return "$code"
    say "no answer from$missing"
    return 3
}

# worker SCRIPT ARG...: the answers of a script of worker/, as sync.sh left it there.
worker() {
    local start
    # The worker's shell expands these; $0 there is SCRIPT.
    # shellcheck disable=SC2016
    start='test -e mmx-tpu/src || { echo "mmx-answer w-${HOSTNAME##*-} unsynced"; exit; }; '
    # shellcheck disable=SC2016
    start+='exec bash mmx-tpu/src/tpu_scripts/worker/$0.sh "$@"'
    answers bash -c "$start" "$@"
}

# first_failed <ROWS: of report rows "NODE w-N HOW CODE TIME", the one that failed first. The others
# fail because of it, each in its own words, or with 76: mmx lost a peer.
first_failed() {
    awk '$3 == "lost" { print 0, $0 }
        $3 == "exited" && $4 != 0 && $4 != 75 { print ($4 == 76 ? 1e12 : $5), $0 }' |
        sort -g | head -n 1 | cut -d " " -f 2-
}
