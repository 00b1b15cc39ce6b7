//! How writes become lines, and how the fate of lines becomes the answer to a write.

use crate::sys::{Errno, Fail, Result};

/// The longest line, in bytes, without its newline.
const MOST_LINE: usize = 64 << 10;

/// What one open `.copy` remembers between writes.
#[derive(Debug, Default)]
pub(super) struct Lines {
    /// The beginning of a line whose end has not come.
    partial: Vec<u8>,
    /// The rest of a line that was too long is not taken for a line.
    skipping: bool,
    /// A line that failed after others in its write had been done, so that the write could only
    /// be answered short. With its newline, if it has one: one that is too long may have none.
    refused: Option<(Vec<u8>, Errno)>,
}

impl Lines {
    /// Takes the bytes of one write and has its lines executed in order, until one fails.
    ///
    /// Answers how many bytes are done with. When a line fails after others of this write were
    /// done, these are counted, as a short write; the writer comes again with the rest, and gets
    /// the errno without a second try.
    ///
    /// # Errors
    /// That of the first line in this write; EINVAL for a line of more than 64 KiB.
    pub(super) fn write(
        &mut self,
        data: &[u8],
        execute: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<usize> {
        if let Some((line, errno)) = self.refused.take_if(|(line, _)| data.starts_with(line)) {
            self.skipping = !line.ends_with(b"\n");
            return Err(failed_before(errno));
        }
        let mut done = 0;
        while let Some(newline) = data[done..].iter().position(|&byte| byte == b'\n') {
            let end = done + newline;
            if let Err(fail) = self.line(&data[done..end], execute) {
                if done == 0 {
                    return Err(fail);
                }
                self.refused = Some((data[done..=end].to_vec(), fail.errno));
                return Ok(done);
            }
            done = end + 1;
        }
        match self.begin(&data[done..]) {
            Ok(()) => Ok(data.len()),
            Err(fail) if done == 0 => {
                self.skipping = true;
                Err(fail)
            }
            Err(fail) => {
                self.refused = Some((data[done..].to_vec(), fail.errno));
                Ok(done)
            }
        }
    }

    /// Executes a last line that has no newline, and answers an error that no write has answered.
    pub(super) fn flush(&mut self, execute: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.skipping = false;
        let line = std::mem::take(&mut self.partial);
        let last = if line.is_empty() {
            Ok(())
        } else {
            execute(&line)
        };
        match self.refused.take() {
            Some((_, errno)) => Err(failed_before(errno)),
            None => last,
        }
    }

    /// True when a flush has nothing to do.
    pub(super) fn is_settled(&self) -> bool {
        self.partial.is_empty() && self.refused.is_none() && !self.skipping
    }

    /// The end of a line has come.
    fn line(&mut self, end: &[u8], execute: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        if std::mem::take(&mut self.skipping) {
            return Ok(());
        }
        let mut line = std::mem::take(&mut self.partial);
        if line.len() + end.len() > MOST_LINE {
            return Err(too_long());
        }
        line.extend_from_slice(end);
        execute(&line)
    }

    /// The beginning of a line has come, or its middle.
    fn begin(&mut self, part: &[u8]) -> Result<()> {
        if self.skipping {
            return Ok(());
        }
        if self.partial.len() + part.len() > MOST_LINE {
            self.partial = Vec::new();
            return Err(too_long());
        }
        self.partial.extend_from_slice(part);
        Ok(())
    }
}

fn failed_before(errno: Errno) -> Fail {
    Fail::new(errno, "copy").because("a line failed before")
}

fn too_long() -> Fail {
    Fail::new(Errno::INVAL, "parse").because("line too long")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Executes by noting; a line that begins with `!` fails.
    struct Desk {
        lines: Lines,
        ran: Vec<String>,
    }

    impl Desk {
        fn new() -> Self {
            Self {
                lines: Lines::default(),
                ran: vec![],
            }
        }

        fn with<R>(
            &mut self,
            f: impl FnOnce(&mut Lines, &mut dyn FnMut(&[u8]) -> Result<()>) -> R,
        ) -> R {
            let ran = &mut self.ran;
            f(&mut self.lines, &mut |line| {
                ran.push(String::from_utf8_lossy(line).into_owned());
                match line {
                    [b'!', ..] => Err(Fail::new(Errno::NOSPC, "test")),
                    _ => Ok(()),
                }
            })
        }

        fn write(&mut self, data: &str) -> std::result::Result<usize, Errno> {
            self.with(|lines, execute| lines.write(data.as_bytes(), execute))
                .map_err(|fail| fail.errno)
        }

        fn flush(&mut self) -> std::result::Result<(), Errno> {
            self.with(|lines, execute| lines.flush(execute))
                .map_err(|fail| fail.errno)
        }
    }

    #[test]
    fn lines_run_in_order() {
        let mut desk = Desk::new();
        assert_eq!(desk.write("a\nb\n\nc\n"), Ok(7));
        assert_eq!(desk.ran, ["a", "b", "", "c"]);
        assert!(desk.lines.is_settled());
        assert_eq!(desk.write(""), Ok(0));
    }

    #[test]
    fn a_line_in_parts_is_put_together_and_the_last_runs_at_flush() {
        let mut desk = Desk::new();
        assert_eq!(desk.write("a"), Ok(1));
        assert_eq!(desk.write("b"), Ok(1));
        assert!(desk.ran.is_empty() && !desk.lines.is_settled());
        assert_eq!(desk.write("c\nd"), Ok(3));
        assert_eq!(desk.ran, ["abc"]);
        assert_eq!(desk.flush(), Ok(()));
        assert_eq!(desk.flush(), Ok(()));
        assert_eq!(desk.ran, ["abc", "d"]);
    }

    #[test]
    fn the_first_line_answers_for_itself() {
        let mut desk = Desk::new();
        assert_eq!(desk.write("!a\nb\n"), Err(Errno::NOSPC));
        assert_eq!(desk.ran, ["!a"]);
        assert_eq!(desk.flush(), Ok(()));
        assert_eq!(desk.write("!"), Ok(1));
        assert_eq!(desk.write("c\nd\n"), Err(Errno::NOSPC));
        assert_eq!(desk.write("!x"), Ok(2));
        assert_eq!(desk.flush(), Err(Errno::NOSPC));
        assert_eq!(desk.flush(), Ok(()));
    }

    #[test]
    fn a_later_line_makes_the_write_short_and_answers_when_it_comes_again() {
        let mut desk = Desk::new();
        assert_eq!(desk.write("a\n!b\nc\n"), Ok(2));
        assert_eq!(desk.write("!b\nc\n"), Err(Errno::NOSPC));
        assert_eq!(desk.ran, ["a", "!b"]);
        assert_eq!(
            desk.write("!b\n"),
            Err(Errno::NOSPC),
            "asked anew, run anew"
        );
        assert_eq!(desk.ran, ["a", "!b", "!b"]);
    }

    #[test]
    fn a_flush_answers_what_no_write_has_answered_once() {
        let mut desk = Desk::new();
        assert_eq!(desk.write("a\n!b\nc\n"), Ok(2));
        assert_eq!(desk.write("d\n"), Ok(2), "another line is another matter");
        assert_eq!(desk.write("e"), Ok(1));
        assert_eq!(desk.flush(), Err(Errno::NOSPC));
        assert_eq!(desk.flush(), Ok(()));
        assert_eq!(desk.ran, ["a", "!b", "d", "e"]);
    }

    #[test]
    fn a_line_that_is_too_long_is_refused_and_its_rest_is_no_line() {
        let mut desk = Desk::new();
        let long = "x".repeat(MOST_LINE);
        assert_eq!(desk.write(&long), Ok(MOST_LINE));
        assert_eq!(desk.write("y"), Err(Errno::INVAL));
        assert_eq!(desk.write("rest\nb\n"), Ok(7));
        assert_eq!(desk.ran, ["b"]);
        assert_eq!(desk.write(&format!("{long}y\nc\n")), Err(Errno::INVAL));
        assert_eq!(desk.write(&format!("d\n{long}y")), Ok(2));
        assert_eq!(
            desk.write(&format!("{long}y")),
            Err(Errno::INVAL),
            "the rest of that"
        );
        assert_eq!(desk.write("rest\ne\n"), Ok(7));
        assert_eq!(desk.write(&format!("f\n{long}y")), Ok(2));
        assert_eq!(desk.flush(), Err(Errno::INVAL));
        assert_eq!(desk.ran, ["b", "d", "e", "f"]);
    }

    proptest! {
        #[test]
        fn lines_are_the_same_however_they_are_cut(
            text in "[a-c\n]{0,60}",
            cuts in prop::collection::vec(0usize..60, 0..8),
        ) {
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let mut desk = Desk::new();
            for pair in cuts.windows(2) {
                prop_assert_eq!(desk.write(&text[pair[0]..pair[1]]), Ok(pair[1] - pair[0]));
            }
            desk.flush().unwrap();
            let wanted: Vec<_> = text.strip_suffix('\n').unwrap_or(&text).split('\n').collect();
            let wanted = if text.is_empty() { vec![] } else { wanted };
            prop_assert_eq!(desk.ran, wanted);
        }
    }
}
