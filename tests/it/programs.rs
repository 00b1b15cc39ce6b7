//! Ordinary programs at their ordinary work on the mount, compared with the same work natively.

mod archives;
mod binaries;
mod databases;
mod developers;
mod loads;
mod postgres;
pub(crate) mod tree;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{
    Mount, Need, Scratch, USER, apart, as_user, is_root, require, set_owner, soak,
};

/// As whom the program and the daemon run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Root,
    /// An ordinary user, who mounts by fusermount3: `nobody` when the tests run as root, else the
    /// one who runs them.
    User,
}

impl Who {
    /// Whether this machine has what it takes, and `tools`.
    fn can(self, tools: &[&'static str]) -> bool {
        let mut needs = vec![Need::Fuse];
        needs.push(match self {
            Self::Root => Need::Root,
            Self::User => Need::UserFuse,
        });
        needs.extend(tools.iter().map(|&tool| Need::Tool(tool)));
        require(&needs)
    }

    /// The ids to change to, if any.
    fn ids(self) -> Option<(u32, u32)> {
        (self == Self::User && is_root()).then_some((USER, USER))
    }

    /// A new folder of that user's.
    fn folder(self, scratch: &Scratch, name: &str) -> PathBuf {
        let path = scratch.dir(name);
        if let Some((uid, gid)) = self.ids() {
            set_owner(&path, uid, gid);
        }
        path
    }

    fn mount(self, source: &Path) -> Mount {
        let mount = Mount::of(source);
        match self.ids() {
            Some((uid, gid)) => mount.as_user(uid, gid).start(),
            None => mount.start(),
        }
    }

    /// Lets `command` run as that user, in an environment that says the same everywhere.
    fn command(self, command: &mut Command) -> &mut Command {
        command
            .env("LC_ALL", "C")
            .env("TZ", "UTC")
            .env("HOME", "/nonexistent");
        match self.ids() {
            Some((uid, gid)) => as_user(command, uid, gid),
            None => command,
        }
    }

    /// Runs a shell script as that user in `folder`, with `arguments` as `$1` and so on.
    #[track_caller]
    fn script(self, folder: &Path, script: &str, arguments: &[&Path]) -> String {
        let mut command = bounded("sh");
        command.args(["-euc", script, "sh"]).args(arguments);
        command.current_dir(folder);
        crate::support::run(self.command(&mut command))
    }

    /// Runs `work` as that user.
    fn apart<T: Send>(self, work: impl FnOnce() -> T + Send) -> T {
        apart(self.ids(), work)
    }
}

/// A command that is ended when the mount makes it hang: a failure with words, not a test run that
/// never ends. The limit grows with the size of the long tests and has nothing to do with speed.
pub(crate) fn bounded(program: impl AsRef<OsStr>) -> Command {
    let limit = 300 + soak(3000);
    let mut command = Command::new("timeout");
    command
        .arg("--kill-after=10")
        .arg(limit.to_string())
        .arg(program);
    command
}

/// Empties a folder that a test used natively before the mount has its turn.
fn empty(folder: &Path) {
    for entry in fs::read_dir(folder).expect("list") {
        let path = entry.expect("an entry").path();
        let gone = if path.is_dir() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        gone.unwrap_or_else(|e| panic!("remove {}: {e}", path.display()));
    }
}
