#!/usr/bin/env bash
# wrap.sh FOLDER ARG...: run `mmx train ARG...` and keep its exit code in FOLDER/exit ("CODE TIME").
source "$(dirname "$0")/lib.sh"
folder=$1
shift
echo $$ >"$folder/session" # setsid made this process the leader of one
printf '\n--- %s %s: mmx train' "$(date -u +%FT%TZ)" "$(cat src/COMMIT)"
printf ' %q' "$@"
printf '\n'

# A host that shuts down signals every process; this one has to outlive mmx to note how it ended.
trap '' TERM
(
    trap - TERM
    exec venv/bin/mmx train "$@"
) &
echo $! >"$folder/pid"
code=0
wait $! || code=$?
echo "$code $(date +%s)" >"$folder/exit.new"
mv "$folder/exit.new" "$folder/exit"
