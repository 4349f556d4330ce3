#!/usr/bin/env bash
# Runs all tests, one test project after the other. What was skipped is listed with its reason; the last line is the sum: N passed, N failed, N skipped.
# Exit code: 0 when tests ran and none failed. Further arguments go to dotnet test: scripts/test.sh --filter Category=Fixtures
# With CI=true a test that is left out because something is missing here is a failure.
set -uo pipefail
cd "$(dirname "$0")/.."
export DOTNET_CLI_TELEMETRY_OPTOUT=1 DOTNET_NOLOGO=1 DOTNET_CLI_UI_LANGUAGE=en

output=$(mktemp)
results=$(mktemp -d)
trap 'rm -rf "$output" "$results"' EXIT

# The reason of each skipped test, from the reports of the projects. A test without one was not asked to run: it runs in child processes only.
skipped_with_reasons() {
  find "$results" -name '*.trx' -exec cat {} + | awk '
    /<UnitTestResult / { name = ""; if (/outcome="NotExecuted"/ && match($0, /testName="[^"]*"/)) name = substr($0, RSTART + 10, RLENGTH - 11) }
    name != "" && /<Message>/ { message = ""; inside = 1; sub(/.*<Message>/, "") }
    inside {
      ends = sub(/<\/Message>.*/, "")
      message = message (message == "" ? "" : " ") $0
      if (ends) { inside = 0; sub(/\(.*/, "", name); sub(/.*Tests\./, "", name); print message "\t" name; name = "" }
    }' \
  | sed 's/&quot;/"/g; s/&apos;/'"'"'/g; s/&lt;/</g; s/&gt;/>/g; s/&#x[AD];/ /g; s/&amp;/\&/g' | sort \
  | awk -F '\t' '
    NR == 1 { print "skipped, with reasons:" }
    $1 != reason { if (NR > 1) show(); reason = $1; count = 0; names = ""; last = "" }
    { count++; if ($2 != last) { names = names (names == "" ? "" : ", ") $2; last = $2 } }
    END { if (NR > 0) show() }
    function show() { printf "  %d: %s (%s)\n", count, reason, names }'
}

# What the tests over the reference fixtures found: how many cases were run, and which are of kinds that are not supported yet.
fixtures_found() {
  find "$results" -name '*.trx' -exec cat {} + | awk '
    /<UnitTestResult / { discovery = /testName="[^"]*\.Discovery_/ }
    discovery && /<StdOut>/ { inside = 1; sub(/.*<StdOut>/, "") }
    inside {
      ends = sub(/<\/StdOut>.*/, "")
      if ($0 != "") { if (!count++) print "fixtures:"; print "  " $0 }
      if (ends) inside = 0
    }' \
  | sed 's/&quot;/"/g; s/&lt;/</g; s/&gt;/>/g; s/&#x[AD];//g; s/&amp;/\&/g'
}

# The closing line, from the closing lines of the projects, and the exit code.
conclude() {
  local status=$1 failed passed skipped
  read -r failed passed skipped < <(sed -nE 's/^(Passed|Failed|Skipped)! +- Failed: *([0-9]+), Passed: *([0-9]+), Skipped: *([0-9]+),.*/\2 \3 \4/p' "$output" \
    | awk '{ f += $1; p += $2; s += $3 } END { print f + 0, p + 0, s + 0 }')
  if [ "$passed" -eq 0 ] || [ "$failed" -ne 0 ]; then
    [ "$status" -ne 0 ] || status=1
  fi
  fixtures_found
  skipped_with_reasons
  echo "$passed passed, $failed failed, $skipped skipped"
  exit "$status"
}

scripts/install-test-dependencies.sh || conclude 1
dotnet build LoraTrainer.sln -c Release -v quiet || conclude 1

# What users get, compiled ahead: the tests start it some thousand times.
dotnet publish src/LoraTrainer.Cli -c Release -r linux-x64 --no-self-contained -p:RunAnalyzers=false -o artifacts/program -v quiet --nologo || conclude 1
export LT_TEST_PROGRAM="$PWD/artifacts/program/lora-trainer.dll"

# One project at a time (-m:1): tests that measure have the machine to themselves, and the output stays in order.
dotnet test LoraTrainer.sln -c Release --no-build -m:1 -v quiet --logger "console;verbosity=minimal" --logger trx --results-directory "$results" "$@" 2>&1 | tee "$output"
conclude "${PIPESTATUS[0]}"
