#!/usr/bin/env bash
# Reads real remote sources through corfs with a cache: sshfs from an sshd of its own on this machine,
# and a GlusterFS volume of three replicated bricks of its own. What is cached must be readable whatever
# happens to the source, what is not must fail in time, and no byte may be wrong.
#
#   mount-scripts/test-remote.sh [sshfs] [gluster]    both unless one is named
#
# Root only; installs what is missing on Debian. It starts servers in folders of its own, and in a
# network of its own where it may (a brick finds its glusterd at port 24007 only), and ends those
# alone. CORFS names the program (default: what cargo builds), CORFS_REMOTE_MIB the data
# (48). What can't be installed is skipped; with CORFS_REQUIRE_ALL=1 that is a failure.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$here/mount-scripts/lib.sh"

[ "$(id -u)" -eq 0 ] || die "root is needed"
PATH="$PATH:/usr/sbin:/sbin"
if [ -z "${CORFS_REMOTE_INSIDE:-}" ]; then
    install_missing sshfs=sshfs sshd=openssh-server ssh-keygen=openssh-client \
        glusterd=glusterfs-server glusterfs=glusterfs-client fusermount3=fuse3 cmp=diffutils \
        pgrep=procps unshare=util-linux ip=iproute2
    if [ -z "${CORFS:-}" ]; then
        cargo build --quiet --release --manifest-path "$here/Cargo.toml"
        CORFS="$here/target/release/corfs"
    fi
    export CORFS CORFS_REMOTE_INSIDE=1
    if have ip && unshare --net true 2>/dev/null; then
        # shellcheck disable=SC2016 # for the shell within
        exec unshare --net sh -c 'ip link set lo up && exec "$0" "$@"' "$0" "$@"
    fi
fi
wanted=" ${*:-sshfs gluster} "
mib=${CORFS_REMOTE_MIB:-48}
port=$((20000 + $$ % 10000))
work=$(mktemp -d /tmp/corfs-remote-XXXXXX)
mounted=()
servers=()
failed=0

