#!/usr/bin/env bash
# Installs what the tests need, then runs everything: shellcheck, rustfmt, clippy and all tests.
#
#   mount-scripts/test.sh              the usual run, under 25 minutes on two cores
#   CORFS_SOAK=1 mount-scripts/test.sh the full length of the long tests (see soak.sh)
#   CORFS_REQUIRE_ALL=1 ...            what a test lacks is a failure, not a skip (as in .ci/run)
#
# Arguments go to cargo test (`mount-scripts/test.sh programs:: -- --show-output`).
#
# As root (or with a sudo that asks nothing) it installs Debian packages, opens /dev/fuse to ordinary
# users and allows them allow_other in /etc/fuse.conf, which is what the tests as such a user need.
# Otherwise it says what is missing, and the tests that need it are skipped.
set -u
cd "$(dirname "$0")/.." || exit 1
# shellcheck source=mount-scripts/lib.sh
. mount-scripts/lib.sh

# The foreign suites, as published; raise these by hand, their findings are part of the tests.
SUITES="pjdfstest@0.2.2 fsx@0.3.2"

export CORFS_SOAK="${CORFS_SOAK:-0.1}"
export CARGO_TERM_COLOR="${CARGO_TERM_COLOR:-auto}"

# Runs one class of checks; the first that fails ends the script, by name.
check() {
    local name=$1 began=$SECONDS
    shift
    say "$name"
    if ! "$@" </dev/null; then
        say "FAILED: $name, after $((SECONDS - began)) s" >&2
        exit 1
    fi
    say "$name: well, $((SECONDS - began)) s"
}

install_tools() {
    install_missing "cc=gcc libc6-dev" make=make git=git fusermount3=fuse3 setfattr=attr setfacl=acl \
        mkfs.xfs=xfsprogs mkfs.btrfs=btrfs-progs mkfs.ext4=e2fsprogs losetup=util-linux \
        mount=mount ps=procps tar=tar diff=diffutils rsync=rsync sqlite3=sqlite3 fio=fio \
        stress-ng=stress-ng dbench=dbench bindfs=bindfs setcap=libcap2-bin ldd=libc-bin \
        find=findutils shellcheck=shellcheck
    if [ -n "$MISSING" ] && [ "${CORFS_REQUIRE_ALL:-}" = 1 ]; then
        die "CORFS_REQUIRE_ALL=1, but these cannot be installed:$MISSING"
    fi
    # What rustup puts into a login shell's profile; other shells lack it.
    # shellcheck source=/dev/null
    have cargo || ! [ -r "$HOME/.cargo/env" ] || . "$HOME/.cargo/env"
    have cargo || die "no cargo; see https://rustup.rs"
    cargo fmt --version >/dev/null 2>&1 || die "no rustfmt; type: rustup component add rustfmt"
    cargo clippy --version >/dev/null 2>&1 || die "no clippy; type: rustup component add clippy"
}

# PostgreSQL's server, whose programs stand in a folder of their version. Debian's package would make
# a database of its own and start it, unless told otherwise beforehand.
install_postgres() {
    local conf=/etc/postgresql-common/createcluster.conf
    ! compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || return 0
    if ! [ -e "$conf" ] && ! have pg_createcluster; then
        install_missing pg_createcluster=postgresql-common
    fi
    if as_root test -w "$conf"; then
        as_root cp -p "$conf" "$conf.corfs"
        as_root sed -i 's/^#*create_main_cluster.*/create_main_cluster = false/' "$conf"
        install_missing /nowhere/postgres=postgresql
        as_root mv "$conf.corfs" "$conf"
    fi
    compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null && return 0
    [ "${CORFS_REQUIRE_ALL:-}" != 1 ] || die "PostgreSQL cannot be installed"
    echo "PostgreSQL cannot be installed; its test is skipped" >&2
}

# pjdfstest and fsx, once, into target/suites, where the tests look for them.
install_suites() {
    local suite
    for suite in $SUITES; do
        grep -qs "\"${suite%@*} ${suite#*@} " target/suites/.crates.toml && continue
        say "installing $suite"
        cargo install --quiet --locked --root target/suites "$suite" </dev/null && continue
        [ "${CORFS_REQUIRE_ALL:-}" != 1 ] || die "$suite cannot be installed"
        echo "$suite cannot be installed; its tests are skipped" >&2
    done
}

# What the tests as an ordinary user need of the machine.
open_fuse() {
    [ -e /dev/fuse ] || as_root modprobe fuse 2>/dev/null
    if [ -e /dev/fuse ] && [ "$(stat -c %a /dev/fuse)" != 666 ]; then
        # As Debian's own udev rule has it.
        as_root chmod 666 /dev/fuse || echo "/dev/fuse is closed to ordinary users" >&2
    fi
    if ! grep -qsx user_allow_other /etc/fuse.conf; then
        as_root sh -c 'echo user_allow_other >>/etc/fuse.conf' ||
            echo "/etc/fuse.conf does not allow user_allow_other" >&2
    fi
}

check_scripts() {
    if ! have shellcheck; then
        echo "shellcheck is not installed; skipped" >&2
        return 0
    fi
    local file scripts=()
    while IFS= read -r -d '' file; do
        scripts+=("$file")
    done < <(find . -path ./target -prune -o \( -name '*.sh' -o -path ./.ci/run \) -type f -print0)
    shellcheck -x "${scripts[@]}"
}

install_tools
install_postgres
install_suites
open_fuse
check "shellcheck" check_scripts
check "cargo fmt" cargo fmt --check
check "cargo clippy" cargo clippy --all-targets -- -D warnings
# One that hangs is to end as a failure that tells which, and not as a run cut off from outside.
case $CORFS_SOAK in
    0 | 0.[0-2]*) patience=2700 ;;
    *) patience=0 ;; # none
esac
# A shell that starts this in the background has it ignore SIGINT, which the tests send.
check "cargo test" env --default-signal=HUP,INT,QUIT,PIPE,TERM \
    timeout --kill-after=60 "$patience" cargo test --no-fail-fast "$@"
say "all well, $SECONDS s"
