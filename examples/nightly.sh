#!/bin/sh
# Answers by night what was put into a folder by day, in the format of OpenAI's Batch API:
#
#     0 2 * * *  /opt/impetus/nightly.sh /data/inbox /data/outbox     # crontab; IMPETUS_REDIS_URL_FILE names the server
#
# A run that is cut off goes on the next night, and asks for nothing twice. Answers appear in the outbox under the name of
# what was asked, and beside them what could not be answered; an input of which nothing is left moves to inbox/done.
set -eu
inbox=$1 outbox=$2
mkdir -p "$inbox/done" "$outbox"
exec 9> "$inbox/.lock"
flock -n 9 || { echo "the last night's run is not over" >&2; exit 75; }
left=0
for input in "$inbox"/*.jsonl; do
  [ -e "$input" ] || continue
  output=$outbox/$(basename "$input")
  impetus batch run "$input" -o "$output" || true  # whatever it says, what counts is what there is
  asked=$(grep -c . "$input" || true)
  answered=$(cat "$output" "$output.errors.jsonl" 2> /dev/null | wc -l)
  if [ "$answered" -eq "$asked" ]; then mv "$input" "$inbox/done/"; else left=1; fi
done
exit $left
