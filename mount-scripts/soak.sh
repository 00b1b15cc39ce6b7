#!/usr/bin/env bash
# Runs all tests with the long ones at full length (CORFS_SOAK=1, or what is set), keeps the log in
# target/soak.log with what each test printed, and ends with a summary. Long: not for every change.
set -u
cd "$(dirname "$0")/.." || exit 1
# shellcheck source=mount-scripts/lib.sh
. mount-scripts/lib.sh

export CORFS_SOAK="${CORFS_SOAK:-1}"
mkdir -p target
log=target/soak.log

say "all tests with CORFS_SOAK=$CORFS_SOAK; the log is $log"
mount-scripts/test.sh -- --show-output 2>&1 | tee "$log"
status=${PIPESTATUS[0]}

# The lines that cargo test ends each of its binaries with: "test result: ok. 12 passed; 0 failed; ..."
total() {
    sed -n "s/^test result: .* \([0-9][0-9]*\) $1;.*/\1/p" "$log" | awk '{ n += $1 } END { print n + 0 }'
}
say "summary: $(total passed) passed, $(total failed) failed, $(total ignored) ignored," \
    "$(grep -c '^SKIP: ' "$log") skipped for want of something, $SECONDS s"
grep -E '^test .* FAILED$' "$log"
exit "$status"
