//! Foreign suites of POSIX and data checks, run on the mount and on its source: what passes
//! natively passes on the mount.
//!
//! `mount-scripts/test.sh` installs them into `target/suites`.

mod exerciser;
mod fsx;
mod pjdfstest;

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Need, Scratch, require, run, set_mode, soak, tool};

/// Where a suite lies: in `PATH`, or where the test script installs it. Skips (or fails, as
/// [`require`] does) when it is nowhere.
fn suite(name: &'static str) -> Option<PathBuf> {
    let installed = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("target/suites/bin")
        .join(name);
    if installed.is_file() {
        return Some(installed);
    }
    require(&[Need::Tool(name)]).then(|| tool(name)).flatten()
}

/// The suite where every user may run it: a checkout may lie in a folder closed to others.
fn open_to_all(program: &Path, scratch: &Scratch) -> PathBuf {
    let copy = scratch.path().join("suite");
    run(Command::new("cp").arg(program).arg(&copy));
    set_mode(&copy, 0o755);
    copy
}

/// Operations of a run that has a million at full length. In CI a tenth of them would take
/// minutes, so their number follows the square of the scale.
fn million() -> u64 {
    soak(soak(1_000_000))
}
