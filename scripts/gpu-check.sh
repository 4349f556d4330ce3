#!/usr/bin/env bash
# What has to be seen on a real GPU, in one script for a machine that has one and no .NET.
#
#   scripts/gpu-check.sh publish [COMMIT]        on a machine with the .NET SDK: packs the programs into publish/gpu-check/; with COMMIT also that
#                                                commit's benchmarks, for compare
#   scripts/gpu-check.sh STAGE [FILTER]          on the machine with the GPU; STAGE is compile, test, sanitize, bench, compare or all (all but compare)
#   scripts/gpu-check.sh report                  what the parts have come to so far
#   scripts/gpu-check.sh --stand-in STAGE        a rehearsal on the CPU stand-ins: tries this script and the programs, and says nothing about a GPU
#
# The machine needs the NVIDIA driver, NVRTC and cuBLASLt, python3, and the stages what they are about: compile nvcc (optional), sanitize
# compute-sanitizer, bench PyTorch, transformers and peft. FILTER runs only the parts whose name contains it.
#
# A part that ended well is not run again for the same programs on the same GPU. A stage stops starting parts when its time (LT_GPU_CHECK_SECONDS,
# 450) is used up; run it again to go on. Nothing passes by being left out. Exit codes: 0 every part was done and is well; 1 a part failed or
# could not be run; 75 parts are left, run it again.
#
# Results: artifacts/gpu-check/results; at the end of a stage a few files with all of it also in $OUT, if that is set.
# LT_FIXTURES: the reference fixtures (else shared/fixtures here or beside, what publish packed, tests/Golden). LT_GPU_PEERS: a folder with scripts for the other
# trainers (else shared/tools/gpu-peers here or beside, tests/Benchmarks/peers), which are not part of the repository: docs/gpu-status.md says what has to be in it.
set -uo pipefail
cd "$(dirname "$0")/.."
root=$PWD
packed=publish/gpu-check

usage() { sed -n '2,/^set -/{/^#/s/^# \{0,1\}//p}' "$0"; }

rehearsal=
[ "${1:-}" = --stand-in ] && { rehearsal=1; shift; }
stage=${1:-}
filter=${2:-}
case $stage in
  publish | compile | test | sanitize | bench | compare | all | report) ;;
  -h | --help) usage; exit 0 ;;
  '') usage >&2; exit 2 ;;
  *) { echo "there is no stage $stage"; usage; } >&2; exit 2 ;;
esac

work=$root/artifacts/gpu-check${rehearsal:+-stand-in}
results=$work/results
programs=$work/programs
mark=${rehearsal:+REHEARSAL ON THE CPU, NOT A GPU: }
say() { printf '%s%s\n' "$mark" "$*"; }

# ---- publish ------------------------------------------------------------------------------------------------------------------------------------

# The fixture folders that the GPU's tests read, as far as they are supported: the rest of the fixtures stays where it is.
fixtures_to_pack() {
  local fixtures=$1
  (cd "$fixtures" && ls -d models/llama* full/llama* peft/lora_qkv* peft/lora_all* peft/lora_layers* peft/lora_plus* peft/qlora_nf4* peft/rslora* bitsandbytes/nf4* versions.json 2> /dev/null)
}

publish() {
  local stage_folder=$root/artifacts/gpu-check-publish fixtures
  rm -rf "$stage_folder" "$packed"
  mkdir -p "$stage_folder/fixtures" "$packed"
  for project in src/LoraTrainer.Cli tests/LoraTrainer.Kernels.Tests tests/LoraTrainer.Benchmarks; do
    # Into one folder, so that the run time comes along once.
    dotnet publish "$project" -c Release -r linux-x64 --self-contained -p:PublishTrimmed=false -p:DebugType=none -v quiet -nologo -o "$stage_folder" || return 1
  done

  # What only an IDE, a debugger or a language other than English would want.
  (cd "$stage_folder" && rm -rf -- *.xml *.pdb createdump libmscordaccore.so libmscordbi.so libcoreclrtraceptprovider.so libclrgc*.so Microsoft.CodeCoverage \
    Microsoft.TestPlatform.* Microsoft.VisualStudio.* testhost* xunit.runner.visualstudio* Microsoft.VisualBasic* System.Private.DataContractSerialization.dll \
    cs de es fr it ja ko pl pt-BR ru tr zh-Hans zh-Hant)
  python3 - "$stage_folder" << 'EOF' || return 1
# The host refuses to start where a file is listed that is not there.
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
for path in folder.glob("*.deps.json"):
    deps = json.loads(path.read_text())
    for libraries in deps["targets"].values():
        for library in libraries.values():
            for kind in ("runtime", "native", "resources"):
                files = library.get(kind, {})
                for file in [file for file in files if not (folder / pathlib.PurePosixPath(file).name).exists()]:
                    del files[file]
    path.write_text(json.dumps(deps))
EOF
  for fixtures in "${LT_FIXTURES:-}" shared/fixtures ../shared/fixtures tests/Golden; do
    [ -n "$fixtures" ] && [ -d "$fixtures/models" ] && break
  done
  fixtures=$(cd "$fixtures" && pwd)
  fixtures_to_pack "$fixtures" | tar -C "$fixtures" -cf - -T - | tar -xf - -C "$stage_folder/fixtures" || return 1
  commit > "$stage_folder/commit"
  tar -C "$stage_folder" -cf - . | xz -T0 -6 > "$packed/programs.tar.xz.new" && mv "$packed/programs.tar.xz.new" "$packed/programs.tar.xz" || return 1
  cp "$stage_folder/commit" "$packed/commit"
  rm -rf "$stage_folder"
  local bytes
  bytes=$(stat -c %s "$packed/programs.tar.xz")
  say "$packed/programs.tar.xz: $((bytes / 1048576)) MiB, commit $(cat "$packed/commit"), fixtures of $fixtures"
  [ "$bytes" -lt $((60 << 20)) ] || { say "that is more than 60 MiB"; return 1; }
}

