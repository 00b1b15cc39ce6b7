#!/usr/bin/env bash
# From a fresh checkout to a mounted corfs that has shown its main job.
#
#   mount-scripts/quickstart.sh                      with a small source of its own
#   mount-scripts/quickstart.sh SOURCE MOUNTPOINT    with yours; makes one copy of one file in it
#
# Installs fuse3 where it is missing (Debian: as root, or by a sudo that asks nothing), builds the
# program, mounts, and shows a listing, a read against the source, a .copy and the statistics. The
# mount stays; how to end it is said last.
set -eu
repository=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=mount-scripts/lib.sh
. "$repository/mount-scripts/lib.sh"

# What a build and a mount need beyond the Rust toolchain.
prepare() {
    install_missing cc="gcc libc6-dev" fusermount3=fuse3
    [ -z "$MISSING" ] || die "install first:$MISSING"
    # What rustup puts into a login shell's profile; other shells lack it.
    # shellcheck source=/dev/null
    have cargo || ! [ -r "${HOME:-/root}/.cargo/env" ] || . "${HOME:-/root}/.cargo/env"
    have cargo || die "no Rust toolchain; install one first: https://rustup.rs"
    [ -e /dev/fuse ] || as_root modprobe fuse 2>/dev/null ||
        die "no /dev/fuse; load the kernel's module as root: modprobe fuse"
}

build() {
    say "building corfs"
    (cd "$repository" && cargo build --release --locked --quiet)
    corfs=${CARGO_TARGET_DIR:-$repository/target}/release/corfs
}

# A small source of real files in a new folder.
make_source() {
    local folder
    folder=$(mktemp -d "${TMPDIR:-/tmp}/corfs-quickstart.XXXXXX")
    scratch=$folder
    source=$folder/source
    mountpoint=$folder/mnt
    mkdir "$source" "$mountpoint"
    cp -R "$repository/src" "$repository/mount-scripts" "$source"
    head -c 16777216 /dev/urandom >"$source/random.bin"
}

# Whether a corfs is mounted there and answers.
is_mounted() {
    "$corfs" stat "$mountpoint" >/dev/null 2>&1
}

mount_it() {
    if is_mounted; then
        say "a corfs is mounted on $mountpoint already; going on with it"
        return
    fi
    [ -e "$mountpoint" ] || mkdir -p "$mountpoint"
    say "corfs $source $mountpoint"
    "$corfs" "$source" "$mountpoint"
}

show_listing() {
    say "ls -l $mountpoint"
    ls -l "$mountpoint"
}

# Picks one file, relative to both ends.
pick_file() {
    file=random.bin
    [ -n "$scratch" ] && return
    file=$(cd "$mountpoint" && find . -xdev -type f -size +0c ! -name '*.corfs-copy' -readable \
        -print -quit)
    file=${file#./}
}

checksum() {
    sha256sum <"$1" | cut -d ' ' -f 1
}

show_read() {
    say "sha256sum $file: the source's, and the mount's"
    local there here
    there=$(checksum "$source/$file")
    here=$(checksum "$mountpoint/$file")
    printf '%s  source\n%s  mount\n' "$there" "$here"
    [ "$there" = "$here" ] || die "the mount reads $file otherwise than the source has it"
}

# A word of a line in .copy: quoted as for a shell.
quoted() {
    printf "'%s'" "$(printf %s "$1" | sed "s/'/'\\\\''/g")"
}

show_copy() {
    local copy=$file.corfs-copy line
    line="$(quoted "$file") $(quoted "$copy")"
    say "echo \"$line\" > $mountpoint/.copy"
    if ! printf '%s\n' "$line" >"$mountpoint/.copy"; then
        cat "$mountpoint/.copy" || true
        die "the copy failed; is $source read-only, or does it have a .copy of its own?"
    fi
    cat "$mountpoint/.copy"
    [ "$(checksum "$mountpoint/$copy")" = "$(checksum "$source/$file")" ] ||
        die "$copy differs from $file"
    ls -l "$mountpoint/$copy"
}

show_statistics() {
    say "corfs stat $mountpoint"
    "$corfs" stat "$mountpoint"
}

# How to end what this script began.
show_end() {
    say "mounted: $mountpoint"
    echo "Unmount it with:  $corfs umount $(quoted "$mountpoint")"
    if [ -n "$scratch" ]; then
        echo "and then delete:  rm -r $(quoted "$scratch")"
    elif [ -n "$file" ]; then
        echo "The copy is:      $(quoted "$source/$file.corfs-copy")"
    fi
    echo "Install it with:  mount-scripts/install.sh"
}

scratch=
file=
case $# in
0) ;;
2)
    source=$(realpath -e -- "$1") || die "no such source: $1"
    mountpoint=$(realpath -m -- "$2")
    ;;
*) die "give SOURCE and MOUNTPOINT, or nothing" ;;
esac
prepare
build
[ $# -eq 2 ] || make_source
mount_it
show_listing
pick_file
if [ -n "$file" ]; then
    show_read
    show_copy
else
    say "no file in $source that could be read: nothing to copy"
fi
show_statistics
show_end
