#!/usr/bin/env bash
# supervise.sh: keep one run going until it is done, across preemptions. Runs where you start it (in
# tmux, on a small VM); the run itself goes on without it, and the same command takes it up again.
#
#   create.sh --name=my-tpu --accelerator-type=v5litepod-256 --runtime-version=v2-alpha-tpuv5-lite --spot --timeout=0
#   supervise.sh --name=my-tpu --run=muse-1 -- --config muse/base_3b --workdir gs://my-bucket/muse-1
#
# --name=NAME --project=ID --zone=ZONE   as in create.sh, which says what is made anew
# --run=ID               as in launch.sh
# --data=gs://...        as in setup.sh
# --max-preemptions=N    how often capacity may be taken away (default 50)
# --max-crashes=N        how often anything else may fail (default 3)
# --poll=SECONDS         between two looks (default 60)
# --dry-run              print the commands of one start and run none
# -- ARG...              of `mmx train`; they arrive exactly as you write them
#
# States: NONE and WAITING (no capacity yet), ACTIVE (machines, no run), RUNNING, PREEMPTED (deleted and
# made anew: a suspended request never comes back), SAVED (mmx ended with 75: started again), CRASHED
# (a process died, a host restarted or lacks the run: all are stopped and started again), UNSERVED (the
# request failed), and the ends: DONE (exit code 0), FAILED (1: training failed, a NaN returns; 2: bad
# input; or a budget is used up), STOPPED (75: somebody ran stop.sh). UNKNOWN (Google Cloud does not
# answer) and DENIED (it refuses the credentials) are waited out and told again every hour; DENIED at
# the first look ends with 2. A TPU that cannot be deleted is tried again, and costs no more budget.
source "$(dirname "$0")/lib.sh"

run='' data='' max_preemptions=50 max_crashes=3 poll=60
parse 'name= project= zone= run= data= max-preemptions= max-crashes= poll=' "$@"
check_launch
open_tpu
for flag in max-preemptions max-crashes poll; do
    variable=${flag//-/_}
    check_count "$flag" "${!variable}"
done
[[ -z $data ]] || check_bucket data "$data"

# --- what to do ----------------------------------------------------------------------------------

make() { # ask for the spec that create.sh recorded, and do not wait
    local field value flags=() extra=()
    for field in accelerator-type runtime-version slices valid-until; do
        value=$(recorded "$field")
        [[ -z $value ]] || flags+=("--$field=$value")
    done
    value=$(recorded tier)
    [[ ${value:-on-demand} == on-demand ]] || flags+=("--$value")
    [[ -z $(recorded extra) ]] || mapfile -t extra < <(recorded extra)
    again create "${flags[@]}" --timeout=0 -- "${extra[@]}"
}

start() { # the same commit, the same data, the same run
    local commit
    commit=$(recorded commit)
    again sync ${commit:+"--commit=$commit"} &&
        again setup ${data:+"--data=$data"} &&
        again launch "--run=$run" -- "${rest[@]}"
}

# spend KIND WHY: one of the budget of preemptions or crashes, which outlives this process.
spend() {
    local count limit=max_$1
    count=$(recorded "$1.$run")
    count=$((${count:-0} + 1))
    [[ $count -le ${!limit} ]] ||
        end 1 FAILED "$2; all ${!limit} $1 of --max-$1 are used up; see logs.sh --first-failed, then raise it"
    record "$1.$run" "$count"
    note "$1 $count of ${!limit}" "$2"
}

note() {
    noted=$(date +%s)
    printf '%s %s: %s\n' "$(date -u +%FT%TZ)" "$1" "$2"
}
remind() { [[ $(($(date +%s) - noted)) -lt 3600 ]] || note "$1" "$2"; } # a note, hourly

# A pause does not hold the lock: who kills this script may start it again at once.
pause() { sleep "$poll" 9>&-; }

# replace KIND WHY: delete the TPU, so that NONE follows. One that stays costs its budget once.
replace() {
    [[ $leaving ]] || spend "$1" "$2"
    if (delete_tpu); then
        leaving=''
        return
    fi
    if [[ $leaving == failed ]]; then
        remind DELETING "$name is not deleted yet"
    else
        note DELETING "$name was not deleted, see above; again in $poll s"
    fi
    leaving=failed
    pause
}

end() {
    note "$2" "$3"
    exit "$1"
}

# --- how it stands: sets now and why -------------------------------------------------------------

# unknown CODE: `ask` ended with it.
unknown() {
    now=UNKNOWN why='Google Cloud does not answer; the run goes on without us'
    [[ $1 != 2 ]] ||
        now=DENIED why='Google Cloud refuses our credentials: gcloud auth login; the run goes on without us'
}

observe() {
    local seen state token
    seen=$(describe) || { unknown $? && return; }
    read -r state token <<<"$seen"
    why=$(meaning "$state")
    [[ $state == NONE || $token == $(recorded token) ]] ||
        end 2 FAILED "$name was made anew by somebody else"
    case $state in
        NONE) now=NONE ;;
        SUSPENDING | SUSPENDED) now=PREEMPTED ;;
        FAILED) now=UNSERVED ;;
        ACTIVE) observe_nodes ;;
        *) now=WAITING ;;
    esac
}

