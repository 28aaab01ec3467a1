#!/usr/bin/env bash
# Uploads a file with curl, as its user would: the rest of it, again and again, until the server has it all; while
# somebody has paused it, it waits. curl.sh URL FILE
set -uo pipefail
url=$1 file=$2 task=

while [[ -z $task ]]; do
  task=$(curl -sf -X POST -H "Upload-Length: $(stat -c %s "$file")" "$url/upload/start?filename=${file##*/}" |
    grep -o '"id":"[^"]*' | head -1 | cut -d '"' -f 4) || sleep 0.1
done

while :; do
  now=$(curl -sf "$url/upload/status?task=$task") || now=
  case $now in
    *'"status":"completed"'*) exit 0 ;;
    '' | *'"reason":"requested"'*) sleep 0.1 ;;
    *)
      offset=$(curl -sfI "$url/upload/status?task=$task" | tr -d '\r' | awk 'tolower($1) == "upload-offset:" {print $2}')
      tail -c "+$((offset + 1))" "$file" |
        curl -sf -X POST -T - -H "Upload-Offset: $offset" -o /dev/null "$url/upload/resume?task=$task" || sleep 0.1
      ;;
  esac
done
