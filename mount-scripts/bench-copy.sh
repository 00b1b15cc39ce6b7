#!/usr/bin/env bash
# Measures the copy engine, .copy and cp in a mount against GNU cp, copy_file_range, dd, xcp and
# rsync on file systems of its own, and says which of the engine's figures are reached.
#
#   mount-scripts/bench-copy.sh [FOLDER]    where the images lie (default: a temporary folder)
#
# Root is needed for the file systems; without, the file system of FOLDER is measured alone. FOLDER
# wants about 30 GiB for all of it, memory 8 GiB. CORFS_BENCH_KINDS names the file systems ("ext4
# xfs btrfs tmpfs"), CORFS_BENCH_ONLY the sections (warm,reflink,sparse,tree,cold,memory,big,cancel),
# and CORFS_BENCH_MIB, _SPARSE_MIB, _BIG_MIB, _FILES, _ROUNDS the sizes (benches/copy/main.rs).
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$here/mount-scripts/lib.sh"

folder=$(mktemp -d "$(cd "${1:-${TMPDIR:-/tmp}}" && pwd)/corfs-bench-XXXXXX")
mounted=()
places=()

clean() {
    local at
    for at in "${mounted[@]}"; do
        umount "$at" || umount --lazy "$at" || true
    done
    rm -rf "$folder"
}
trap clean EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# MiB that the file systems must hold: some copies of a file at once, and what is freed late.
mib=${CORFS_BENCH_MIB:-1024}
big=${CORFS_BENCH_BIG_MIB:-8192}
room=$((mib * 8 + 2048))
roomy=$((room > big * 5 / 2 + 2048 ? room : big * 5 / 2 + 2048))

# A file system of its own on an image: place KIND MIB, then what makes it.
place() {
    local kind=$1 size=$2 at="$folder/$1"
    shift 2
    mkdir "$at"
    if [ "$kind" = tmpfs ]; then
        mount -t tmpfs -o "size=${size}M" corfs-bench "$at" || return 1
    else
        truncate -s "${size}M" "$folder/$kind.image"
        "$@" "$folder/$kind.image" >/dev/null || return 1
        attach "$folder/$kind.image" || return 1
        # From now on the kernel frees it when the last mount is gone.
        mount -t "$kind" "$device" "$at" || { losetup --detach "$device"; return 1; }
        losetup --detach "$device"
    fi
    mounted+=("$at")
    places+=("$kind=$at")
}

if [ "$(id -u)" -eq 0 ]; then
    install_missing mkfs.ext4=e2fsprogs mkfs.xfs=xfsprogs mkfs.btrfs=btrfs-progs rsync=rsync \
        fincore=util-linux losetup=util-linux
    PATH="$PATH:/usr/sbin:/sbin"
    for kind in ${CORFS_BENCH_KINDS:-ext4 xfs btrfs tmpfs}; do
        case $kind in
            ext4) place ext4 "$roomy" mkfs.ext4 -qF ;;
            xfs) place xfs "$room" mkfs.xfs -qf -m reflink=1 ;;
            btrfs) place btrfs "$room" mkfs.btrfs -qf ;;
            tmpfs) place tmpfs "$((mib * 6 + 64))" ;;
            *) die "$kind: not one of ext4, xfs, btrfs, tmpfs" ;;
        esac || say "$kind: could not be made, left out"
    done
else
    say "not root: only the file system of $folder is measured"
    places+=("here=$folder")
fi

cd "$here"
if ! have xcp && [ ! -x target/peers/bin/xcp ]; then
    say "xcp is built into target/peers, once"
    cargo install --quiet --locked --root target/peers xcp || say "xcp can't be had: not compared"
fi
SECONDS=0
figures copy cargo bench --quiet --bench copy -- "${places[@]}"
say "took $(((SECONDS + 59) / 60)) minutes"