# The benchmarks of another commit: its own files only, the run time and the packages are those of the programs.
publish_before() {
  local folder status
  folder=$(mktemp -d)
  git worktree add --detach --force "$folder/checkout" "$1" > /dev/null || return 1
  dotnet publish "$folder/checkout/tests/LoraTrainer.Benchmarks" -c Release -r linux-x64 --self-contained -p:PublishTrimmed=false -p:DebugType=none -v quiet -nologo -o "$folder/out" &&
    git rev-parse --short=12 "$1" > "$folder/out/LoraTrainer.commit" &&
    (cd "$folder/out" && rm -f -- *.xml *.deps.json && tar -cf - LoraTrainer.*) | xz -6 > "$packed/before.tar.xz"
  status=$?
  git worktree remove --force "$folder/checkout"
  rm -rf "$folder"
  [ "$status" = 0 ] || return 1
  say "$packed/before.tar.xz: the benchmarks of $(git rev-parse --short=12 "$1")"
}

commit() {
  local name
  name=$(git rev-parse --short=12 HEAD) || return 1
  [ -z "$(git status --porcelain --untracked-files=no)" ] || name="$name+changes"
  echo "$name"
}

if [ "$stage" = publish ]; then
  publish && { [ -z "$filter" ] || publish_before "$filter"; }
  exit
fi

# ---- the machine --------------------------------------------------------------------------------------------------------------------------------

mkdir -p "$results/parts" "$results/logs" "$work/outputs"
if [ "$stage" != report ]; then
  archive=$packed/programs.tar.xz
  [ -f "$archive" ] || { say "$archive is not here: scripts/gpu-check.sh publish makes it on a machine with the .NET SDK"; exit 1; }
  sum=$(sha256sum < "$archive" | cut -c1-16)
  if [ "$(cat "$programs/sum" 2> /dev/null)" != "$sum" ]; then
    rm -rf "$programs"
    mkdir -p "$programs"
    python3 -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2])' "$archive" "$programs" || exit 1
    echo "$sum" > "$programs/sum"
  fi
fi

export DOTNET_CLI_TELEMETRY_OPTOUT=1 LT_REQUIRE_CUDA=1
export LT_KERNEL_CACHE=$work/kernel-cache
LT_BENCHMARK_COMMIT=$(cat "$programs/commit" 2> /dev/null || echo unknown)
export LT_BENCHMARK_COMMIT
build="$LT_BENCHMARK_COMMIT ${sum:-}"
if [ -z "${LT_FIXTURES:-}" ]; then
  for candidate in "$root/shared/fixtures" "$root/../shared/fixtures" "$programs/fixtures" "$root/tests/Golden"; do
    [ -d "$candidate/models" ] && { LT_FIXTURES=$candidate; break; }
  done
fi
export LT_FIXTURES

if [ -n "$rehearsal" ]; then
  export LT_CUDA_DIR=${LT_CUDA_DIR:-$work/stand-ins} LT_KERNEL_CACHE=off
  tests/CudaEmulator/build.sh "$LT_CUDA_DIR" || exit 1
fi

# What tools are called, where they are not on the path.
tool() { # tool NAME FOLDERS...: the first that can be run
  local name=$1 folder
  shift
  command -v "$name" && return
  for folder in "$@" /usr/local/cuda/bin /usr/local/cuda-13*/bin; do
    [ -x "$folder/$name" ] && { echo "$folder/$name"; return; }
  done
  python3 - "$name" << 'EOF'
# CUDA's tools in the Python environment: nvidia/<package>/bin.
import os, site, sys
for packages in site.getsitepackages() + [site.getusersitepackages()]:
    for folder, _, files in os.walk(os.path.join(packages, "nvidia")):
        path = os.path.join(folder, sys.argv[1])
        if sys.argv[1] in files and os.access(path, os.X_OK):
            print(path)
            sys.exit()
sys.exit(1)
EOF
}

# ---- parts --------------------------------------------------------------------------------------------------------------------------------------

started=$SECONDS
budget=${LT_GPU_CHECK_SECONDS:-450}
failed=0 left=0 ran=0 begun=0
summary=()
left_out=()

record() { # record PART STATE SECONDS TEXT
  printf '%s\n%s\n%s\n%s\n%s\n' "$2" "$3" "$4" "$build" "$machine" > "$results/parts/$1"
  summary+=("$(printf '%-9s %-34s %5ss  %s' "$2" "$1" "$3" "$4")")
}

