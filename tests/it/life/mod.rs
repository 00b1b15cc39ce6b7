//! The life of a mount: how it begins, what it outlives, how it ends.

mod cycles;
mod dead;
mod disks;
mod faults;
mod hostile;
mod load;
mod odd;
mod pauses;
mod places;
mod pressure;

use std::fs;
use std::time::Duration;

use rustix::process::Pid;

use crate::command::Stand;

/// How long what must happen may take; no test waits so long when all is well.
const PATIENCE: Duration = Duration::from_secs(30);

/// The processes that serve a mount.
fn family(stand: &Stand) -> Vec<Pid> {
    stand.daemons()
}

/// The one of them that signals are for: whose parent is none of them.
#[track_caller]
fn head(stand: &Stand) -> Pid {
    let family = family(stand);
    let first = |pid: &&Pid| parent(**pid).is_none_or(|parent| !family.contains(&parent));
    *family.iter().find(first).expect("a daemon")
}

/// The fields of /proc/PID/stat after the name: the state, the parent, ...
fn stat(pid: Pid) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    let (_, fields) = text.rsplit_once(')')?;
    Some(fields.split_whitespace().map(str::to_owned).collect())
}

fn parent(pid: Pid) -> Option<Pid> {
    Pid::from_raw(stat(pid)?.get(1)?.parse().ok()?)
}

/// `R`, `S`, `D`, `T`, `Z`, ...; none when it is gone.
fn state(pid: Pid) -> Option<u8> {
    stat(pid)?.first()?.bytes().next()
}

fn children(pid: Pid) -> Vec<Pid> {
    let pid = pid.as_raw_nonzero();
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace()
        .filter_map(|word| Pid::from_raw(word.parse().ok()?))
        .collect()
}
