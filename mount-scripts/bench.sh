#!/bin/sh
# Measures mapped windows against pread, and .copy against cp, and prints the ratios.
#
#   mount-scripts/bench.sh [FOLDER]     on which file system (default: a temporary folder)
#
# CORFS_BENCH_MIB sets the size of the file (default 1024).
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
if [ $# -gt 0 ]; then
    folder=$(cd "$1" && pwd)
    set -- "$folder"
fi
cd "$here"
exec cargo bench --quiet --bench mapped -- "$@"