# What was mounted last goes first; servers of ours end after that.
clean() {
    local at pid
    for ((at = ${#mounted[@]} - 1; at >= 0; at--)); do
        mountpoint -q "${mounted[at]}" 2>/dev/null || is_dead "${mounted[at]}" || continue
        umount --lazy "${mounted[at]}" 2>/dev/null || true
    done
    stop_gluster
    for pid in "${servers[@]}"; do
        kill "$pid" 2>/dev/null || true
    done
    rm -rf "$work"
}
trap clean EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# A mount whose server is gone is no mountpoint to mountpoint(1).
is_dead() {
    grep -q " $1 " /proc/self/mounts
}

# check WORDS COMMAND...: says how it went.
check() {
    local words=$1
    shift
    if "$@"; then
        say "well: $words"
    else
        say "FAILED: $words" >&2
        failed=1
    fi
}

skip() {
    [ "${CORFS_REQUIRE_ALL:-}" != 1 ] || die "CORFS_REQUIRE_ALL=1, but $*"
    say "skipped: $*"
}

# Three files, one of them never read before the source goes.
make_data() {
    mkdir -p "$1"
    for name in one two unread; do
        head -c "$((mib << 20))" /dev/urandom >"$1/$name"
    done
    mkdir "$1/folder"
    echo "deep" >"$1/folder/file"
    cp -r "$1" "$2"
}

# start_corfs SOURCE MOUNTPOINT ID: with the cache of that id, in the background.
start_corfs() {
    mkdir -p "$2" "$work/cache"
    chmod 700 "$work/cache"
    # The data was made just now, and is to be cached all the same.
    "$corfs" "$1" "$2" -o "cache=$work/cache,cache_id=$3,racy=0"
    mounted+=("$2")
}

# The sum of a series of .corfs/stats.
stat_of() {
    awk -v name="$2" '{ split($1, head, "{") } head[1] == name { sum += $NF } END { printf "%d\n", sum }' \
        "$1/.corfs/stats"
}

# Nothing of the source was read since the mount was made.
nothing_asked() {
    [ "$(stat_of "$1" "$source_bytes")" -eq 0 ]
}

# An error, and within the deadline (5 s) and some patience; not a wrong byte and not a hang.
fails_in_time() {
    local began=$SECONDS status=0
    timeout 60 cat "$1" >"$work/out" 2>/dev/null || status=$?
    say "    after $((SECONDS - began)) s: status $status, $(stat -c %s "$work/out") bytes"
    [ "$status" -ne 0 ] && [ "$status" -ne 124 ] && [ $((SECONDS - began)) -le 30 ]
}

# same FILE...: relative names, mounted and as they were made.
same() {
    local at=$1 name
    shift
    for name in "$@"; do
        timeout 120 cmp "$at/$name" "$truth/$name" || return 1
    done
}

# What was read is kept a little later: until then the source is asked for it again.
settled() {
    local tries=0
    until [ "$(stat_of "$1" corfs_cache_stored_bytes_total)" -ge "$(stat_of "$1" "$source_bytes")" ]; do
        sleep 0.2
        tries=$((tries + 1))
        [ "$tries" -lt 150 ] || return 1
    done
}

# The counter of bytes that came from the source (docs/CACHE.md).
source_bytes=corfs_cache_filled_bytes_total

try_sshfs() {
    if ! have sshfs || ! have sshd || ! have ssh-keygen; then
        skip "sshfs: it can't be installed"
        return
    fi
    local ssh="$work/ssh" far="$work/far" point="$work/sshfs" view="$work/view-sshfs"
    truth="$work/truth-sshfs"
    mkdir -p "$ssh" "$point" /run/sshd
    make_data "$far" "$truth"
    ssh-keygen -q -t ed25519 -N '' -f "$ssh/host"
    ssh-keygen -q -t ed25519 -N '' -f "$ssh/key"
    cp "$ssh/key.pub" "$ssh/authorized"
    cat >"$ssh/config" <<END
Port $port
ListenAddress 127.0.0.1
HostKey $ssh/host
AuthorizedKeysFile $ssh/authorized
PidFile $ssh/pid
PermitRootLogin yes
PasswordAuthentication no
StrictModes no
UsePAM no
Subsystem sftp internal-sftp
END
    start_sshd
    mount_sshfs
    start_corfs "$point" "$view" remote-sshfs
    check "sshfs: read and cached" same "$view" one two folder/file
    "$corfs" umount "$view"
    local before
    before=$(stat -c %d "$point")
    umount "$point"
    # Another anonymous device takes the number, so that the next mount gets a new one.
    mkdir -p "$work/decoy"
    mount -t tmpfs decoy "$work/decoy"
    mounted+=("$work/decoy")
    mount_sshfs
    say "sshfs: st_dev was $before, is $(stat -c %d "$point")"
    start_corfs "$point" "$view" remote-sshfs
    check "sshfs: remounted, the same bytes" same "$view" one two folder/file
    check "sshfs: remounted, nothing asked again" nothing_asked "$view"
    kill "$(cat "$ssh/pid")"
    end_sessions
    # The first who asks may be told of the connection's end.
    check "sshfs: the server is gone, what is cached is read" comes_back "$view" one
    check "sshfs: the server is gone, so is the rest" same "$view" one two folder/file
    check "sshfs: the server is gone, what is not fails in time" fails_in_time "$view/unread"
    # It may have gone by itself with its connection; then umount would take the path for the source
    # of our mirror, and unmount that.
    ! is_dead "$point" || umount --lazy "$point"
    start_sshd
    mount_sshfs
    check "sshfs: all is well again" comes_back "$view" unread
    "$corfs" umount "$view"
    umount "$point"
}

start_sshd() {
    "$(command -v sshd || echo /usr/sbin/sshd)" -f "$work/ssh/config" -E "$work/ssh/log"
    local tries=0
    until [ -s "$work/ssh/pid" ]; do
        sleep 0.1
        tries=$((tries + 1))
        [ "$tries" -lt 100 ] || die "sshd did not start: $(cat "$work/ssh/log")"
    done
    servers+=("$(cat "$work/ssh/pid")")
}

mount_sshfs() {
    local words="ssh -F none -p $port -i $work/ssh/key -o StrictHostKeyChecking=no"
    words="$words -o UserKnownHostsFile=$work/ssh/known -o ServerAliveInterval=2"
    sshfs -o "ssh_command=$words" "127.0.0.1:$work/far" "$work/sshfs"
    mounted+=("$work/sshfs")
}

# Those whom our sshd has made outlive it: the one that serves our mount.
end_sessions() {
    local pid
    for pid in $(pgrep -f "ssh .*-i $work/ssh/key"); do
        kill "$pid" 2>/dev/null || true
    done
}

# A source that is there again is found within a minute.
comes_back() {
    local began=$SECONDS
    until same "$1" "$2" 2>/dev/null; do
        [ $((SECONDS - began)) -lt 60 ] || return 1
        sleep 0.5
    done
}

gluster() {
    command gluster --mode=script --glusterd-sock="$work/gluster/sock" "$@"
}

try_gluster() {
    if ! have glusterd || ! have glusterfs; then
        skip "GlusterFS: it can't be installed"
        return
    fi
    local point="$work/gfs" view="$work/view-gfs"
    truth="$work/truth-gfs"
    mkdir -p "$point"
    start_gluster || {
        skip "GlusterFS: no volume can be started here: $(tail -n 3 "$work/gluster/log" 2>/dev/null)"
        return
    }
    mount_gluster
    make_data "$work/data" "$truth"
    cp -r "$work/data/." "$point/"
    start_corfs "$point" "$view" remote-gluster
    check "GlusterFS: read and cached" same "$view" one two folder/file
    check "GlusterFS: all of it is kept" settled "$view"
    (for _ in 1 2 3; do same "$view" one two || exit 1; done) &
    local load=$!
    # Uncached bytes, too, come from the two bricks that are left.
    kill_bricks 1
    check "GlusterFS: a brick less, what is not cached is read" same "$view" unread
    check "GlusterFS: a brick less, no error under load" wait "$load"
    head -c "$((mib << 20))" /dev/urandom >"$truth/late"
    cp "$truth/late" "$point/late"
    # Or it would be read from the pages that the writing left.
    sync -f "$point/late"
    dd if="$point/late" iflag=nocache count=0 status=none
    kill_bricks 3
    check "GlusterFS: no brick is left" no_brick
    # The first who asks may be told of the connection's end.
    check "GlusterFS: no brick, what is cached is read" comes_back "$view" one
    check "GlusterFS: no brick, and the rest of it" same "$view" one two folder/file unread
    check "GlusterFS: no brick, what is not fails in time" fails_in_time "$view/late"
    check "GlusterFS: three bricks live again" revive_bricks
    check "GlusterFS: all is well again" comes_back "$view" late
    check "GlusterFS: and the rest" same "$view" one two unread
    "$corfs" umount "$view"
    umount "$point"
}

start_gluster() {
    local at="$work/gluster" host brick
    host=$(hostname)
    mkdir -p "$at/run" "$at/b1" "$at/b2" "$at/b3"
    cat >"$at/vol" <<END
volume management
    type mgmt/glusterd
    option working-directory $at/state
    option run-directory $at/run
    option glusterd-sockfile $at/sock
    option transport-type socket
    option transport.socket.listen-port 24007
    option base-port $((port + 10))
    option max-port $((port + 90))
    option ping-timeout 0
end-volume
END
    mkdir -p "$at/state"
    glusterd -f "$at/vol" -p "$at/pid" -l "$at/log" || return 1
    local tries=0
    until gluster volume list >/dev/null 2>&1; do
        sleep 0.2
        tries=$((tries + 1))
        [ "$tries" -lt 100 ] || return 1
    done
    brick=()
    for b in b1 b2 b3; do brick+=("$host:$at/$b"); done
    gluster volume create corfs replica 3 "${brick[@]}" force >/dev/null &&
        gluster volume set corfs network.ping-timeout 3 >/dev/null &&
        gluster volume start corfs >/dev/null
}

mount_gluster() {
    glusterfs --volfile-server=127.0.0.1 --volfile-id=corfs \
        --log-file="$work/gluster/client.log" "$work/gfs"
    mounted+=("$work/gfs")
    local tries=0
    until mountpoint -q "$work/gfs"; do
        sleep 0.2
        tries=$((tries + 1))
        [ "$tries" -lt 100 ] || die "GlusterFS can't be mounted: $(tail -n 5 "$work/gluster/client.log")"
    done
}

# The first so many bricks that live.
kill_bricks() {
    local count=$1 pid
    for pid in $(pgrep -f "glusterfsd .*$work"); do
        [ "$count" -gt 0 ] || break
        kill -9 "$pid" 2>/dev/null || true
        count=$((count - 1))
    done
    sleep 0.2
}

# glusterd takes a while to believe that a brick was killed, and starts no other until then.
revive_bricks() {
    local tries=0
    until [ "$(pgrep -cf "glusterfsd .*$work")" -eq 3 ]; do
        gluster volume start corfs force >/dev/null || true
        sleep 1
        tries=$((tries + 1))
        [ "$tries" -lt 60 ] || return 1
    done
}

no_brick() {
    ! pgrep -f "glusterfsd .*$work" >/dev/null
}

# Every server of ours has our folder among its words.
stop_gluster() {
    [ -d "$work/gluster" ] || return 0
    gluster volume stop corfs force >/dev/null 2>&1 || true
    local pid
    for pid in $(pgrep -f "gluster.*$work/gluster"); do
        kill -9 "$pid" 2>/dev/null || true
    done
}

corfs=$CORFS
case $wanted in *" sshfs "*) try_sshfs ;; esac
case $wanted in *" gluster "*) try_gluster ;; esac
[ "$failed" -eq 0 ] || die "not all went well"
say "all well, $SECONDS s"
