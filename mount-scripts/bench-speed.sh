#!/usr/bin/env bash
# Measures the mount against the directory beneath it, row by row, beside the floor of this machine
# (a minimal FUSE program that answers from memory), and says which figures hold.
#
#   mount-scripts/bench-speed.sh [FOLDER]   where the images lie (default: a temporary folder)
#
# It wants root, 8 GiB in FOLDER and 6 GiB of memory; some ten minutes on two quiet cores.
# CORFS_BENCH_ONLY names rows by a part of their name; sizes: see benches/speed/main.rs.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$here/mount-scripts/lib.sh"
[ "$(id -u)" -eq 0 ] || die "not root: file systems can't be made"

folder=$(mktemp -d "$(cd "${1:-${TMPDIR:-/tmp}}" && pwd)/corfs-speed-XXXXXX")
mounted=()
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

mib=${CORFS_BENCH_MIB:-1024}
room=$((mib * 3 + 2048))
install_missing mkfs.xfs=xfsprogs mkfs.ext4=e2fsprogs losetup=util-linux
PATH="$PATH:/usr/sbin:/sbin"
places=()
for kind in ext4 tmpfs xfs; do
    at="$folder/$kind"
    mkdir "$at"
    case $kind in
        tmpfs) mount -t tmpfs -o "size=${room}M" corfs-bench "$at" ;;
        *)
            truncate -s "${room}M" "$folder/$kind.image"
            "mkfs.$kind" -q "$folder/$kind.image" >/dev/null
            attach "$folder/$kind.image"
            # From now on the kernel frees it when the last mount is gone.
            mount -t "$kind" "$device" "$at" || { losetup --detach "$device"; exit 1; }
            losetup --detach "$device"
            ;;
    esac
    mounted+=("$at")
    places+=("$kind=$at")
done
cd "$here"
figures speed cargo bench --quiet --bench speed -- "${places[@]}"
