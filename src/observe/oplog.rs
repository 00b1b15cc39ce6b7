//! The lines of the operation log, and the bounded stream that one reader gets.

use std::fmt::Write;
use std::time::Duration;

use super::Op;

/// How many bytes wait for a reader at most; what comes while they wait is lost, and counted.
const MOST: usize = 1 << 20;

/// What stands at the start of a log: the version of the form, and the fields of a line, between
/// tabs. Seconds since 1970 at its start, and that it took, until its answer; an errno of 0 is none;
/// `-` is a field that means nothing to that operation. New fields come at the end: a reader takes
/// the first twelve for granted, and no others.
pub const HEADER: &str = "\
# corfs oplog 1
# time\toperation\tpath\tother\toffset\tsize\tmode\tflags\terrno\tseconds\tuid\tpid\t\
handle\tbytes\tto_handle\tto_offset
";

/// What the log says at the place of lines that its reader was too slow for.
pub const LOST: &str = "# lost ";

/// One operation.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// When it began, since 1970.
    pub time: Duration,
    /// Which.
    pub op: Op,
    /// On what, below the root of the mount; empty for the root. `None`: an inode whose last name
    /// went through the mount, and that somebody has open still.
    pub path: Option<Vec<u8>>,
    /// The new path of a rename or a link, the file that a range is copied to, the target of a
    /// symbolic link, the name of an extended attribute.
    pub other: Option<Vec<u8>>,
    /// In bytes, or the position of a listing.
    pub offset: Option<u64>,
    /// Bytes that were asked for, or a new size.
    pub size: Option<u64>,
    /// The mode of what is made, without what the caller's umask takes away, or a new one.
    pub mode: Option<u32>,
    /// Of an open, a rename, an allocation; the command of an ioctl; the mask of access.
    pub flags: Option<u32>,
    /// 0 when it went well.
    pub errno: i32,
    /// How long it took.
    pub took: Duration,
    /// Who asked: the user, and the thread (0 for one whom the daemon cannot see).
    pub uid: u32,
    /// The thread.
    pub pid: u32,
    /// The number of the open file: what an open ended with, or what is worked on.
    pub handle: Option<u64>,
    /// How many bytes were read, written or copied.
    pub bytes: Option<u64>,
    /// The open file that a range is copied to, and where in it.
    pub to_handle: Option<u64>,
    /// Where in it.
    pub to_offset: Option<u64>,
}

impl Entry {
    /// The line for it, with its end.
    pub fn line(&self) -> String {
        let mut out = String::with_capacity(128);
        let seconds = |time: Duration| format!("{}.{:06}", time.as_secs(), time.subsec_micros());
        // Writing to a String cannot fail.
        let _ = write!(out, "{}\t{}\t", seconds(self.time), self.op.label());
        match &self.path {
            // The root needs a name of its own: an empty field is hard to see.
            Some(path) if path.is_empty() => out.push('.'),
            Some(path) => escape(path, &mut out),
            None => out.push('-'),
        }
        out.push('\t');
        match &self.other {
            Some(other) => escape(other, &mut out),
            None => out.push('-'),
        }
        numbers(&[self.offset, self.size], &mut out);
        let _ = match self.mode {
            Some(mode) => write!(out, "\t{mode:o}"),
            None => write!(out, "\t-"),
        };
        let _ = match self.flags {
            Some(flags) => write!(out, "\t{flags:#x}"),
            None => write!(out, "\t-"),
        };
        let took = seconds(self.took);
        let _ = write!(out, "\t{}\t{took}\t{}\t{}", self.errno, self.uid, self.pid);
        let of_files = [self.handle, self.bytes, self.to_handle, self.to_offset];
        numbers(&of_files, &mut out);
        out.push('\n');
        out
    }

