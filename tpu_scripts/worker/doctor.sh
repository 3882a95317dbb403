#!/usr/bin/env bash
# doctor.sh WORKERS WORKDIR: answers "ok|warn|bad WHAT ..." for each check (WORKDIR `-`: not checked).
source "$(dirname "$0")/lib.sh"
workers=$1 workdir=$2

check() { # check WHAT COMMAND...: ok when it succeeds; its last line is the detail
    local what=$1 level=ok detail
    detail=$("${@:2}" 2>&1) || level=bad
    answer "$level $what: $(tail -n 1 <<<"$detail")"
}

answer "ok commit: $(cat src/COMMIT)"

stale=$(printenv | grep -o '^MEGASCALE_[A-Z_]*' || true)
stale+=$(grep -hs '^[^#]*MEGASCALE_' /etc/environment ~/.bashrc ~/.profile || true)
if [[ $stale ]]; then
    answer "warn environment: stale ${stale//$'\n'/ }: launch.sh unsets them; another start may hang"
fi

# A process that opened a chip keeps everybody else out of it.
holders=$(sudo -n find /proc/[0-9]*/fd \( -lname '/dev/accel*' -o -lname '/dev/vfio/*' \) 2>/dev/null |
    cut -d / -f 3 | sort -u || true)
if is_running; then
    answer "ok run: $(basename "$(readlink current)") is running; the chips are not tried"
elif [[ $holders ]]; then
    answer "bad chips: held by $(for p in $holders; do echo "$p ($(tr '\0' ' ' <"/proc/$p/cmdline"))"; done)"
else
    if [[ -e /tmp/libtpu_lockfile ]]; then
        answer "warn lock: /tmp/libtpu_lockfile is there, and no process holds a chip: remove it" \
            "if jax says that the TPU is in use"
    fi
    check devices timeout 300 venv/bin/python "$HERE/all_reduce.py" "$workers"
fi

if [[ $workdir != - ]]; then
    check workdir venv/bin/python "$HERE/write_check.py" "$workdir"
fi
if [[ -e data.source ]]; then
    check data bash -c 'mountpoint -q data && ls data | head -n 1 && ! touch data/.mmx-doctor 2>/dev/null'
fi
