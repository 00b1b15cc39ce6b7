//! Words on a line, quoted as a shell quotes them; any byte may stand in one, except NUL.

use std::fmt::Write as _;

use crate::sys::{Errno, Fail, Result};

/// A word and where it begins, counted from 1 in bytes, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) column: usize,
    pub(super) bytes: Vec<u8>,
    /// How many bytes it takes on the line.
    pub(super) raw: usize,
    /// Its last byte stands there as it is: neither quoted nor escaped.
    pub(super) ends_plain: bool,
}

impl Word {
    /// EINVAL that points at this word.
    pub(super) fn refuse(&self, why: &str) -> Fail {
        refuse(self.column, &format!("{why} {}", quote(&self.bytes)))
    }
}

/// EINVAL that points at a column.
pub(super) fn refuse(column: usize, why: &str) -> Fail {
    Fail::new(Errno::INVAL, "parse").because(format!("column {column}: {why}"))
}

/// Splits a line into words, up to a comment or its end.
///
/// # Errors
/// EINVAL with the column, for a quote that is not closed, an unfinished escape, a NUL.
pub(super) fn split(line: &[u8]) -> Result<Vec<Word>> {
    let mut scanner = Scanner { line, at: 0 };
    let mut words = Vec::new();
    while let Some(word) = scanner.word()? {
        words.push(word);
    }
    Ok(words)
}

/// Writes a word so that [`split`] (and bash) reads it back, on one line, without a byte that
/// could upset a terminal.
pub fn quote(word: &[u8]) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"_-./,+:@%=".contains(byte);
    match std::str::from_utf8(word) {
        Ok(text) if !text.is_empty() && word.iter().all(plain) => text.to_owned(),
        Ok(text) if !text.chars().any(char::is_control) => {
            format!("'{}'", text.replace('\'', r"'\''"))
        }
        _ => quote_bytes(word),
    }
}

fn quote_bytes(word: &[u8]) -> String {
    let mut quoted = String::from("$'");
    for &byte in word {
        match byte {
            b'\n' => quoted.push_str(r"\n"),
            b'\t' => quoted.push_str(r"\t"),
            b'\\' | b'\'' => quoted.extend(['\\', char::from(byte)]),
            b' '..=b'~' => quoted.push(char::from(byte)),
            // Writing to a String does not fail.
            _ => _ = write!(quoted, "\\{byte:03o}"),
        }
    }
    quoted.push('\'');
    quoted
}

struct Scanner<'a> {
    line: &'a [u8],
    at: usize,
}

