//! Giving up, for good, what a file server never needs.
//!
//! Four layers, each of which stands without the others: capabilities, `no_new_privs`, Landlock
//! (which files may be touched), seccomp (which calls may be made). All are of a thread, and are
//! inherited by the threads that it starts: so a process enters while it has one.

mod capabilities;
mod files;
mod syscalls;

pub use capabilities::KEPT as KEPT_CAPABILITIES;

use std::fmt;
use std::os::fd::OwnedFd;

use super::{OrFail, Result, process};

/// What may be done with a file, or with everything beneath a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// All that a mirror does: read, write, create, remove, rename, link.
    Mirror,
    /// As [`Access::Mirror`], and for programs to be run from there: the kernel opens a backing file
    /// of FUSE passthrough with the flags of its caller, but by this process's rights.
    Passthrough,
    /// Read files and list directories.
    Read,
    /// Read and write files that exist.
    Write,
    /// Use a device: read, write, ioctl.
    Device,
}

/// One exception from "nothing may be touched".
#[derive(Debug)]
pub struct Allowed {
    /// The file, or the directory above all that is allowed; `O_PATH` will do.
    pub beneath: OwnedFd,
    /// What may be done there.
    pub access: Access,
}

/// Which layers hold this process, and what is missing of those that do not, or not wholly.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InForce {
    /// No program that it runs, or could run, has more rights than it has.
    pub no_new_privs: bool,
    /// It holds no capability but [`KEPT_CAPABILITIES`], and can't get one.
    pub capabilities: bool,
    /// Files that were not allowed can't be opened.
    pub landlock: bool,
    /// Calls that a file server never makes are refused.
    pub seccomp: bool,
    /// In words, for the log.
    pub missing: Vec<String>,
}

impl fmt::Display for InForce {
    /// The names of the layers, with spaces between them; `none`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = [
            (self.no_new_privs, "no_new_privs"),
            (self.capabilities, "capabilities"),
            (self.landlock, "landlock"),
            (self.seccomp, "seccomp"),
        ]
        .into_iter()
        .filter_map(|(on, name)| on.then_some(name))
        .collect();
        f.write_str(if names.is_empty() { "none" } else { "" })?;
        f.write_str(&names.join(" "))
    }
}

/// Shuts this process in: every layer that the kernel has, beginning with the ones that the later
/// ones need. What is open stays open. A layer that can't be had is named in the answer.
///
/// # Errors
/// EBUSY when the process has more than one thread: the others would stay outside.
pub fn enter(allowed: Vec<Allowed>) -> Result<InForce> {
    process::has_one_thread("enter the sandbox")?;
    let mut done = InForce::default();
    let mut note = |layer: Result<Option<String>>, name: &str| match layer {
        Ok(partly) => {
            done.missing.extend(partly);
            true
        }
        Err(fail) => {
            done.missing.push(format!("{name} ({fail})"));
            false
        }
    };
    let capabilities = note(capabilities::drop_others().map(|()| None), "capabilities");
    let no_new_privs = rustix::thread::set_no_new_privs(true).or_fail("prctl");
    let no_new_privs = note(no_new_privs.map(|()| None), "no_new_privs");
    let landlock = note(files::restrict(allowed), "landlock");
    let seccomp = note(syscalls::restrict().map(|()| None), "seccomp");
    Ok(InForce {
        no_new_privs,
        capabilities,
        landlock,
        seccomp,
        ..done
    })
}

#[cfg(test)]
mod tests;
