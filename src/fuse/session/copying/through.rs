//! By the `.copy` of the mount in which everything lies.
//!
//! The line is written and its answer waited for, as `echo` does; so the errno is ours beyond
//! doubt. What is shown meanwhile comes from the mount's list of jobs, by our name for the copy.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, getpid, kill_process};
use serde::Deserialize;

use super::stop::Stop;
use super::view::View;
use super::watched::{Work, watched};
use super::{Failed, Outcome, Standing, Why};
use crate::copy::language::args::Asked;
use crate::copy::language::wording::{line, title};
use crate::fuse::session::mountinfo::{Mount, unescape};
use crate::fuse::session::place::Place;
use crate::fuse::session::refusal::{Refusal, said, shown};
use crate::fuse::session::stats;
use crate::sys::Errno;

/// A `.copy` takes no longer line (`copy::lines`).
const MOST_LINE: usize = 64 << 10;
/// What the control file is called unless the mount says otherwise.
const CONTROL_NAME: &str = ".copy";

/// A copy whose names all lie in one mount.
pub(super) struct Through {
    control: PathBuf,
    line: String,
    jobs: Jobs,
}

/// The mount's list, and which of it is ours.
struct Jobs {
    path: PathBuf,
    title: String,
    /// Those with this number or a lower one were there before.
    before: u64,
}

/// One of `.corfs/jobs.json`; what is missing counts as nothing.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Entry {
    number: u64,
    owner: u32,
    title: String,
    #[serde(flatten)]
    standing: Standing,
    errors: Vec<Failed>,
    error: Option<String>,
}

impl Through {
    /// The way through a mount, if there is one mount for all names and it takes copies there.
    /// There is none for a name that does not exist, for a link with an absolute text (which
    /// means something else within the mount), and for more names than a line holds: what has
    /// none is copied as all else is, and has its errors from there.
    pub(super) fn find(asked: &Asked) -> Option<Self> {
        let destination = Spot::of_destination(&asked.destination)?;
        let same = |name: &Vec<u8>| {
            let spot = Spot::of_source(name)?;
            (spot.device == destination.device).then_some(spot.within)
        };
        let sources: Option<Vec<Vec<u8>>> = asked.sources.iter().map(same).collect();
        let sources = sources?;
        let root = stats::root(destination.mount).ok()?;
        let control = root.join(control_name(&root)?);
        let line = line(&asked.options, &sources, &destination.within);
        if !is_control_file(&control) || line.len() > MOST_LINE {
            return None;
        }
        let path = root.join(".corfs/jobs.json");
        let jobs = Jobs {
            before: entries(&path)
                .iter()
                .map(|job| job.number)
                .max()
                .unwrap_or(0),
            title: title(&sources, &destination.within),
            path,
        };
        Some(Self {
            control,
            line: line + "\n",
            jobs,
        })
    }

    /// Has the mount copy, and waits.
    ///
    /// # Errors
    /// When the control file can't be opened.
    pub(super) fn copy(&self, stop: &Stop, view: &mut View) -> Result<Outcome, Refusal> {
        let control = self.open()?;
        let answer = watched(&self.jobs, stop, view, || self.tell(control))?;
        let job = self.jobs.own().unwrap_or_default();
        Ok(Outcome {
            standing: job.standing,
            failed: job.errors,
            end: answer.map_err(|errno| Why {
                errno,
                // A list that can't be had, or that forgot us, leaves the kernel's words.
                words: job.error.unwrap_or_else(|| said(errno)),
            }),
        })
    }

    fn open(&self) -> Result<File, Refusal> {
        OpenOptions::new()
            .write(true)
            .open(&self.control)
            .map_err(|error| {
                let remedy = match Errno::from_io_error(&error) {
                    Some(Errno::ROFS) => "; the mount is read-only: copy in its source",
                    Some(Errno::PERM | Errno::ACCESS) => "; the mount takes no copies from you",
                    _ => "",
                };
                let control = shown(&self.control);
                Refusal::usage(format!("copy by {control}: {}{remedy}", said(error)))
            })
    }

    /// Returns when the copy has ended.
    fn tell(&self, mut control: File) -> Result<(), Errno> {
        let errno = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
        // One write: what a signal cut off would be a line of its own.
        match control.write(self.line.as_bytes()).map_err(errno)? {
            all if all == self.line.len() => {}
            _ => return Err(Errno::IO),
        }
        crate::sys::close(OwnedFd::from(control)).map_err(|fail| fail.errno)
    }
}

impl Jobs {
    /// Our job. Only somebody with our user id who at this moment copies by the same words could be
    /// taken for us; and it is for the eye alone.
    fn own(&self) -> Option<Entry> {
        let user = rustix::process::geteuid().as_raw();
        let mut entries = entries(&self.path);
        entries
            .retain(|job| job.number > self.before && job.owner == user && job.title == self.title);
        entries.into_iter().min_by_key(|job| job.number)
    }
}

impl Work for Jobs {
    fn standing(&self) -> Option<Standing> {
        self.own().map(|job| job.standing)
    }

