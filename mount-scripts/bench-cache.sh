#!/usr/bin/env bash
# Measures the copy-on-read cache against reading its source, and says which of its figures are
# reached. The source delays, limits and counts what is read; it is part of the benchmark.
#
#   mount-scripts/bench-cache.sh [FOLDER]    where caches and files lie (default: a temporary folder)
#
# Root is needed. FOLDER should be on a local disk and wants about ten times CORFS_BENCH_MIB. About
# seven minutes with the default sizes; CORFS_BENCH_MIB, _FILES, _READS, _ROUNDS and _ONLY change
# them (benches/cache/main.rs). CORFS_BENCH_FILES=1000000 is the size that the memory figure is for.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$here/mount-scripts/lib.sh"

[ "$(id -u)" -eq 0 ] || die "root is needed"
folder=$(mktemp -d "$(cd "${1:-${TMPDIR:-/tmp}}" && pwd)/corfs-bench-XXXXXX")
trap 'rm -rf --one-file-system "$folder"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
chmod 755 "$folder"

install_missing mkfs.ext4=e2fsprogs losetup=util-linux fusermount3=fuse3
cd "$here"
export CORFS_TEST_DIR="$folder"
figures cache cargo bench --quiet --bench cache
