//! An error for the person at the command line, with the exit code that belongs to it.

use std::fmt;
use std::io;
use std::path::Path;

/// Exit codes, as mount(8) has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// The command line is wrong; or, as cp has it, something was not copied.
    Usage = 1,
    /// The system failed us: a log that cannot be opened, no more processes.
    System = 2,
    /// The mount, or the unmount, failed.
    Mount = 32,
}

impl Code {
    /// The code of that number, as it came from another process of ours.
    pub(super) fn of_number(number: u8) -> Self {
        match number {
            1 => Self::Usage,
            2 => Self::System,
            _ => Self::Mount,
        }
    }
}

/// What was tried, on what, what the system said, what to do; and the exit code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What the process exits with.
    pub code: Code,
    /// The words, without the program's name before them.
    pub words: String,
}

impl Refusal {
    /// A failure to mount or unmount: exit code 32.
    pub fn mount(words: impl Into<String>) -> Self {
        Self {
            code: Code::Mount,
            words: words.into(),
        }
    }

    /// A failure of the system: exit code 2.
    pub fn system(words: impl Into<String>) -> Self {
        Self {
            code: Code::System,
            words: words.into(),
        }
    }

    /// A wrong command line: exit code 1.
    pub fn usage(words: impl Into<String>) -> Self {
        Self {
            code: Code::Usage,
            words: words.into(),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words)
    }
}

impl std::error::Error for Refusal {}

/// A path as a message shows it: as it is, with control characters and bytes that are no text
/// escaped.
pub(super) fn shown(path: impl AsRef<Path>) -> String {
    let mut text = String::new();
    for chunk in std::os::unix::ffi::OsStrExt::as_bytes(path.as_ref().as_os_str()).utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() {
                text.extend(c.escape_default());
            } else {
                text.push(c);
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

/// What the system said, without the number that [`io::Error`] puts behind it.
pub(super) fn said(error: impl Into<io::Error>) -> String {
    let text = error.into().to_string();
    match text.find(" (os error ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn the_system_speaks_without_its_number() {
        assert_eq!(
            said(rustix::io::Errno::NOENT),
            "No such file or directory".to_owned()
        );
        assert_eq!(said(io::Error::other("plain")), "plain");
    }

    #[test]
    fn a_path_is_shown_on_one_line() {
        let path = OsStr::from_bytes(b"a b,\n\xff\\");
        assert_eq!(shown(path), "a b,\\n\\xff\\");
    }
}
