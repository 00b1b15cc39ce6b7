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

/// One write, or one flush, on its way through its lines.
#[derive(Debug)]
pub(super) struct Pass {
    data: Vec<u8>,
    /// Bytes that are done with.
    done: usize,
    /// Where the line ends that is being executed.
    end: usize,
    begun: bool,
    is_flush: bool,
    is_cut: bool,
    answer: Option<Result<usize>>,
}

impl Pass {
    /// The bytes of a write.
    pub(super) fn write(data: Vec<u8>) -> Self {
        Self {
            data,
            done: 0,
            end: 0,
            begun: false,
            is_flush: false,
            is_cut: false,
            answer: None,
        }
    }

    /// The bytes of a write(2) that the kernel may have cut here: then the rest is a write of its
    /// own, whose errno the writer never sees, for he is answered with the length of this one.
    pub(super) fn cut_write(data: Vec<u8>) -> Self {
        Self {
            is_cut: true,
            ..Self::write(data)
        }
    }

    /// A descriptor is closed.
    pub(super) fn flush() -> Self {
        Self {
            is_flush: true,
            ..Self::write(Vec::new())
        }
    }

    /// Whether nothing is left to be executed.
    pub(super) fn is_through(&self) -> bool {
        self.answer.is_some() || self.begun && !self.data[self.done..].contains(&b'\n')
    }
}

/// What is to be done next.
#[derive(Debug)]
pub(super) enum Step {
    /// To execute this line, and to tell [`Lines::executed`].
    Line(Vec<u8>),
    /// To answer: with the bytes that are done with, or an error.
    Answer(Result<usize>),
}

impl Lines {
    /// Goes on with a write or a flush. The lines of a write are executed in order, until one
    /// fails.
    ///
    /// A write is answered with how many of its bytes are done with. When a line fails after
    /// others of this write were done, these are counted, as a short write; the writer comes again
    /// with the rest, and gets the errno without a second try. The errors are that of the first
    /// line in this write, and EINVAL for a line of more than 64 KiB. A flush executes a last line
    /// that has no newline, and answers an error that no write has answered.
    ///
    /// A write that may be cut ([`Pass::cut_write`]) is answered short, too: the kernel then hands
    /// on no more of it, and the writer comes again with a line's beginning.
    pub(super) fn next(&mut self, pass: &mut Pass) -> Step {
        let begins = !std::mem::replace(&mut pass.begun, true);
        if let Some(answer) = pass.answer.take() {
            return Step::Answer(answer);
        }
        match pass.is_flush {
            true => self.next_of_flush(begins),
            false => self.next_of_write(pass, begins),
        }
    }

    fn next_of_write(&mut self, pass: &mut Pass, begins: bool) -> Step {
        let refused = |(line, _): &mut (Vec<u8>, Errno)| begins && pass.data.starts_with(line);
        if let Some((line, errno)) = self.refused.take_if(refused) {
            self.skipping = !line.ends_with(b"\n");
            return Step::Answer(Err(failed_before(errno)));
        }
        while let Some(newline) = pass.data[pass.done..]
            .iter()
            .position(|&byte| byte == b'\n')
        {
            let end = pass.done + newline;
            pass.end = end + 1;
            match self.line(&pass.data[pass.done..end]) {
                Ok(Some(line)) => return Step::Line(line),
                Ok(None) => pass.done = pass.end,
                Err(fail) => {
                    self.executed(pass, Err(fail));
                    break;
                }
            }
        }
        Step::Answer(match pass.answer.take() {
            Some(answer) => answer,
            None => self.rest(pass),
        })
    }

    /// What is behind the last newline of a write.
    fn rest(&mut self, pass: &Pass) -> Result<usize> {
        if pass.is_cut && pass.done > 0 {
            // The newline alone is an empty line when it comes again.
            return Ok(pass.done.min(pass.data.len() - 1));
        }
        match self.begin(&pass.data[pass.done..]) {
            Ok(()) => Ok(pass.data.len()),
            Err(fail) if pass.done == 0 => {
                self.skipping = true;
                Err(fail)
            }
            Err(fail) => {
                self.refused = Some((pass.data[pass.done..].to_vec(), fail.errno));
                Ok(pass.done)
            }
        }
    }

    fn next_of_flush(&mut self, begins: bool) -> Step {
        self.skipping = false;
        let line = std::mem::take(&mut self.partial);
        if begins && !line.is_empty() {
            return Step::Line(line);
        }
        Step::Answer(match self.refused.take() {
            Some((_, errno)) => Err(failed_before(errno)),
            None => Ok(0),
        })
    }

    /// Takes how the line went that was to be executed.
    pub(super) fn executed(&mut self, pass: &mut Pass, outcome: Result<()>) {
        match outcome {
            Ok(()) => pass.done = pass.end,
            // An errno that no write has answered is older than that of a last line.
            Err(fail) if pass.is_flush => {
                let older = self.refused.take().map(|(_, errno)| failed_before(errno));
                pass.answer = Some(Err(older.unwrap_or(fail)));
            }
            Err(fail) if pass.done == 0 => pass.answer = Some(Err(fail)),
            Err(fail) => {
                self.refused = Some((pass.data[pass.done..pass.end].to_vec(), fail.errno));
                pass.answer = Some(Ok(pass.done));
            }
        }
    }