# part NAME EXPECTED_SECONDS COMMAND...: runs it with its log in logs/NAME.log; the last line of that file that begins with "result: " is its sentence.
part() {
  local name=$1 expected=$2 log=$results/logs/$1.log state=() begin took status sentence remaining
  shift 2
  [[ $name == *"$filter"* ]] || return 0
  ran=$((ran + 1))
  mapfile -t state < <(cat "$results/parts/$name" 2> /dev/null)
  if [ "${state[0]:-}" = ok ] && [ "${state[3]:-}" = "$build" ] && [ "${state[4]:-}" = "$machine" ]; then
    summary+=("$(printf '%-9s %-34s %5ss  %s' ok "$name" "${state[1]}" "${state[2]} (run before)")")
    return 0
  fi

  remaining=$((budget - (SECONDS - started)))
  if [ "$remaining" -lt "$expected" ] && [ "$begun" -gt 0 ]; then
    left=$((left + 1))
    summary+=("$(printf '%-9s %-34s        %s' "not run" "$name" "its time is up; run this stage again")")
    return 0
  fi

  begun=$((begun + 1))
  say "$name ..."
  begin=$SECONDS
  (timeout --kill-after=10 "$remaining" bash -c 'set -o pipefail; "$@"' part "$@") > "$log" 2>&1
  status=$?
  took=$((SECONDS - begin))
  sentence=$(sed -n 's/^result: //p' "$log" | tail -n 1)
  case $status in
    0) record "$name" ok "$took" "${sentence:-done}" ;;
    124 | 137) failed=$((failed + 1)); record "$name" timeout "$took" "stopped after ${remaining} s; $log" ;;
    *)
      failed=$((failed + 1))
      record "$name" failed "$took" "${sentence:-exit code $status}; $log"
      tail -n 25 "$log" | sed "s/^/    /"
      ;;
  esac
  say "${summary[-1]}"
}

missing() { # missing NAME REASON: a part that has to be run and cannot
  [[ $1 == *"$filter"* ]] || return 0
  failed=$((failed + 1))
  record "$1" missing 0 "$2"
  say "${summary[-1]}"
}

optional() { # optional NAME REASON: a part that may be left out, aloud
  [[ $1 == *"$filter"* ]] || return 0
  left_out+=("$1")
  record "$1" left-out 0 "$2"
  say "${summary[-1]}"
}

# What says something about the stand-ins, the sources or other compilers, and nothing about a GPU. Named one by one: a test that is skipped for any
# other reason is a failure.
only_on_stand_ins="-class- *.CudaSourcesTests -class- *.PlantedMistakesTests -method- *.CountsTests.Step_EveryCall_*
  -method- *.EveryKernelTests.Results_WithAnyNumberOfWorkers_* -method- *.EveryKernelTests.Child -method- *.EveryKernelTests.Cases_Together_LaunchEveryKernel
  -method- *.CheckedKernelsTests.Launch_MisalignedVector_IsAFault -method- *.MemorySwitchTests.PagedMoments_* -method- *.LargestPassTests.TryLargest_LoadsAllThatPassesNeed"

# Functions that parts run: they are called in a shell of their own.
export root work results programs packed rehearsal only_on_stand_ins

# The rows of a command are its standard output. What it left out it says on standard error.
rows_to() { # rows_to FILE COMMAND...
  local file=$1 status rows out
  shift
  "$@" > "$file.new" 2> "$file.messages"
  status=$?
  mv "$file.new" "$file"
  cat "$file.messages"
  rows=$(($(wc -l < "$file") + $(grep -c '^rehearsal, no result: ' "$file.messages")))
  out=$(grep -c ' left out: ' "$file.messages")
  rm -f "$file.messages"
  echo "result: $rows rows$([ "$out" = 0 ] || echo ", $out left out (the log says which)")"
  [ "$status" = 0 ] && [ "$rows" -gt 0 ]
}

doctor() {
  "$programs/lora-trainer" doctor || return 1
  "$programs/lora-trainer" doctor --json > "$results/doctor.json" 2> /dev/null
  python3 - "$results/doctor.json" << 'EOF'
import json, sys
cuda = json.load(open(sys.argv[1]))["cuda"]
if not cuda["available"]:
    print("result:", cuda["reason"])
    sys.exit(1)
print("result:", cuda["device"]["name"], ", ".join(f'{library["name"]} {library["version"]}' for library in cuda["libraries"]))
EOF
}