    /// The mount looks for signals that are pending for the one who writes. One that came before he
    /// waited has been taken by its handler already.
    fn cancel(&self, signal: i32) {
        let pid: Pid = getpid();
        if let Some(signal) = Signal::from_named_raw(signal) {
            // To oneself it does not fail.
            let _ = kill_process(pid, signal);
        }
    }
}

fn entries(path: &Path) -> Vec<Entry> {
    let text = fs::read(path).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

/// Where in a corfs mount a name leads.
struct Spot {
    mount: Mount,
    device: (u32, u32),
    /// From the root of the mount's file system on, as a line of the `.copy` there names it.
    within: Vec<u8>,
}

impl Spot {
    /// A directory that is there is named by itself, through whatever links led to it.
    fn of_destination(name: &[u8]) -> Option<Self> {
        match Place::of_directory(as_path(name)) {
            Ok(place) => Self::beneath(&place, b""),
            Err(_) => Self::of_source(name),
        }
    }

    /// The last name stays as it is: it may be a link, and it is what a directory takes the copy
    /// under. `.` and `..` stay without a name.
    fn of_source(name: &[u8]) -> Option<Self> {
        let Some((parent, last)) = split(name) else {
            let place = Place::of_directory(as_path(name)).ok()?;
            return Self::beneath(&place, b"/.");
        };
        let parent = Place::of_directory(as_path(parent)).ok()?;
        let spot = Self::beneath(&parent, &[b"/", last].concat())?;
        let path = as_path(name);
        if fs::read_link(path).is_ok_and(|text| text.is_absolute()) {
            return None;
        }
        // Another file system may be mounted there, or be where a link leads.
        match Place::of_any(path) {
            Ok(there) if there.mount().ok()?.device != spot.device => None,
            _ => Some(spot),
        }
    }

    fn beneath(place: &Place, more: &[u8]) -> Option<Self> {
        if place.is_on_a_device() {
            // The list of mounts need not be read.
            return None;
        }
        let mount = place.mount().ok().filter(Mount::is_corfs)?;
        let rest = place.path().strip_prefix(&mount.mountpoint).ok()?;
        let from_root = mount.root.strip_prefix("/").ok()?.join(rest);
        let folder = match from_root.as_os_str().as_bytes() {
            b"" => b".",
            folder => folder,
        };
        Some(Self {
            device: mount.device,
            within: [folder, more].concat(),
            mount,
        })
    }
}

/// What comes before the last name (or the working directory), and that name with the slashes
/// behind it; `None` for one that can only be a directory.
fn split(name: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = name.iter().rposition(|&byte| byte != b'/')? + 1;
    let start = name[..end].iter().rposition(|&byte| byte == b'/');
    let (parent, last) = name.split_at(start.map_or(0, |at| at + 1));
    let parent = if parent.is_empty() { b"." } else { parent };
    let bare = &last[..end - start.map_or(0, |at| at + 1)];
    (bare != b"." && bare != b"..").then_some((parent, last))
}

fn as_path(name: &[u8]) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(name))
}

/// What the mount calls its control files; `None` if it has none. Only the one who mounted may read
/// its settings: for others it has the usual name.
fn control_name(root: &Path) -> Option<PathBuf> {
    let Ok(config) = fs::read(root.join(".corfs/config")) else {
        return Some(CONTROL_NAME.into());
    };
    let value = |key: &str| {
        let lines = config.split(|&byte| byte == b'\n');
        let mut found = lines.filter_map(|line| line.strip_prefix(key.as_bytes()));
        found.next().map(unescape)
    };
    if value("control=").is_some_and(|control| control == "off") {
        return None;
    }
    Some(value("control_name=").map_or_else(|| CONTROL_NAME.into(), PathBuf::from))
}

/// Whether that is a mount's control file and not a file of the source that has its name: of those,
/// each look finds the same inode.
fn is_control_file(path: &Path) -> bool {
    let look = || fs::symlink_metadata(path).ok();
    match (look(), look()) {
        (Some(one), Some(other)) => one.is_file() && one.len() == 0 && one.ino() != other.ino(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_split_where_its_last_part_begins() {
        let parts = |name: &'static str| {
            let split = split(name.as_bytes())?;
            let text = |part: &[u8]| String::from_utf8_lossy(part).into_owned();
            Some((text(split.0), text(split.1)))
        };
        let both = |parent: &str, last: &str| Some((parent.to_owned(), last.to_owned()));
        assert_eq!(parts("a"), both(".", "a"));
        assert_eq!(parts("a/b"), both("a/", "b"));
        assert_eq!(parts("/b//"), both("/", "b//"));
        assert_eq!(parts("../b/"), both("../", "b/"));
        for folder in ["", "/", ".", "..", "a/..", "a/./"] {
            assert_eq!(parts(folder), None, "{folder}");
        }
    }

    #[test]
    fn an_ordinary_file_is_no_control_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(!is_control_file(file.path()));
        assert!(!is_control_file(Path::new("/nowhere")));
    }

    #[test]
    fn what_a_list_does_not_say_counts_as_nothing() {
        let text = r#"[{"number": 3, "owner": 0, "title": "a -> b", "new": [], "method": null}]"#;
        let list: Vec<Entry> = serde_json::from_str(text).unwrap();
        assert_eq!(list[0].number, 3);
        assert_eq!(list[0].standing.method, None);
    }
}