    /// The answer when nobody can go on with a write or a flush, and no line of it is being
    /// executed: what is done counts, and else it is `fail`.
    pub(super) fn give_up(&mut self, pass: &mut Pass, fail: Fail) -> Result<usize> {
        if pass.is_through()
            && let Step::Answer(answer) = self.next(pass)
        {
            return answer;
        }
        match pass.done {
            0 => Err(fail),
            done => Ok(done),
        }
    }

    /// Bytes of a line whose end has not come.
    pub(super) fn begun(&self) -> usize {
        self.partial.len()
    }

    /// True when a flush has nothing to do.
    pub(super) fn is_settled(&self) -> bool {
        self.partial.is_empty() && self.refused.is_none() && !self.skipping
    }

    /// The end of a line has come: the whole of it, if it is one.
    fn line(&mut self, end: &[u8]) -> Result<Option<Vec<u8>>> {
        if std::mem::take(&mut self.skipping) {
            return Ok(None);
        }
        let mut line = std::mem::take(&mut self.partial);
        if line.len() + end.len() > MOST_LINE {
            return Err(too_long());
        }
        line.extend_from_slice(end);
        Ok(Some(line))
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

        fn run(&mut self, mut pass: Pass) -> std::result::Result<usize, Errno> {
            loop {
                match self.lines.next(&mut pass) {
                    Step::Answer(answer) => return answer.map_err(|fail| fail.errno),
                    Step::Line(line) => {
                        self.ran.push(String::from_utf8_lossy(&line).into_owned());
                        let outcome = match line.as_slice() {
                            [b'!', ..] => Err(Fail::new(Errno::NOSPC, "test")),
                            _ => Ok(()),
                        };
                        self.lines.executed(&mut pass, outcome);
                    }
                }
            }
        }

        fn write(&mut self, data: &str) -> std::result::Result<usize, Errno> {
            self.run(Pass::write(data.into()))
        }

        fn flush(&mut self) -> std::result::Result<(), Errno> {
            self.run(Pass::flush()).map(drop)
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
    fn a_write_that_may_be_cut_is_answered_short_at_a_newline() {
        let cut = |desk: &mut Desk, data: &str| desk.run(Pass::cut_write(data.into()));
        let mut desk = Desk::new();
        assert_eq!(cut(&mut desk, "a\nb\n!c"), Ok(4), "within a line");
        assert!(desk.lines.is_settled());
        assert_eq!(desk.write("!c\nd\n"), Err(Errno::NOSPC));
        assert_eq!(cut(&mut desk, "a\nb\n"), Ok(3), "at its end");
        assert_eq!(desk.write("\n!c\nd\n"), Ok(1));
        assert_eq!(desk.write("!c\nd\n"), Err(Errno::NOSPC));
        assert_eq!(desk.ran, ["a", "b", "!c", "a", "b", "", "!c"]);
        assert_eq!(cut(&mut desk, "a\n!b\nc\n"), Ok(2));
        assert_eq!(cut(&mut desk, "!b\nc\n"), Err(Errno::NOSPC));
        assert_eq!(
            cut(&mut desk, "e"),
            Ok(1),
            "there is nothing to be short by"
        );
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
    fn who_is_given_up_is_told_what_is_done() {
        let mut desk = Desk::new();
        // So many lines are executed before it.
        let mut given_up = |mut pass: Pass, lines: usize, outcome: Result<()>| {
            for line in 1..=lines {
                assert!(matches!(desk.lines.next(&mut pass), Step::Line(_)));
                let outcome = if line == lines {
                    outcome.clone()
                } else {
                    Ok(())
                };
                desk.lines.executed(&mut pass, outcome);
            }
            let fail = Fail::new(Errno::AGAIN, "thread");
            let answer = desk.lines.give_up(&mut pass, fail);
            answer.map_err(|fail| fail.errno)
        };
        let full = || Err(Fail::new(Errno::NOSPC, "test"));
        let write = |data: &str| Pass::write(data.into());
        assert_eq!(given_up(write("a\nb\n"), 0, Ok(())), Err(Errno::AGAIN));
        assert_eq!(given_up(write("a\nb\nc\n"), 1, Ok(())), Ok(2));
        assert_eq!(given_up(write("!\nb\n"), 1, full()), Err(Errno::NOSPC));
        assert_eq!(given_up(write("a\n!\nb\n"), 2, full()), Ok(2));
        assert_eq!(given_up(write("!\nb\n"), 0, Ok(())), Err(Errno::AGAIN));
        assert_eq!(given_up(write("a\nb"), 1, Ok(())), Ok(3));
        assert_eq!(given_up(Pass::flush(), 1, Ok(())), Err(Errno::NOSPC));
        assert_eq!(given_up(Pass::flush(), 0, Ok(())), Err(Errno::AGAIN));
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