# One nvcc run a file, and one for each head dim that matters, as many at once as there are processors: registers and spills in the assembler's words.
nvcc_all() {
  local nvcc=$1 architecture=$2 file define defines outputs=$work/outputs/nvcc
  rm -rf "$outputs"
  mkdir -p "$outputs"
  for file in kernels/*.cu; do
    defines=(LT_NOTHING)
    grep -q LT_HEAD_DIM "$file" && defines=(LT_HEAD_DIM={16,64,80,96,128,192,256} LT_SCORES=1,LT_HEAD_DIM={64,96,128,256} LT_SCORES=2,LT_HEAD_DIM={64,128,256})
    for define in "${defines[@]}"; do echo "$file $define"; done
  done | xargs -P "$(nproc)" -L 1 bash -c 'log=$2/$(basename "$3" .cu)-$4; echo "== $3 $4" > "$log.txt"
    "$0" -std=c++17 -O3 -arch="sm_$1" -cubin -Xptxas -v -D${4/,/ -D} -o "$log.cubin" "$3" >> "$log.txt" 2>&1 || touch "$log.failed"' "$nvcc" "$architecture" "$outputs"
  cat "$outputs"/*.txt | tee "$results/compile-nvcc.txt"
  local failures
  failures=$(find "$outputs" -name '*.failed' | wc -l)
  echo "result: $failures files do not compile; $(grep -c 'Used [0-9]* registers' "$results/compile-nvcc.txt") kernels, $(grep -E '[1-9][0-9]* bytes spill' "$results/compile-nvcc.txt" | wc -l) with spills"
  [ "$failures" = 0 ] && [ -n "$(find "$outputs" -name '*.cubin')" ]
}

# Tests of the kernels' test program. One that was skipped, and none at all, are failures.
run_tests() { # run_tests NAME FILTERS...
  local xml=$results/tests-$1.xml status -
  set -f   # the filters' stars are the test program's
  shift
  "$programs/LoraTrainer.Kernels.Tests" -noColor -noLogo -failSkips -trait Category=Emulator $only_on_stand_ins "$@" -xml "$xml"
  status=$?
  test_counts "$xml" || status=1
  return "$status"
}

test_counts() {
  python3 - "$1" << 'EOF'
import sys, xml.etree.ElementTree as tree
tests = list(tree.parse(sys.argv[1]).iter("test"))
count = lambda result: sum(test.get("result") == result for test in tests)
skipped = [f'{test.get("name")}: {(test.findtext("reason") or "no reason").strip()}' for test in tests if test.get("result") == "Skip" or test.find("reason") is not None]
for line in skipped:
    print("skipped:", line)
print(f'result: {count("Pass")} passed, {count("Fail")} failed, {len(skipped)} skipped')
sys.exit(0 if tests and count("Pass") == len(tests) else 1)
EOF
}

train_quickstart() { # train_quickstart FOLDER WRAPPER...: three steps of the quickstart on the GPU
  local folder=$1
  shift
  rm -rf "$folder"
  "$@" "$programs/lora-trainer" train configs/quickstart.yaml --quiet --set device=cuda --set max_steps=3 --set warmup_steps=1 --set logging_steps=1 \
    --set evaluate_before=false --set evaluate_after=false --set "output_dir=$folder" || return 1
  python3 - "$folder/summary.json" << 'EOF'
import json, math, sys
summary = json.load(open(sys.argv[1]))
losses = summary["loss"]
print(f'result: {summary["steps"]} steps, loss {losses["first"]:.4f} at the first, {losses["last"]:.4f} at the last')
sys.exit(0 if summary["steps"] == 3 and all(math.isfinite(value) for value in losses.values()) else 1)
EOF
}

# The quickstart, killed with SIGKILL at three moments and resumed, against the same steps in one go: adapter, optimizer and losses.
train_through_kills() { # train_through_kills FOLDER
  local folder=$1 process from target kills=0 options=(--quiet --set device=cuda --set max_steps=120 --set save_steps=7 --set logging_steps=1
    --set evaluate_before=false --set evaluate_after=false)
  rm -rf "$folder"
  mkdir -p "$folder"
  "$programs/lora-trainer" train configs/quickstart.yaml "${options[@]}" --set "output_dir=$folder/whole" || return 1
  for target in 15 20 30; do
    if [ -f "$folder/killed/config.resolved.yaml" ]; then
      "$programs/lora-trainer" resume "$folder/killed" --quiet &
    else
      "$programs/lora-trainer" train configs/quickstart.yaml "${options[@]}" --set "output_dir=$folder/killed" &
    fi
    process=$!
    # After so many more lines of the log, so that the kill falls among the steps on any card.
    from=$(cat "$folder/killed/log.jsonl" 2> /dev/null | wc -l)
    while kill -0 "$process" 2> /dev/null && [ "$(cat "$folder/killed/log.jsonl" 2> /dev/null | wc -l)" -lt $((from + target)) ]; do sleep 0.01; done
    kill -9 "$process" 2> /dev/null && kills=$((kills + 1))
    wait "$process" 2> /dev/null
  done
  "$programs/lora-trainer" resume "$folder/killed" --quiet || return 1
  python3 - "$folder" "$kills" << 'EOF'
import hashlib, json, pathlib, sys
folder, kills = pathlib.Path(sys.argv[1]), int(sys.argv[2])
def end_of(run):
    checkpoint = max(run.glob("checkpoints/*/step-*"))
    losses = {row["step"]: row["loss"] for row in map(json.loads, open(run / "log.jsonl")) if "loss" in row and "step" in row}
    digest = lambda file: hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    return digest(run / "adapter_model.safetensors"), digest(checkpoint / "optimizer.safetensors"), checkpoint.name[:13], losses
whole, killed = end_of(folder / "whole"), end_of(folder / "killed")
same = whole == killed and len(whole[3]) > 100
print("whole ", whole[:3], len(whole[3]), "losses")
print("killed", killed[:3], len(killed[3]), "losses, other ones at steps", [step for step in whole[3] if whole[3][step] != killed[3].get(step)][:10])
print(f"result: killed {kills} times; adapter, optimizer and losses are {'the same' if same else 'NOT the same'}")
sys.exit(0 if same and kills > 0 else 1)
EOF
}

