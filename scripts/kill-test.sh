#!/usr/bin/env bash
# Kills runs with SIGKILL at random moments, with their checkpoints in a folder and in a real S3 server, half of those with the disk lost, and compares
# the bytes that they end with. The test run does it about fifty times; this does it as often as it is told: scripts/kill-test.sh [KILLS], 200 by default.
set -euo pipefail
cd "$(dirname "$0")/.."
export DOTNET_CLI_TELEMETRY_OPTOUT=1 DOTNET_NOLOGO=1 DOTNET_CLI_UI_LANGUAGE=en CI=true LT_KILLS=${1:-200}
scripts/install-test-dependencies.sh
dotnet build tests/LoraTrainer.EndToEnd.Tests -c Release -v quiet
exec tests/LoraTrainer.EndToEnd.Tests/bin/Release/net10.0/LoraTrainer.EndToEnd.Tests -noLogo -diagnostics -class '*.CrashTests' -class '*.S3CrashTests'