    /// Reads a line back; `None` for a comment, and for what is no line. What an older log lacks at
    /// the end is nothing, and what a newer one has there is passed over.
    pub fn parse(line: &str) -> Option<Self> {
        let fields: Vec<&str> = line.split('\t').collect();
        let [
            time,
            op,
            path,
            other,
            offset,
            size,
            mode,
            flags,
            errno,
            took,
            uid,
            pid,
            later @ ..,
        ] = fields.as_slice()
        else {
            return None;
        };
        let later = |at: usize| {
            let field = later.get(at).copied().unwrap_or("-");
            optional(field, |text| text.parse().ok())
        };
        let op = Op::ALL.iter().find(|known| known.label() == *op)?;
        Some(Self {
            time: seconds(time)?,
            op: *op,
            path: optional(path, |path| match path {
                "." => Some(Vec::new()),
                other => unescape(other),
            })?,
            other: optional(other, unescape)?,
            offset: optional(offset, |text| text.parse().ok())?,
            size: optional(size, |text| text.parse().ok())?,
            mode: optional(mode, |text| u32::from_str_radix(text, 8).ok())?,
            flags: optional(flags, |text| {
                u32::from_str_radix(text.strip_prefix("0x")?, 16).ok()
            })?,
            errno: errno.parse().ok()?,
            took: seconds(took)?,
            uid: uid.parse().ok()?,
            pid: pid.parse().ok()?,
            handle: later(0)?,
            bytes: later(1)?,
            to_handle: later(2)?,
            to_offset: later(3)?,
        })
    }
}

/// Each as a field.
fn numbers(all: &[Option<u64>], out: &mut String) {
    for number in all {
        // Writing to a String cannot fail.
        let _ = match number {
            Some(number) => write!(out, "\t{number}"),
            None => write!(out, "\t-"),
        };
    }
}

/// `-` is nothing; anything else must be right.
fn optional<T>(field: &str, read: impl FnOnce(&str) -> Option<T>) -> Option<Option<T>> {
    if field == "-" {
        return Some(None);
    }
    read(field).map(Some)
}

fn seconds(text: &str) -> Option<Duration> {
    let (whole, micros) = text.split_once('.')?;
    if micros.len() != 6 {
        return None;
    }
    let whole = Duration::from_secs(whole.parse().ok()?);
    whole.checked_add(Duration::from_micros(micros.parse().ok()?))
}

/// Bytes as text: what is no printable ASCII, and the backslash, as `\` and three octal digits.
/// A name that is a sign of ours (`-`, `.`) is escaped too, so that it is not taken for one.
fn escape(bytes: &[u8], out: &mut String) {
    let sign = matches!(bytes, b"-" | b".");
    for &byte in bytes {
        if byte.is_ascii_graphic() && byte != b'\\' && !sign {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "\\{byte:03o}");
        }
    }
}

fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte == b'\\' {
            let digits = std::str::from_utf8(rest.get(..3)?).ok()?;
            out.push(u8::from_str_radix(digits, 8).ok()?);
            rest = &rest[3..];
        } else {
            out.push(byte);
        }
    }
    Some(out)
}

/// What one reader has not read yet.
#[derive(Debug)]
pub struct Stream {
    text: Vec<u8>,
    lost: u64,
}

impl Default for Stream {
    /// At its start: the header waits.
    fn default() -> Self {
        Self {
            text: HEADER.into(),
            lost: 0,
        }
    }
}

impl Stream {
    /// Adds a line, or counts it as lost.
    pub fn push(&mut self, line: &str) {
        if self.text.len() + line.len() > MOST {
            self.lost += 1;
            return;
        }
        self.tell_lost();
        self.text.extend_from_slice(line.as_bytes());
    }