observe_nodes() {
    local node seen state rows
    for node in $(nodes); do
        seen=$(describe_node "$node") || { unknown $? && return; }
        read -r state _ <<<"$seen"
        why="node $node is $state"
        case $state in
            READY) ;;
            PREEMPTED | TERMINATED | STOPPING | STOPPED | NONE) now=PREEMPTED && return ;;
            *) now=WAITING && return ;;
        esac
    done
    now=UNREACHABLE why='a worker does not answer, and all others wait for it'
    rows=$(worker report "$run") || return 0
    judge "$rows"
}

# judge ROWS: "NODE w-N HOW CODE TIME" of all workers.
judge() {
    local first hows
    first=$(first_failed <<<"$1")
    hows=" $(cut -d ' ' -f 3,4 <<<"$1" | tr '\n ' ' _') "
    if [[ $hows == *' stopped_'* ]]; then
        now=STOPPED why='somebody ran stop.sh'
    elif [[ $first =~ ' exited '[12]' ' ]]; then
        now=FAILED why="$first: 1 is a failed training, 2 bad input; not started again"
    elif [[ $first ]]; then
        now=CRASHED why="first failed: $first"
    elif [[ ! $hows =~ ' '(running|exited) ]]; then
        now=ACTIVE why='the machines are there, without the run'
    elif [[ $hows =~ ' '(none|unsynced) ]]; then
        now=CRASHED why='a worker lacks the run, and all others wait for it'
    elif [[ $hows == *' running '* ]]; then
        now=RUNNING why="$(wc -l <<<"$1") workers"
    elif [[ $hows == *' exited_75 '* ]]; then
        now=SAVED why='mmx was asked to stop, and saved'
    else
        now=DONE why='every worker ended with 0'
    fi
}

# --- the loop ------------------------------------------------------------------------------------

if [[ $dry_run ]]; then
    make
    start
    exit
fi
command -v flock >/dev/null || refuse "no flock here: install util-linux (macOS: brew install flock)"
lock=$(record_of)/supervisor.lock # its pid is for people; who holds the lock supervises
exec 9>>"$lock"
flock --nonblock 9 || refuse "--name=$name: process $(<"$lock") supervises it already"
echo $$ >"$lock"

last='' looks=0 repeats=0 broken='' leaving='' noted=0
while :; do
    observe
    looks=$((looks + 1))
    repeats=$((repeats + 1))
    if [[ $now != "$last" ]]; then
        note "$now" "$why"
        repeats=1
    fi
    last=$now
    # A TPU that is still to be deleted is so while it looks like that.
    [[ $now =~ ^(PREEMPTED|UNSERVED|UNREACHABLE|UNKNOWN|DENIED|WAITING)$ ]] || leaving=''
    case $now in
        DONE) end 0 DONE "$run" ;;
        FAILED) end 1 FAILED "$run; launch.sh starts it all the same, delete.sh --name=$name ends the costs" ;;
        STOPPED)
            [[ $looks == 1 ]] || end 75 STOPPED "$run; the TPU is still there: delete.sh --name=$name"
            start || broken='the run did not start' # stopped before: this command is to go on
            ;;
        NONE | ACTIVE)
            # What failed before a preemption failed because of it; what failed on sound machines is
            # a crash.
            [[ -z $broken ]] || spend crashes "$broken"
            broken=''
            if [[ $now == NONE ]]; then
                make || broken='the request failed'
            else
                { make && start; } || broken='the run did not start'
            fi
            [[ -z $broken ]] || pause
            ;;
        PREEMPTED)
            broken=''
            replace preemptions "$why"
            ;;
        UNSERVED) replace crashes "$why" ;;
        SAVED | CRASHED)
            # A host that is being taken away looks like this at first: look again before judging.
            if [[ $repeats -lt 2 ]]; then
                pause
                continue
            fi
            broken='' kind=crashes
            [[ $now == CRASHED ]] || kind=preemptions
            spend "$kind" "$why"
            { again stop "--run=$run" --restart --wait=60 >&2 && start; } || broken='the run did not start'
            last=''
            ;;
        UNREACHABLE)
            if [[ $repeats -lt 5 ]]; then
                pause
                continue
            fi
            replace crashes "$why"
            ;;
        UNKNOWN | DENIED)
            [[ $now == UNKNOWN || $looks -gt 1 ]] || end 2 FAILED "$name: Google Cloud refuses our credentials"
            broken=''
            remind "$now" "$why"
            pause
            ;;
        *)
            broken=''
            pause
            ;;
    esac
done
