//! Going to the background: the child becomes the daemon, the parent waits until it answers.
//!
//! Over the pipe between them goes one byte for what follows: `R` and the mount's device when it
//! is ready; `E`, an exit code and words when it failed.

use super::guardian::process_end;
use super::mount::Site;
use super::refusal::{Code, Refusal, said, shown};
use crate::sys::process::{self, Side};
use rustix::fs::{Mode, OFlags, makedev};
use rustix::process::{Pid, Signal, WaitOptions};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

const READY: u8 = b'R';
const FAILED: u8 = b'E';

/// The side that this process became.
#[derive(Debug)]
pub(super) enum Half {
    /// It waits for the daemon.
    Parent(Parent),
    /// It is the daemon.
    Child(Child),
}

/// Splits the process; to be called while it has one thread.
pub(super) fn split() -> Result<Half, Refusal> {
    let failed = |words: String| Refusal::system(format!("go to the background: {words}"));
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|error| failed(said(error)))?;
    match process::fork().map_err(|error| failed(error.to_string()))? {
        Side::Parent(child) => Ok(Half::Parent(Parent {
            child,
            words: read.into(),
        })),
        Side::Child => {
            drop(read);
            // Fails only for a leader of a group, which a new process never is.
            let _ = rustix::process::setsid();
            // The current directory of the caller must not be kept busy.
            let _ = rustix::process::chdir("/");
            Ok(Half::Child(Child {
                words: write.into(),
            }))
        }
    }
}

/// The daemon's end.
#[derive(Debug)]
pub(super) struct Child {
    words: File,
}

impl Child {
    /// Lets go of the caller's terminal and pipes, and tells the parent that the mount stands.
    ///
    /// # Errors
    /// The parent is gone, interrupted perhaps: then nobody wants the mount.
    pub(super) fn ready(&mut self, site: &Site) -> io::Result<()> {
        let_go()?;
        let (major, minor) = site.device;
        let mut message = vec![READY];
        message.extend(makedev(major, minor).to_ne_bytes());
        self.words.write_all(&message)
    }

    /// Leaves the parent, the terminal and the pipes to another process, which this one was forked
    /// from.
    ///
    /// # Errors
    /// Those of opening `/dev/null`.
    pub(super) fn part(&mut self) -> io::Result<()> {
        let_go()?;
        self.words = File::open("/dev/null")?;
        Ok(())
    }

    /// Tells the parent, if it still waits, why there is no mount: it prints the words, and this
    /// process no more.
    pub(super) fn failed(&mut self, refusal: &Refusal) {
        // Failing means that the words are printed twice.
        let _ = let_go();
        // After a good start the parent has gone, and the log has the words.
        let _ = self.send_failure(refusal);
    }

    fn send_failure(&mut self, refusal: &Refusal) -> io::Result<()> {
        let mut message = vec![FAILED, refusal.code as u8];
        message.extend_from_slice(refusal.words.as_bytes());
        self.words.write_all(&message)
    }
}

/// Standard input, output and error become `/dev/null`: who waits for their end waits for us.
fn let_go() -> io::Result<()> {
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}

/// The waiting end.
#[derive(Debug)]
pub(super) struct Parent {
    child: Pid,
    words: File,
}

impl Parent {
    /// Waits until the mount answers, or for the child's words if it never will.
    pub(super) fn wait(mut self, mountpoint: &Path) -> Result<(), Refusal> {
        let mut first = [0_u8];
        if self.words.read_exact(&mut first).is_err() || first[0] != READY {
            return Err(self.refusal(first[0]));
        }
        let mut device = [0_u8; 8];
        let stat = match self.words.read_exact(&mut device) {
            Ok(()) => rustix::fs::stat(mountpoint).map_err(io::Error::from),
            Err(error) => Err(error),
        };
        match stat {
            Ok(stat) if stat.st_dev == u64::from_ne_bytes(device) => Ok(()),
            Ok(_) => Err(self.stop(mountpoint, "it is not the mount that was made")),
            Err(error) => Err(self.stop(mountpoint, &said(error))),
        }
    }

    /// A mount that does not answer is taken away again: its own words if it has any, else `why`.
    fn stop(mut self, mountpoint: &Path, why: &str) -> Refusal {
        let _ = rustix::process::kill_process(self.child, Signal::TERM);
        let mut first = [0_u8];
        if self.words.read_exact(&mut first).is_ok() && first[0] == FAILED {
            return self.refusal(FAILED);
        }
        Refusal::mount(format!(
            "the mount on {} does not answer: {why}",
            shown(mountpoint)
        ))
    }

    /// What the child said after its first byte, or how it ended without a word.
    fn refusal(mut self, first: u8) -> Refusal {
        let mut rest = Vec::new();
        let read = self.words.read_to_end(&mut rest);
        if let (FAILED, Ok(_), Some((&code, words))) = (first, read, rest.split_first()) {
            return Refusal {
                code: Code::of_number(code),
                words: String::from_utf8_lossy(words).into_owned(),
            };
        }
        let end = rustix::process::waitpid(Some(self.child), WaitOptions::empty());
        let how = match end {
            Ok(Some((_, status))) => process_end(status),
            _ => "unknown end".to_owned(),
        };
        Refusal::system(format!("the daemon ended before it was ready: {how}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both ends in one process; the child's number is never used on the ways tested.
    fn ends() -> (Parent, Child) {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let parent = Parent {
            child: rustix::process::getpid(),
            words: read.into(),
        };
        let child = Child {
            words: write.into(),
        };
        (parent, child)
    }

    #[test]
    fn the_parent_hears_the_childs_words_and_code() {
        let (parent, mut child) = ends();
        let refusal = Refusal::mount("mount on /x: no\nmore");
        child.send_failure(&refusal).unwrap();
        drop(child);
        assert_eq!(parent.wait(Path::new("/")), Err(refusal));
    }
}