    /// Whether there is something to read.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty() && self.lost == 0
    }

    /// The next bytes, at most so many.
    pub fn take(&mut self, most: usize) -> Vec<u8> {
        if self.text.is_empty() {
            self.tell_lost();
        }
        let rest = self.text.split_off(most.min(self.text.len()));
        std::mem::replace(&mut self.text, rest)
    }

    fn tell_lost(&mut self) {
        if self.lost > 0 {
            let line = format!("{LOST}{}\n", self.lost);
            self.text.extend_from_slice(line.as_bytes());
            self.lost = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry() -> Entry {
        Entry {
            time: Duration::new(1_795_846_994, 123_456_000),
            op: Op::Read,
            path: Some(b"dir/file".to_vec()),
            other: None,
            offset: Some(4096),
            size: Some(131_072),
            mode: None,
            flags: None,
            errno: 5,
            took: Duration::from_micros(42),
            uid: 1000,
            pid: 77,
            handle: Some(12),
            bytes: Some(131_000),
            to_handle: None,
            to_offset: None,
        }
    }

    #[test]
    fn a_line_has_every_field() {
        let expected = "1795846994.123456\tread\tdir/file\t-\t4096\t131072\t-\t-\t5\t0.000042\t\
             1000\t77\t12\t131000\t-\t-\n";
        assert_eq!(entry().line(), expected);
        let create = Entry {
            op: Op::Create,
            path: Some(Vec::new()),
            other: Some(b"-".to_vec()),
            mode: Some(0o644),
            flags: Some(0x8001),
            ..entry()
        };
        let line = create.line();
        assert!(line.contains("\t.\t\\055\t"), "{line}");
        assert!(line.contains("\t644\t0x8001\t"), "{line}");
        let names = HEADER.lines().last().unwrap().split('\t').count();
        assert_eq!(line.split('\t').count(), names);
    }

    proptest! {
        #[test]
        fn every_line_comes_back(
            path in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..20)),
            other in proptest::option::of(proptest::collection::vec(any::<u8>(), 1..20)),
            offset in proptest::option::of(any::<u64>()),
            mode in proptest::option::of(any::<u32>()),
            errno in 0..200i32,
            micros in 0..u64::from(u32::MAX),
        ) {
            let entry = Entry {
                path,
                other,
                offset,
                mode,
                errno,
                flags: mode,
                handle: offset,
                to_handle: offset,
                to_offset: offset,
                took: Duration::from_micros(micros),
                ..entry()
            };
            let line = entry.line();
            prop_assert!(line.is_ascii() && line.matches('\n').count() == 1);
            prop_assert_eq!(Entry::parse(line.trim_end_matches('\n')), Some(entry));
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,80}") {
            let _ = Entry::parse(&text);
        }
    }

    #[test]
    fn logs_that_are_older_or_newer_are_read() {
        let line = entry().line();
        let line = line.trim_end_matches('\n');
        let older: Vec<&str> = line.split('\t').take(12).collect();
        let bare = Entry {
            handle: None,
            bytes: None,
            ..entry()
        };
        assert_eq!(Entry::parse(&older.join("\t")), Some(bare));
        assert_eq!(Entry::parse(&format!("{line}\tmore")), Some(entry()));
        assert_eq!(Entry::parse(&line.replace("\t12\t", "\tx\t")), None);
    }

    #[test]
    fn what_is_no_line_is_none() {
        for line in HEADER.lines().chain(["", "# lost 3", "a\tb", "1.5\tread"]) {
            assert_eq!(Entry::parse(line), None, "{line}");
        }
        let line = entry().line();
        assert_eq!(Entry::parse(&line.replace("read", "reed")), None);
    }

    #[test]
    fn a_slow_reader_is_told_how_many_lines_it_lost() {
        let mut stream = Stream::default();
        assert_eq!(stream.take(usize::MAX), HEADER.as_bytes());
        assert!(stream.is_empty());
        let line = "x".repeat(1023) + "\n";
        for _ in 0..1030 {
            stream.push(&line);
        }
        assert_eq!(stream.take(1 << 20).len(), 1 << 20);
        assert!(!stream.is_empty(), "the loss is still to be told");
        assert_eq!(stream.take(100), b"# lost 6\n");
        assert!(stream.is_empty());
        stream.push("a\n");
        assert_eq!(stream.take(1), b"a");
        assert_eq!(stream.take(10), b"\n");
    }

    #[test]
    fn losses_stand_where_they_happened() {
        let mut stream = Stream::default();
        stream.push(&"x".repeat(MOST - HEADER.len()));
        stream.push("lost\n");
        stream.take(usize::MAX);
        stream.push("next\n");
        assert_eq!(stream.take(usize::MAX), b"# lost 1\nnext\n");
    }
}
