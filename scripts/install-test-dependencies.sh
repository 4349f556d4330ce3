#!/usr/bin/env bash
# Installs the Debian packages that the tests use, where it may; it does nothing else. Where it may not, it says what is left out.
#   util-linux   runuser: the tests of a folder that may not be written run as another user
#   mount        mount: the tests of a full disk mount a small one
#   g++          the emulator that runs the GPU's kernels on the processor
#   clang-19     a second compiler that reads the kernels
#   xz-utils     unpacks NVIDIA's compiler, where it is kept beside the repository
set -euo pipefail

missing=()
command -v runuser > /dev/null || missing+=(util-linux)
command -v mount > /dev/null || missing+=(mount)
command -v g++ > /dev/null || missing+=(g++)
command -v clang-19 > /dev/null || missing+=(clang-19)
command -v xz > /dev/null || missing+=(xz-utils)
[ ${#missing[@]} -gt 0 ] || exit 0

if [ "$(id -u)" -ne 0 ] || ! command -v apt-get > /dev/null; then
  echo "Not installed, because that takes apt-get and the rights of root: ${missing[*]}. Tests that need them are skipped and say so." >&2
  exit 0
fi

export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}"