impl Scanner<'_> {
    fn peek(&self) -> Option<u8> {
        self.line.get(self.at).copied()
    }

    /// The next byte, which must be there: `unfinished` says what lacks its end, and `since` where
    /// that began.
    fn need(&mut self, since: usize, unfinished: &str) -> Result<u8> {
        let byte = self
            .peek()
            .ok_or_else(|| refuse(since + 1, &format!("{unfinished} is not finished")))?;
        if byte == 0 {
            return Err(refuse(self.at + 1, "a NUL byte"));
        }
        self.at += 1;
        Ok(byte)
    }

    fn word(&mut self) -> Result<Option<Word>> {
        while self.peek().is_some_and(is_space) {
            self.at += 1;
        }
        let start = self.at;
        if matches!(self.peek(), None | Some(b'#')) {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        let mut ends_plain = false;
        while let Some(byte) = self.peek().filter(|byte| !is_space(*byte)) {
            let length = bytes.len();
            self.part(&mut bytes)?;
            // A quote or an escape leaves something else than the one byte that began it.
            ends_plain = !matches!(byte, b'\'' | b'"' | b'\\') && bytes[length..] == [byte];
        }
        Ok(Some(Word {
            column: start + 1,
            bytes,
            raw: self.at - start,
            ends_plain,
        }))
    }

    /// One byte, one escape or one quoted stretch of a word.
    fn part(&mut self, into: &mut Vec<u8>) -> Result<()> {
        let start = self.at;
        match self.need(start, "the word")? {
            b'\'' => self.single(start, into),
            b'"' => self.double(start, into),
            b'$' if self.peek() == Some(b'\'') => {
                self.at += 1;
                self.dollar(start, into)
            }
            b'\\' => {
                into.push(self.need(start, "the escape")?);
                Ok(())
            }
            byte => {
                into.push(byte);
                Ok(())
            }
        }
    }

    fn single(&mut self, start: usize, into: &mut Vec<u8>) -> Result<()> {
        loop {
            match self.need(start, "the quote")? {
                b'\'' => return Ok(()),
                byte => into.push(byte),
            }
        }
    }

    fn double(&mut self, start: usize, into: &mut Vec<u8>) -> Result<()> {
        loop {
            match self.need(start, "the quote")? {
                b'"' => return Ok(()),
                b'\\' => match self.need(start, "the quote")? {
                    byte @ (b'\\' | b'"' | b'$' | b'`') => into.push(byte),
                    byte => into.extend([b'\\', byte]),
                },
                byte => into.push(byte),
            }
        }
    }

    /// `$'...'` with the escapes of C, as bash and POSIX (2024) have it.
    fn dollar(&mut self, start: usize, into: &mut Vec<u8>) -> Result<()> {
        loop {
            match self.need(start, "the quote")? {
                b'\'' => return Ok(()),
                b'\\' => into.push(self.escape(start)?),
                byte => into.push(byte),
            }
        }
    }

    fn escape(&mut self, start: usize) -> Result<u8> {
        let column = self.at;
        let byte = match self.need(start, "the quote")? {
            b'a' => 0x07,
            b'b' => 0x08,
            b'e' => 0x1b,
            b'f' => 0x0c,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'v' => 0x0b,
            byte @ (b'\\' | b'\'' | b'"' | b'?') => byte,
            b'x' => self.digits(16, 2, column)?,
            b'0'..=b'7' => {
                self.at -= 1;
                self.digits(8, 3, column)?
            }
            _ => return Err(refuse(column, "an unknown escape")),
        };
        if byte == 0 {
            return Err(refuse(column, "a NUL byte"));
        }
        Ok(byte)
    }

    /// One byte written in at most `most` digits.
    fn digits(&mut self, radix: u32, most: usize, column: usize) -> Result<u8> {
        let mut value = None;
        for _ in 0..most {
            let Some(digit) = self.peek().and_then(|b| char::from(b).to_digit(radix)) else {
                break;
            };
            value = Some(value.unwrap_or(0) * radix + digit);
            self.at += 1;
        }
        value
            .and_then(|value| u8::try_from(value).ok())
            .ok_or_else(|| refuse(column, "an escape that is no byte"))
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n' | 0x0b | 0x0c)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn words(line: &str) -> Vec<Vec<u8>> {
        let split = split(line.as_bytes()).unwrap();
        split.into_iter().map(|word| word.bytes).collect()
    }

    fn complaint(line: &[u8]) -> String {
        let fail = split(line).unwrap_err();
        assert_eq!(fail.errno, Errno::INVAL);
        fail.detail.unwrap().into()
    }

    #[test]
    fn words_are_quoted_as_a_shell_does() {
        assert_eq!(words("a  b\tc"), [b"a", b"b", b"c"]);
        assert_eq!(words(r"a\ b 'c d' "), [b"a b".as_slice(), b"c d"]);
        assert_eq!(
            words(r#""a \"\\\$\` \n" ''"#),
            [br#"a "\$` \n"#.as_slice(), b""]
        );
        assert_eq!(words(r#"a'b 'c" d"\e"#), [b"ab c de"]);
        assert_eq!(
            words(r"'\' $x a$ $"),
            [b"\\".as_slice(), b"$x", b"a$", b"$"]
        );
        assert_eq!(words(r"$'\n\x41\101\'\e'z"), [b"\nAA'\x1bz"]);
    }

    #[test]
    fn a_comment_begins_only_where_a_word_would() {
        assert_eq!(words("a#b #c d"), [b"a#b"]);
        assert_eq!(words("   # all"), Vec::<Vec<u8>>::new());
        assert_eq!(words(r"\#a '#b'"), [b"#a", b"#b"]);
    }

    #[test]
    fn a_complaint_names_the_column() {
        assert_eq!(complaint(b"a 'b"), "column 3: the quote is not finished");
        assert_eq!(complaint(b"a b\\"), "column 4: the escape is not finished");
        assert_eq!(complaint(b"a b\0c"), "column 4: a NUL byte");
        assert_eq!(complaint(br"$'ab\q'"), "column 5: an unknown escape");
        assert_eq!(
            complaint(br"$'\777'"),
            "column 3: an escape that is no byte"
        );
        assert_eq!(complaint(br"$'\0'"), "column 3: a NUL byte");
    }

    #[test]
    fn quoting_stays_readable() {
        assert_eq!(quote(b"dir/file-1.txt"), "dir/file-1.txt");
        assert_eq!(quote("größe 1".as_bytes()), "'größe 1'");
        assert_eq!(quote(b"it's"), r"'it'\''s'");
        assert_eq!(quote(b"a\nb\xff1"), r"$'a\nb\3771'");
        assert_eq!(quote(b""), "''");
    }

    proptest! {
        #[test]
        fn no_line_makes_it_panic(line in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = split(&line);
        }

        #[test]
        fn no_odd_line_makes_it_panic(line in r#"[ab'"\\$x07n# ]{0,40}"#) {
            let _ = split(line.as_bytes());
        }

        #[test]
        fn what_was_quoted_is_read_back(word in prop::collection::vec(1u8..=255, 0..60)) {
            let quoted = quote(&word);
            prop_assert!(!quoted.chars().any(char::is_control));
            let read = split(quoted.as_bytes()).unwrap();
            let read: Vec<_> = read.into_iter().map(|word| (word.column, word.bytes)).collect();
            prop_assert_eq!(read, vec![(1, word)]);
        }
    }
}