sanitized_tests() { # sanitized_tests TOOL SANITIZER FILTERS...
  local tool=$1 sanitizer=$2 log=$results/logs/sanitizer-$1-tests.txt status xml=$results/sanitize-$1.xml
  shift 2
  wrapped "$tool" "$sanitizer" "$log" "$programs/LoraTrainer.Kernels.Tests" -noColor -noLogo -failSkips "$@" -xml "$xml"
  status=$?
  test_counts "$xml" || status=1
  sanitizer_result "$log" || status=1
  return "$status"
}

sanitized_training() { # sanitized_training TOOL SANITIZER
  local log=$results/logs/sanitizer-$1-training.txt status
  train_quickstart "$work/outputs/sanitize-$1" wrapped "$1" "$2" "$log"
  status=$?
  sanitizer_result "$log" || status=1
  return "$status"
}

wrapped() { # wrapped TOOL SANITIZER LOG COMMAND...
  local tool=$1 sanitizer=$2 log=$3
  shift 3
  if [ "$sanitizer" = none ]; then
    # The rehearsal's nearest thing: the emulator finds undefined behaviour in kernels.
    echo "========= ERROR SUMMARY: 0 errors (no sanitizer was run)" > "$log"
    LT_EMULATOR_CHECKED=1 "$@"
  else
    # What the driver's calls return is the program's business: it checks each, and asks for a kernel's parameters until there are no more.
    # shellcheck disable=SC2046
    "$sanitizer" --tool "$tool" $([ "$tool" = memcheck ] && echo --report-api-errors no) --error-exitcode 99 --print-limit 50 --log-file "$log" "$@"
  fi
}

sanitizer_result() {
  cat "$1"
  local line
  line=$(grep -E 'ERROR SUMMARY|RACECHECK SUMMARY' "$1" | tail -n 1)
  echo "result: ${line:-the sanitizer wrote no summary}"
  [[ $line == *" 0 errors"* || $line == *" 0 hazards"* ]]
}

# The peers' archives, unpacked once, wherever they lie; prints the path for Python.
peer_path() {
  python3 - "$work/peers" ${LT_GPU_PEERS:+"$LT_GPU_PEERS"} tests/Benchmarks/peers shared/tools/gpu-peers ../shared/tools/gpu-peers << 'EOF'
import pathlib, sys, tarfile, zipfile
target, *sources = map(pathlib.Path, sys.argv[1:])
if not (target / "done").exists():
    target.mkdir(parents=True, exist_ok=True)
    for source in sources:
        for archive in source.glob("*.tar.xz"):
            tarfile.open(archive).extractall(target)
        for wheel in source.glob("*.whl"):
            zipfile.ZipFile(wheel).extractall(target)
    (target / "done").touch()
# An archive may hold the package itself, or a folder around it.
print(":".join(sorted({str(found.parent.parent) for found in target.glob("**/bitsandbytes/__init__.py")} | {str(found.parent.parent) for found in target.glob("**/liger_kernel/__init__.py")} or {str(target)})))
EOF
}

peer() { # peer FILE SHAPE MODE ARGUMENTS...
  local file=$1 peers=$2 path
  shift 2
  path=$(peer_path) || return 1
  PYTHONPATH=$path${PYTHONPATH:+:$PYTHONPATH} rows_to "$file" python3 "$peers/bench_peers.py" "$@" || return 1
  cat "$file"
  echo "result: $(python3 -c 'import json, sys; row = json.loads(open(sys.argv[1]).readlines()[-1]); print(row["tokens_per_s"], "tokens/s,", row["peak_gib"], "GiB, GEMM", row["bf16_gemm_tflops"], "TFLOP/s")' "$file")"
}

# PyTorch's and bitsandbytes' operations beside the rows of ours that this stage has just measured. A rehearsal says which have a counterpart.
peer_kernels() {
  local path rows=("$results"/bench-{copy,kernel,gemm,linear,attention}.jsonl) status
  if [ -n "$rehearsal" ]; then
    python3 scripts/peer-kernels.py --list "$results"/logs/bench-{copy,kernel,gemm,linear,attention}.log > "$results/beside-kernels.txt"
    status=$?
    echo "result: $(wc -l < "$results/beside-kernels.txt") rows have a counterpart; none was measured"
    return "$status"
  fi
  path=$(peer_path) || return 1
  PYTHONPATH=$path${PYTHONPATH:+:$PYTHONPATH} rows_to "$results/beside-kernels.jsonl" python3 scripts/peer-kernels.py "${rows[@]}"
}

