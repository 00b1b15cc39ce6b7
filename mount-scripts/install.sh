#!/usr/bin/env bash
# Builds the release binary and installs it as PREFIX/bin/corfs.
#
#   mount-scripts/install.sh [PREFIX]     default: /usr/local
#
# DESTDIR is put before PREFIX, for packagers. mount(8) finds corfs where root's PATH does.
set -eu
repository=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=mount-scripts/lib.sh
. "$repository/mount-scripts/lib.sh"

[ $# -le 1 ] || die "give one PREFIX, or none"
prefix=${1:-/usr/local}
case $prefix in
/*) ;;
*) prefix=$PWD/$prefix ;;
esac
# What rustup puts into a login shell's profile; other shells lack it.
# shellcheck source=/dev/null
have cargo || ! [ -r "${HOME:-/root}/.cargo/env" ] || . "${HOME:-/root}/.cargo/env"
have cargo || die "no Rust toolchain; install one first: https://rustup.rs"

say "building corfs"
(cd "$repository" && cargo build --release --locked --quiet)
binary=${CARGO_TARGET_DIR:-$repository/target}/release/corfs
target=${DESTDIR:-}$prefix/bin/corfs
install -D -m 755 "$binary" "$target" 2>/dev/null || as_root install -D -m 755 "$binary" "$target" ||
    die "cannot write $target; run this as root, or give a PREFIX of your own"
say "installed $target"
have fusermount3 || echo "Ordinary users and fstab also need fuse3: apt-get install fuse3"
cat <<WORDS
By hand:    corfs SOURCE MOUNTPOINT
In fstab:   SOURCE MOUNTPOINT fuse.corfs nosuid,nodev,allow_other,_netdev 0 0
            (mount.fuse3 adds dev and suid where the line does not say nodev and nosuid)
WORDS
