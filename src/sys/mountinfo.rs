//! What is mounted where: `/proc/self/mountinfo` (proc_pid_mountinfo(5)).

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use crate::sys::procfd;

/// The type that the kernel shows for our mounts.
pub const KIND: &str = "fuse.corfs";

/// One line of mountinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Number of the mount, unique while it lives.
    pub id: u64,
    /// Major and minor number of the file system's `st_dev`.
    pub device: (u32, u32),
    /// Which folder of the file system is mounted here; `/` unless it is a bind mount.
    pub root: PathBuf,
    /// Where.
    pub mountpoint: PathBuf,
    /// Type with subtype (`fuse.corfs`).
    pub kind: OsString,
    /// What is mounted: a device, or whatever the file system calls it (fsname).
    pub source: OsString,
    /// Options of the file system, as it shows them.
    pub options: OsString,
}

impl Mount {
    /// Whether it is one of ours.
    pub fn is_corfs(&self) -> bool {
        self.kind == KIND
    }
}

/// Every mount of this process's namespace that it can reach.
pub fn read() -> io::Result<Vec<Mount>> {
    Ok(parse(&procfd::read("/proc/self/mountinfo")?))
}

/// Lines that cannot be understood are left out: a new kernel may add forms.
fn parse(text: &[u8]) -> Vec<Mount> {
    text.split(|&b| b == b'\n').filter_map(parse_line).collect()
}

/// `36 35 98:0 /root /mount rw,noatime master:1 - ext3 /dev/root rw`
fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&b| b == b' ');
    let id = number(fields.next()?)?;
    let _parent = fields.next()?;
    let device = std::str::from_utf8(fields.next()?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let root = unescape(fields.next()?);
    let mountpoint = unescape(fields.next()?);
    fields.find(|field| *field == b"-")?;
    Some(Mount {
        id,
        device: (major.parse().ok()?, minor.parse().ok()?),
        root: root.into(),
        mountpoint: mountpoint.into(),
        kind: unescape(fields.next()?),
        source: unescape(fields.next()?),
        options: fields.next().map(unescape).unwrap_or_default(),
    })
}

/// A decimal number.
pub fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.trim().parse().ok()
}

/// Undoes the kernel's `\ooo`, which stands for space, tab, newline, backslash and `#`.
pub fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        match octal(rest) {
            Some(byte) => {
                bytes.push(byte);
                rest = &rest[4..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(bytes)
}

/// The byte that `\ooo` at the start of `text` stands for.
fn octal(text: &[u8]) -> Option<u8> {
    let digits = text.strip_prefix(b"\\")?.get(..3)?;
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn a_line_with_optional_fields_and_escapes_is_understood() {
        let text = b"120 28 0:52 / /mnt/a\\040b,\\012c\\134 rw,nosuid shared:3 master:1 - fuse.corfs /s\\040x rw,user_id=0\n\
            28 1 8:1 /sub / rw - ext4 /dev/root rw\n\
            nonsense\n";
        let mounts = parse(text);
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[0].id, 120);
        assert_eq!(mounts[0].device, (0, 52));
        assert_eq!(mounts[0].mountpoint, Path::new("/mnt/a b,\nc\\"));
        assert!(mounts[0].is_corfs());
        assert_eq!(mounts[0].source, "/s x");
        assert_eq!(mounts[0].options, "rw,user_id=0");
        assert_eq!(mounts[1].root, Path::new("/sub"));
        assert_eq!(mounts[1].mountpoint, Path::new("/"));
        assert!(!mounts[1].is_corfs());
    }

    #[test]
    fn the_root_of_this_process_is_mounted() {
        let mounts = read().unwrap();
        assert!(mounts.iter().any(|m| m.mountpoint == Path::new("/")));
    }
}