# Our steps against the best of the peers' runs of the same shape, as far as both are there.
steps_beside_peers() {
  python3 - "$results" << 'EOF'
import glob, json, sys
folder, methods = sys.argv[1], {"nf4": "qlora_nf4", "bf16": "lora_bf16", "int8": "lora_int8"}
rows = lambda pattern: [json.loads(line) for path in sorted(glob.glob(f"{folder}/{pattern}")) for line in open(path)]
best = {}
for row in rows("peer-*.jsonl"):
    name = f'cuda_step_{methods[row["mode"]]}{"_all16" if row["rank"] == 16 else ""}_8b_{row["batch"]}x{row["seq"]}{"_recompute" if row["ckpt"] else ""}'
    if name not in best or row["tokens_per_s"] > best[name]["tokens_per_s"]:
        best[name] = row
with open(f"{folder}/beside-steps.jsonl", "w") as out:
    for own in rows("bench-step-*.jsonl"):
        if (peer := best.get(own["name"])) is None:
            continue
        versions = ", ".join(f"{library} {version}" for library, version in peer["versions"].items())
        kind = "Liger's kernels" if peer["liger"] else "compiled" if peer["compile"] else "plain"
        out.write(json.dumps(dict(name=own["name"] + "_beside", value=own["value"], unit=own["unit"], baseline=f"best of PEFT ({kind}; {versions})", baseline_value=peer["tokens_per_s"],
            ratio=round(own["value"] / peer["tokens_per_s"], 3), machine=own["machine"], commit=own["commit"], command="scripts/gpu-check.sh bench")) + "\n")
        print(f'{own["name"]:50} {own["value"]:10,.0f} tokens/s, the best of PEFT ({kind}) {peer["tokens_per_s"]:10,.0f}: x {own["value"] / peer["tokens_per_s"]:.2f}')
EOF
}

bitsandbytes_codes() { # bitsandbytes_codes PEERS: what the library's CUDA kernels make, against ours
  local peers=$1 path folder=$work/cuda-fixtures/bitsandbytes
  path=$(peer_path) || return 1
  rm -rf "$folder"
  PYTHONPATH=$path${PYTHONPATH:+:$PYTHONPATH} python3 "$peers/cuda_fixtures.py" "$folder" || return 1
  LT_FIXTURES=$work/cuda-fixtures run_tests bitsandbytes -method '*.FourBitKernelTests.Fixtures_*'
}
# Both builds in turns, twice, so that what disturbs the machine meets both.
compare_builds() { # compare_builds ROWS OPTIONS...
  local rows=$1 round build before=$work/before
  shift
  [ -f "$packed/before.tar.xz" ] || { echo "result: $packed/before.tar.xz is not here: scripts/gpu-check.sh publish COMMIT makes it"; return 1; }
  rm -rf "$before"
  cp -a "$programs" "$before" && python3 -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2])' "$packed/before.tar.xz" "$before" || return 1
  for round in 1 2; do
    for build in "$before" "$programs"; do
      LT_BENCHMARK_COMMIT=$(cat "$build/LoraTrainer.commit" 2> /dev/null || cat "$build/commit") \
        rows_to "$results/compare-$rows$round-${build##*/}.jsonl" "$build/LoraTrainer.Benchmarks" "$@" "cuda_$rows" || return 1
    done
  done
  python3 - "$results" "$rows" "$rehearsal" << 'EOF'
import json, pathlib, statistics, sys
folder, name = pathlib.Path(sys.argv[1]), sys.argv[2]
def rates(build):
    found = {}
    for round in "12":
        for row in map(json.loads, open(folder / f"compare-{name}{round}-{build}.jsonl")):
            found.setdefault(row["name"], []).append((row["value"], row["ratio"], row["unit"]))
    return found
before, after = rates("before"), rates("programs")
rows = [row for row in after if row in before]
for row in rows:
    old, new = ([statistics.mean(value[i] for value in rates[row]) for i in (0, 1)] for rates in (before, after))
    print(f"{row:58} {old[0]:8.1f} -> {new[0]:8.1f} {after[row][0][2]:8} of the baseline {old[1]:.3f} -> {new[1]:.3f}  x {new[0] / old[0]:.3f}")
print(f"result: {len(rows)} rows of both builds" + "".join(f"; only one has {row}" for row in sorted(before.keys() ^ after.keys())))
sys.exit(0 if rows or sys.argv[3] else 1)
EOF
}
export -f compare_builds rows_to doctor nvcc_all run_tests test_counts train_quickstart train_through_kills sanitized_tests sanitized_training wrapped sanitizer_result peer_path peer peer_kernels bitsandbytes_codes

# ---- stages -------------------------------------------------------------------------------------------------------------------------------------

compile_stage() {
  local nvcc architecture
  part compile-nvrtc 60 rows_to "$results/compile-nvrtc.jsonl" "$programs/LoraTrainer.Benchmarks" --compile-kernels
  if nvcc=$(tool nvcc) && [ -z "$rehearsal" ]; then
    architecture=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["cuda"]["device"]["compute_capability"].replace(".", ""))' "$results/doctor.json")
    # As KernelTarget has it: the instructions that only the 9.0 chip has are in sm_90a.
    [ "$architecture" = 90 ] && [ "$("$nvcc" --version | sed -n 's/.*release \([0-9]*\).*/\1/p')" -ge 12 ] && architecture=90a
    part compile-nvcc 120 nvcc_all "$nvcc" "$architecture"
  else
    optional compile-nvcc "there is no nvcc here; a run does not need it"
  fi
}

