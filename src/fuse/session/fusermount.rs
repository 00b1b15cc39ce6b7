//! The way of an ordinary user: `fusermount3`, which is set-user-id root (fusermount3(1)).

use super::refusal::{Refusal, said, shown};
use super::settings::{Access, Settings};
use rustix::fd::OwnedFd;
use rustix::io::{Errno, FdFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
};
use std::ffi::{OsStr, OsString};
use std::io::{IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

const PROGRAM: &str = "fusermount3";

/// Mounts on `target`, and returns the descriptor that the requests come through.
pub(super) fn mount(
    settings: &Settings,
    fsname: &OsStr,
    target: &Path,
) -> Result<OwnedFd, Refusal> {
    let failed = |words: String| {
        let help = remedy(&words);
        Refusal::mount(format!("mount on {}: {words}{help}", shown(target)))
    };
    let program = find()?;
    let (ours, theirs) = socketpair().map_err(|e| failed(format!("socketpair: {}", said(e))))?;
    let mut child = Command::new(&program)
        .arg("-o")
        .arg(options(settings, fsname))
        .arg("--")
        .arg(target)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| failed(format!("run {}: {}", shown(&program), said(e))))?;
    drop(theirs);
    match receive(&ours) {
        Ok(Some(device)) => match finish(&mut child) {
            Ok(()) => Ok(device),
            Err(words) => Err(failed(words)),
        },
        Ok(None) => Err(failed(
            finish(&mut child)
                .err()
                .unwrap_or_else(|| "nothing came back".into()),
        )),
        Err(error) => Err(failed(format!(
            "{PROGRAM} does not answer: {}",
            said(error)
        ))),
    }
}

/// Unmounts `target`; the words of `fusermount3` when it would not.
pub(super) fn unmount(target: &Path, lazy: bool) -> Result<(), String> {
    let program = find().map_err(|refusal| refusal.words)?;
    let mut command = Command::new(&program);
    command.arg("-u");
    if lazy {
        command.arg("-z");
    }
    let output = command
        .arg("--")
        .arg(target)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("run {}: {}", shown(&program), said(e)))?;
    verdict(&output).map_err(|words| {
        let help = remedy(&words);
        words + help
    })
}

fn verdict(output: &Output) -> Result<(), String> {
    if output.status.success() {
        return Ok(());
    }
    let words = plain(&output.stderr);
    Err(if words.is_empty() {
        format!("{PROGRAM}: {}", output.status)
    } else {
        words
    })
}

/// Waits for the child: its words when it failed.
fn finish(child: &mut Child) -> Result<(), String> {
    let mut stderr = Vec::new();
    if let Some(pipe) = &mut child.stderr {
        // What could not be read is only missing from a message.
        let _ = pipe.read_to_end(&mut stderr);
    }
    let status = child
        .wait()
        .map_err(|e| format!("{PROGRAM}: {}", said(e)))?;
    let output = Output {
        status,
        stdout: Vec::new(),
        stderr,
    };
    verdict(&output)
}

/// What the program said, on one line.
fn plain(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    lines.join("; ").trim().to_owned()
}

/// What helps against the words of a failed `fusermount3`.
fn remedy(words: &str) -> &'static str {
    if words.contains("user_allow_other") {
        "; as root write the line user_allow_other into /etc/fuse.conf"
    } else if words.contains("no write access") {
        "; a user mounts on directories of his own"
    } else if words.contains("Operation not permitted") {
        "; fusermount3 must be set-user-id root: reinstall fuse3"
    } else if words.contains("determine username") {
        "; fusermount3 serves only users that have a name (getent passwd)"
    } else if words.contains("not found in") {
        "; only root and the user who mounted it may unmount it"
    } else {
        ""
    }
}

/// The program: first of the PATH, then where distributions put it.
fn find() -> Result<PathBuf, Refusal> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/bin", "/usr/bin"].map(PathBuf::from))
        .map(|folder| folder.join(PROGRAM))
        .find(|file| {
            file.metadata()
                .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        })
        .ok_or_else(|| {
            Refusal::mount(format!(
                "{PROGRAM} not found in PATH; install it (Debian: apt install fuse3), or mount as root"
            ))
        })
}

/// The list for `-o`. Commas and backslashes in a value stand behind a backslash.
fn options(settings: &Settings, fsname: &OsStr) -> OsString {
    let flags = settings.flags;
    let mut list = Vec::new();
    list.extend_from_slice(if settings.options.read_only {
        b"ro"
    } else {
        b"rw"
    });
    let mut word = |text: &[u8]| {
        list.push(b',');
        list.extend_from_slice(text);
    };
    word(if flags.suid { b"suid" } else { b"nosuid" });
    word(if flags.dev { b"dev" } else { b"nodev" });
    for (on, text) in [
        (flags.noexec, "noexec"),
        (flags.sync, "sync"),
        (flags.dirsync, "dirsync"),
        (settings.options.noatime, "noatime"),
        (settings.options.default_permissions, "default_permissions"),
        (settings.access != Access::Owner, "allow_other"),
    ] {
        if on {
            word(text.as_bytes());
        }
    }
    word(format!("max_read={}", super::mount::MAX_READ).as_bytes());
    word(b"subtype=corfs");
    word(b"fsname=");
    for &byte in fsname.as_bytes() {
        if matches!(byte, b',' | b'\\') {
            list.push(b'\\');
        }
        list.push(byte);
    }
    OsString::from_vec(list)
}

/// Our end closes when a program is started, theirs stays open for it.
fn socketpair() -> Result<(OwnedFd, OwnedFd), Errno> {
    let flags = SocketFlags::CLOEXEC;
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::io::fcntl_setfd(&theirs, FdFlags::empty())?;
    Ok((ours, theirs))
}

/// The descriptor that comes over the socket; `None` when the other side closed it instead.
fn receive(ours: &OwnedFd) -> Result<Option<OwnedFd>, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0_u8; 1];
    let mut data = [IoSliceMut::new(&mut byte)];
    rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(ours, &mut data, &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    let device = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok(device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_program_become_one_line_with_a_remedy() {
        let said = plain(b"fusermount3: option allow_other only allowed if 'user_allow_other' is set in /etc/fuse.conf\n");
        assert!(!said.contains('\n'));
        assert!(remedy(&said).contains("/etc/fuse.conf"));
        assert_eq!(plain(b"a\n b\n"), "a; b");
        assert_eq!(remedy("else"), "");
    }
}
