# shellcheck shell=bash
# Shared by the scripts of this folder: words, and packages that are missing. Source it, don't run it.

# Says what happens now, so that it stands out from what the tools print.
say() {
    printf '==> %s\n' "$*"
}

# Says why there is no way on, and ends the script.
die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# Whether a command is there; an ordinary user's PATH often lacks the sbin folders.
have() {
    PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null 2>&1
}

# Runs a command as root: directly, or by a sudo that asks nothing. Fails where neither is possible.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif have sudo && sudo -n true 2>/dev/null; then
        sudo -n "$@"
    else
        return 1
    fi
}

# Installs the Debian packages behind the missing commands among `command=package` words. What
# cannot be installed stands in MISSING (packages, separated by spaces) afterwards.
install_missing() {
    local word
    MISSING=
    for word in "$@"; do
        have "${word%%=*}" || MISSING="$MISSING ${word#*=}"
    done
    [ -n "$MISSING" ] || return 0
    say "missing packages:$MISSING"
    if ! have apt-get || ! as_root true; then
        echo "not root, or not Debian; as root type: apt-get install$MISSING" >&2
        return 0
    fi
    # A fresh system has no package lists yet; one that has them needs no refresh.
    if apt_install 2>/dev/null || { as_root apt-get update -q </dev/null && apt_install; }; then
        MISSING=
    else
        echo "these could not be installed:$MISSING" >&2
    fi
}

apt_install() {
    # shellcheck disable=SC2086 # several words on purpose
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
        $MISSING </dev/null
}

# A loop device on an image, past the page cache where that goes: the image's own pages would take
# memory, and time, from what is measured. Sets device.
attach() {
    # shellcheck disable=SC2034 # for whoever calls
    device=$(losetup --find --show --direct-io=on "$1" 2>/dev/null) ||
        device=$(losetup --find --show "$1")
}

# Runs a benchmark, and keeps what it prints for benchmarks.sh: figures NAME COMMAND...
figures() {
    local text=target/benchmarks/$1.txt
    shift
    mkdir -p target/benchmarks
    {
        env | grep '^CORFS_BENCH_' | sort || true
        "$@"
    } | tee "$text.part"
    [ "${PIPESTATUS[0]}" -eq 0 ] || return 1
    mv "$text.part" "$text"
}