test_stage() {
  local class classes
  say "not on a GPU: $(echo $only_on_stand_ins | sed 's/-class- //g; s/-method- //g')"
  classes=$("$programs/LoraTrainer.Kernels.Tests" -noColor -noLogo -trait Category=Emulator $only_on_stand_ins -list classes | grep -E '^[A-Za-z0-9_.]+$')
  [ -n "$classes" ] || missing test "the test program lists no tests of the GPU"
  part test-quickstart 30 train_quickstart "$work/outputs/quickstart"
  if [ -n "$rehearsal" ] && [ -z "${LT_REHEARSE_KILLS:-}" ]; then
    optional test-kills "takes long on the stand-ins; LT_REHEARSE_KILLS=1 rehearses it"
  else
    part test-kills 60 train_through_kills "$work/outputs/kills"
  fi
  for class in $classes; do
    part "test-${class##*.}" 60 run_tests "${class##*.}" -class "$class"
  done
}

sanitize_stage() {
  local sanitizer tool
  if [ -n "$rehearsal" ]; then
    sanitizer=none
  elif ! sanitizer=$(tool compute-sanitizer /usr/local/cuda/compute-sanitizer); then
    missing sanitize "there is no compute-sanitizer here (apt-get install cuda-sanitizer-13-0)"
    return
  fi
  for tool in memcheck racecheck initcheck; do
    part "sanitize-$tool-training" 120 sanitized_training "$tool" "$sanitizer"
    part "sanitize-$tool-tests" 150 sanitized_tests "$tool" "$sanitizer" -method '*.EveryKernelTests.Results_AgainAndInEveryOrder_*'
  done
}

# The shapes of cuda_step_*, as the peers' script names them, the ones that were published first: MODE BATCH SEQ RANK TARGETS.
peer_steps="nf4 4 512 8 qkv
nf4 1 2048 8 qkv
bf16 4 512 8 qkv
bf16 1 2048 8 qkv
nf4 8 512 8 qkv
bf16 8 512 8 qkv
nf4 1 2048 16 all
nf4 4 512 16 all
bf16 1 2048 16 all
bf16 4 512 16 all
int8 4 512 8 qkv
int8 1 2048 8 qkv
int8 8 512 8 qkv
int8 1 2048 16 all
nf4 8 2048 8 qkv
bf16 8 2048 8 qkv"

