#!/usr/bin/env bash
# Installs the Debian packages that the tests use, where it may; it does nothing else. Where it may not, it says what is left out.
#   util-linux   setpriv: the test of a folder that may not be written gives up the power to write everywhere; unshare: see mount
#   mount        mount: the tests of a full disk mount a small one, in a mount namespace of their own
#   python3      the test of the quickstart's data runs the generator that made them
#   g++          the emulator that runs the GPU's kernels on the processor
#   clang-19     a second compiler that reads the kernels
#   xz-utils     unpacks NVIDIA's compiler, where it is kept beside the repository
#   radosgw, ceph-mon, ceph-osd, ceph-common   the S3 server of the tests; 266 MB, so only under CI=true
set -euo pipefail

missing=()
{ command -v setpriv && command -v unshare; } > /dev/null || missing+=(util-linux)
command -v mount > /dev/null || missing+=(mount)
command -v python3 > /dev/null || missing+=(python3)
command -v g++ > /dev/null || missing+=(g++)
command -v clang-19 > /dev/null || missing+=(clang-19)
command -v xz > /dev/null || missing+=(xz-utils)
if [ "${CI:-}" = true ]; then
  command -v radosgw > /dev/null || missing+=(radosgw)
  command -v ceph-mon > /dev/null || missing+=(ceph-mon)
  command -v ceph-osd > /dev/null || missing+=(ceph-osd)
  { command -v ceph && command -v radosgw-admin; } > /dev/null || missing+=(ceph-common)
fi
[ ${#missing[@]} -gt 0 ] || exit 0

if [ "$(id -u)" -ne 0 ] || ! command -v apt-get > /dev/null; then
  echo "Not installed, because that takes apt-get and the rights of root: ${missing[*]}. Tests that need them are skipped and say so." >&2
  exit 0
fi

export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}"
