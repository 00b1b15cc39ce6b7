#!/usr/bin/env bash
# Measures corfs on one file system and writes docs/BENCHMARKS.md from what was found.
#
#   mount-scripts/benchmarks.sh [FOLDER]    on which file system (default: a temporary folder)
#
# The default sizes take about 6 minutes on two quiet processors, after a release build. As root it
# measures passthrough, and cold caches with CORFS_BENCH_COLD=1. Peers that are installed (bindfs,
# mergerfs, fuse-overlayfs) are measured beside. Sizes come from the environment: CORFS_BENCH_MIB
# (the large file, 128), CORFS_BENCH_FILES (small ones, 1000), CORFS_BENCH_ROUNDS (5). The page goes
# to CORFS_BENCH_PAGE; runs, as JSON and as pages with plots, are kept in target/benchmarks. The
# figures that bench-speed.sh, bench-copy.sh and bench-cache.sh have reached here last are added.
# CORFS_BENCH_CORFS names a program that is built already.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$here/mount-scripts/lib.sh"

mib=${CORFS_BENCH_MIB:-128}
files=${CORFS_BENCH_FILES:-1000}
rounds=${CORFS_BENCH_ROUNDS:-5}
page=${CORFS_BENCH_PAGE:-$here/docs/BENCHMARKS.md}
runs=$here/target/benchmarks

folder=$(mktemp -d "$(cd "${1:-${TMPDIR:-/tmp}}" && pwd)/corfs-benchmarks-XXXXXX")
trap 'rm -rf "$folder"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

peers=()
# The words of a command that bench is to fill in itself.
# shellcheck disable=SC2016
peer() {
    have "$1" || return 0
    peers+=(--peer "$1=$2")
}
[ "$(id -u)" -ne 0 ] || install_missing bindfs=bindfs strace=strace
peer bindfs 'bindfs -f {SRC} {MNT}'
peer mergerfs 'mergerfs -f {SRC} {MNT}'
peer fuse-overlayfs 'fuse-overlayfs -f -o lowerdir={SRC} {MNT}'

cd "$here"
corfs=${CORFS_BENCH_CORFS:-$here/target/release/corfs}
[ -n "${CORFS_BENCH_CORFS:-}" ] || cargo build --release --quiet
mkdir -p "$runs"

# Measures one experiment: measure NAME, then its words.
measure() {
    local name=$1 began=$SECONDS
    shift
    say "corfs bench $name"
    # Its table is printed again from what is saved.
    "$corfs" bench "$name" --dir "$folder" --rounds "$rounds" --json "$runs/$name.json" \
        --html "$runs/$name.html" "$@" >/dev/null
    say "corfs bench $name: $((SECONDS - began)) s"
}

cold=()
[ "${CORFS_BENCH_COLD:-}" != 1 ] || cold=(--cold)
measure copy --size "${mib}M" "${cold[@]}"
measure read --size "${mib}M" --files "$files" "${cold[@]}" "${peers[@]}"
# Of a peer that can't be written through, the table says so where names are made.
measure meta --files "$files" "${cold[@]}" "${peers[@]}"
measure fault --size "${mib}M"

{
    cat <<'HEAD'
# Benchmarks

Made by `mount-scripts/benchmarks.sh`; do not edit. Each section is what `corfs bench draw` prints of
one run, with machine, file system, seed, how caches and memory were prepared, and what the numbers
say, also where corfs loses. Ratios are those to the first of each work, with a 95 % bootstrap interval;
where all of it is within 15 % there is no difference, and where it is wide nothing is told. The script
leaves pages with plots in `target/benchmarks`; [the README](../README.md#measuring) says more.
HEAD
    for name in copy read meta fault; do
        printf '\n## corfs bench %s\n\n```text\n' "$name"
        "$corfs" bench draw "$runs/$name.json"
        printf '```\n'
    done
    # What was measured by the scripts that make file systems of their own, if they were run here.
    for name in speed copy cache; do
        [ -f "$runs/$name.txt" ] || continue
        printf '\n## mount-scripts/bench-%s.sh, %s\n\n```text\n' "$name" "$(date -u -r "$runs/$name.txt" +%F)"
        grep '^CORFS_BENCH_' "$runs/$name.txt" || true
        sed -n '/^What was to be reached/,$p' "$runs/$name.txt"
        printf '```\n'
    done
} >"$page.part"
mv "$page.part" "$page"
say "written: $page; plots: $runs"
