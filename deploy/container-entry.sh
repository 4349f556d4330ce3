#!/bin/sh
# What a container starts: the program, with the arguments that follow, so that a signal reaches it and its exit code is the container's.
#
#   container-entry.sh train /run/my.yaml --set resume=auto
#
# Where the platform starts an ended container again, that is all. Where it does not, LT_RESTART=1 does it here: after an interruption (75), a failure
# (1) and a kill the same command runs again, until the run is done or stopped (0), something given is wrong (2), the budget is reached (3) or
# somebody aborted it (130). When the container itself is told to stop, the program saves and nothing is started again.
#
#   LT_PROGRAM        the program                                                        lora-trainer
#   LT_RESTART        1: start it again here                                             0
#   LT_RESTART_PAUSE  seconds between two starts                                         15
#   LT_RESTART_LIMIT  failures in a row after which it ends with the last one's code     5
#   LT_RESTART_RESET  a process that ran for so many seconds ends a row of failures      600
set -u

program=${LT_PROGRAM:-lora-trainer}
if [ "${LT_RESTART:-0}" != 1 ]; then
  exec "$program" "$@"
fi

pause=${LT_RESTART_PAUSE:-15}
limit=${LT_RESTART_LIMIT:-5}
reset=${LT_RESTART_RESET:-600}
child=
told=

pass_on() {
  told=1
  [ -z "$child" ] || kill -s "$1" "$child" 2> /dev/null
}

# The shell starts background processes with SIGINT ignored, so Ctrl-C goes on as SIGTERM.
trap 'pass_on TERM' TERM INT
trap 'pass_on HUP' HUP
trap 'pass_on USR1' USR1
trap 'pass_on USR2' USR2

# A trapped signal ends "wait" early: wait again for as long as the process is there.
wait_for() {
  while :; do
    wait "$1"
    status=$?
    kill -0 "$1" 2> /dev/null || return "$status"
  done
}

failures=0
while :; do
  began=$(date +%s)
  "$program" "$@" &
  child=$!
  [ -z "$told" ] || kill -s TERM "$child"
  wait_for "$child"
  code=$?
  child=

  case $code in
    0 | 2 | 3 | 130) exit "$code" ;;
    75) failures=0 ;;
    *)
      [ $(($(date +%s) - began)) -lt "$reset" ] || failures=0
      failures=$((failures + 1))
      if [ "$failures" -ge "$limit" ]; then
        echo "container-entry: ended with $code, failure $failures in a row: given up" >&2
        exit "$code"
      fi
      ;;
  esac

  [ -z "$told" ] || exit "$code"
  echo "container-entry: ended with $code; again in $pause s" >&2
  sleep "$pause" &
  child=$!
  wait_for "$child"
  child=
  [ -z "$told" ] || exit "$code"
done