bench_stage() {
  local rows peers candidate kind step steps mode batch seq rank targets name shrink=()
  mapfile -t steps <<< "$peer_steps"
  [ -z "$rehearsal" ] || shrink=(--shrink)
  for rows in copy kernel_ gemm_ linear_ attention_; do
    part "bench-${rows%_}" 60 rows_to "$results/bench-${rows%_}.jsonl" "$programs/LoraTrainer.Benchmarks" "${shrink[@]}" "cuda_$rows"
  done
  if [ -n "$rehearsal" ] || python3 -c 'import torch' 2> /dev/null; then
    part bench-peer-kernels 150 peer_kernels
  else
    optional bench-peer-kernels "there is no PyTorch here"
  fi
  for rows in qlora_nf4_8b lora_bf16_8b lora_int8_8b dora_bf16_8b qlora_nf4_all16 lora_bf16_all16 lora_int8_all16 dora_bf16_all16; do
    part "bench-step-$rows" 90 rows_to "$results/bench-step-$rows.jsonl" "$programs/LoraTrainer.Benchmarks" "${shrink[@]}" "cuda_step_$rows"
  done

  peers=
  for candidate in "${LT_GPU_PEERS:-}" tests/Benchmarks/peers shared/tools/gpu-peers ../shared/tools/gpu-peers; do
    [ -n "$candidate" ] && [ -f "$candidate/bench_peers.py" ] && { peers=$candidate; break; }
  done
  if [ -n "$rehearsal" ]; then
    optional bench-peers "the peers need a GPU"
    part bench-bitsandbytes 60 run_tests bitsandbytes -method "*.FourBitKernelTests.Fixtures_*"
  elif [ -z "$peers" ]; then
    optional bench-peers "no folder with bench_peers.py is here; LT_GPU_PEERS names one"
    optional bench-bitsandbytes "no folder with cuda_fixtures.py is here; LT_GPU_PEERS names one"
  else
    part bench-bitsandbytes 60 bitsandbytes_codes "$peers"

    # Plain, then with Liger's kernels, then compiled: the best of them is what ours is held against.
    for kind in "" --liger --compile; do
      for step in "${steps[@]}"; do
        read -r mode batch seq rank targets <<< "$step"
        name=$mode-$([ "$targets" = qkv ] || echo "all$rank-")${batch}x$seq${kind:+-${kind#--}}
        # shellcheck disable=SC2086
        part "bench-peer-$name" 110 peer "$results/peer-$name.jsonl" "$peers" llama8b "$mode" --batch "$batch" --seq "$seq" --rank "$rank" --targets "$targets" $kind
      done
    done
    part bench-peer-nf4-1x2048-recompute 110 peer "$results/peer-nf4-1x2048-recompute.jsonl" "$peers" llama8b nf4 --batch 1 --seq 2048 --rank 8 --targets qkv --ckpt
    part bench-peer-nf4-all16-8x2048-recompute 150 peer "$results/peer-nf4-all16-8x2048-recompute.jsonl" "$peers" llama8b nf4 --batch 8 --seq 2048 --rank 16 --targets all --ckpt
    steps_beside_peers
  fi
}

compare_stage() {
  local rows shrink=()
  [ -z "$rehearsal" ] || shrink=(--shrink)
  for rows in kernel_ attention_; do
    part "compare-${rows%_}" 100 compare_builds "$rows" "${shrink[@]}"
    grep -h '^cuda_' "$results/logs/compare-${rows%_}.log" 2> /dev/null
  done
}

# ---- run ----------------------------------------------------------------------------------------------------------------------------------------

# Few files, so that any way of bringing them back will do.
hand_over() {
  cat "$results"/bench-*.jsonl > "$results/bench.jsonl" 2> /dev/null
  cat "$results"/peer-*.jsonl > "$results/peers.jsonl" 2> /dev/null
  cat "$results"/beside-*.jsonl > "$results/beside.jsonl" 2> /dev/null
  { say "$(cat "$results/machine" 2> /dev/null)"; say "commit $LT_BENCHMARK_COMMIT"; printf "$mark%s\n" "${summary[@]}"; } > "$results/summary-$stage.txt"
  [ -n "${OUT:-}" ] && [ -d "${OUT:-}" ] || return 0
  tar -C "$work" -czf "$OUT/gpu-check-results${rehearsal:+-rehearsal}.tar.gz" results
  cp "$results/summary-$stage.txt" "$OUT/"
  [ -d "$work/cuda-fixtures" ] && tar -C "$work" -cJf "$OUT/cuda-fixtures.tar.xz" cuda-fixtures
  local file
  for file in bench.jsonl peers.jsonl beside.jsonl compile-nvrtc.jsonl; do
    [ -s "$results/$file" ] && cp "$results/$file" "$OUT/"
  done
}

if [ "$stage" = report ]; then
  machine=$(cat "$results/machine" 2> /dev/null)
  [ -n "$(ls "$results/parts")" ] || { say "nothing has been run yet"; exit 0; }
  for name in "$results"/parts/*; do
    mapfile -t state < "$name"
    say "$(printf '%-9s %-34s %5ss  %s  [%s, %s]' "${state[0]}" "$(basename "$name")" "${state[1]}" "${state[2]}" "${state[3]}" "${state[4]}")"
  done
  exit 0
fi

machine=$({ nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2> /dev/null || echo "unknown GPU"; } | head -n 1)
[ -z "$rehearsal" ] || machine="CPU stand-ins"
echo "$machine" > "$results/machine"
say "$machine, commit $LT_BENCHMARK_COMMIT, fixtures ${LT_FIXTURES:-none}, results in ${results#"$root"/}"

if [ -z "$rehearsal" ] && [ -n "${LT_CUDA_DIR:-}" ] && grep -q lt_standin_count "$LT_CUDA_DIR"/libcuda.so* 2> /dev/null; then
  say "LT_CUDA_DIR names the CPU stand-ins; --stand-in rehearses with them"
  exit 1
fi

keep_filter=$filter
filter=
rm -f "$results/parts/doctor"
part doctor 20 doctor
if [ "$failed" -gt 0 ] && [ -z "$rehearsal" ]; then
  # Are the libraries only where the program does not look? Then the rest can still be seen.
  found=$(python3 -c 'import glob, site; print(":".join(sorted(path for packages in site.getsitepackages() for path in glob.glob(packages + "/nvidia/*/lib"))))')
  if [ -n "$found" ]; then
    export LD_LIBRARY_PATH=$found${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    failed=0
    rm -f "$results/parts/doctor"
    part doctor-with-library-path 20 doctor
    [ "$failed" -gt 0 ] || say "the program found its libraries only with LD_LIBRARY_PATH=$found: a defect of its search"
  fi
fi
if [ "$failed" -gt 0 ]; then
  nvidia-smi 2>&1 | head -n 15
  hand_over
  exit 1
fi

filter=$keep_filter
ran=0 begun=0
case $stage in
  compile) compile_stage ;;
  test) test_stage ;;
  sanitize) sanitize_stage ;;
  bench) bench_stage ;;
  compare) compare_stage ;;
  all) compile_stage; test_stage; sanitize_stage; bench_stage ;;
esac

say "---- $stage"
for line in "${summary[@]}"; do say "$line"; done
hand_over
[ "$ran" -gt 0 ] || { say "no part of $stage has a name with \"$filter\" in it"; exit 1; }
if [ "$failed" -gt 0 ]; then say "$stage: $failed parts failed or could not be run"; exit 1; fi
if [ "$left" -gt 0 ]; then say "$stage: $left parts are left; run it again"; exit 75; fi
say "$stage: every part that was run is well${left_out[*]:+; left out: ${left_out[*]}}"
