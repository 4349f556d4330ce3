#!/usr/bin/env bash
# Runs all tests, one test project after the other. The last line is their sum: N passed, N failed, N skipped.
# Exit code: 0 when tests ran and none failed. Further arguments go to dotnet test: scripts/test.sh --filter Category=Fixtures
# With CI=true a test that is left out because something is missing here is a failure.
set -uo pipefail
cd "$(dirname "$0")/.."
export DOTNET_CLI_TELEMETRY_OPTOUT=1 DOTNET_NOLOGO=1 DOTNET_CLI_UI_LANGUAGE=en

output=$(mktemp)
trap 'rm -f "$output"' EXIT

# The closing line, from the closing lines of the projects, and the exit code.
conclude() {
  local status=$1 failed passed skipped
  read -r failed passed skipped < <(sed -nE 's/^(Passed|Failed|Skipped)! +- Failed: *([0-9]+), Passed: *([0-9]+), Skipped: *([0-9]+),.*/\2 \3 \4/p' "$output" \
    | awk '{ f += $1; p += $2; s += $3 } END { print f + 0, p + 0, s + 0 }')
  if [ "$passed" -eq 0 ] || [ "$failed" -ne 0 ]; then
    [ "$status" -ne 0 ] || status=1
  fi
  echo "$passed passed, $failed failed, $skipped skipped"
  exit "$status"
}

scripts/install-test-dependencies.sh || conclude 1
dotnet build LoraTrainer.sln -c Release -v quiet || conclude 1

# One project at a time (-m:1): tests that measure have the machine to themselves, and the output stays in order.
dotnet test LoraTrainer.sln -c Release --no-build -m:1 -v quiet --logger "console;verbosity=minimal" "$@" 2>&1 | tee "$output"
conclude "${PIPESTATUS[0]}"
