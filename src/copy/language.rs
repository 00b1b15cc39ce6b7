//! What a line written into a `.copy` means: `[--method=METHOD] [--chunk=SIZE] [--] SRC DST`.

use super::options::{CopyOptions, Method};
use crate::sys::Result;

pub use super::words::quote;
use super::words::{Word, refuse, split};

const LEAST_CHUNK: u64 = 64 << 10;
const MOST_CHUNK: u64 = 1 << 30;
const CHUNK_UNIT: u64 = 4096;

/// One copy, as asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// How to copy.
    pub options: CopyOptions,
    /// What to copy, as named.
    pub source: Vec<u8>,
    /// Where to, as named.
    pub destination: Vec<u8>,
}

/// Reads one line (without its newline). An empty one, or a comment, is `None`.
///
/// # Errors
/// EINVAL, with the column and the word that is wrong.
pub fn parse(line: &[u8]) -> Result<Option<Command>> {
    let words = split(line)?;
    if words.is_empty() {
        return Ok(None);
    }
    let mut options = Options {
        words: words.iter(),
        options: CopyOptions::default(),
    };
    let first = options.read()?;
    let rest: Vec<&Word> = options.words.collect();
    let (source, destination) = match (first, rest.as_slice()) {
        (None, _) => return Err(refuse(line.len() + 1, "the names are missing")),
        (Some(_), []) => return Err(refuse(line.len() + 1, "the destination is missing")),
        (Some(source), [destination]) => (source, destination),
        (Some(_), [_, extra, ..]) => return Err(extra.refuse("one name too many:")),
    };
    Ok(Some(Command {
        options: options.options,
        source: source.bytes.clone(),
        destination: destination.bytes.clone(),
    }))
}

struct Options<'a> {
    words: std::slice::Iter<'a, Word>,
    options: CopyOptions,
}

impl<'a> Options<'a> {
    /// Takes all options, and answers the first word that is none.
    fn read(&mut self) -> Result<Option<&'a Word>> {
        while let Some(word) = self.words.next() {
            match word.bytes.as_slice() {
                b"--" => return Ok(self.words.next()),
                [b'-', _, ..] => self.option(word)?,
                _ => return Ok(Some(word)),
            }
        }
        Ok(None)
    }

    fn option(&mut self, word: &'a Word) -> Result<()> {
        let mut parts = word.bytes.splitn(2, |&byte| byte == b'=');
        let name = parts.next().unwrap_or_default();
        let known = matches!(name, b"--method" | b"--chunk");
        let value = match parts.next() {
            _ if !known => return Err(word.refuse("unknown option")),
            Some(value) => value,
            None => match self.words.next() {
                Some(next) => &next.bytes,
                None => return Err(word.refuse("no value for")),
            },
        };
        if name == b"--method" {
            let method = method(value).ok_or_else(|| word.refuse("unknown method in"))?;
            self.options.method = Some(method);
        } else {
            self.options.chunk = chunk(value).ok_or_else(|| {
                word.refuse("a chunk is 64K to 1G, a multiple of 4096; it is not so in")
            })?;
        }
        Ok(())
    }
}

fn method(value: &[u8]) -> Option<Method> {
    [Method::MapWrite, Method::MapMap]
        .into_iter()
        .find(|method| method.name().as_bytes() == value)
}

fn chunk(value: &[u8]) -> Option<u64> {
    let value = std::str::from_utf8(value).ok()?;
    let digits = value.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match value[digits.len()..].to_ascii_lowercase().as_str() {
        "" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        _ => return None,
    };
    let bytes = digits.parse::<u64>().ok()?.checked_mul(unit)?;
    let fits = (LEAST_CHUNK..=MOST_CHUNK).contains(&bytes) && bytes % CHUNK_UNIT == 0;
    fits.then_some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn command(line: &str) -> Command {
        parse(line.as_bytes()).unwrap().unwrap()
    }

    fn complaint(line: &str) -> String {
        parse(line.as_bytes()).unwrap_err().detail.unwrap().into()
    }

    #[test]
    fn a_line_is_a_source_and_a_destination() {
        let plain = command("from 'to there'");
        assert_eq!(plain.source, b"from");
        assert_eq!(plain.destination, b"to there");
        assert_eq!(plain.options, CopyOptions::default());
    }

    #[test]
    fn nothing_and_comments_are_no_commands() {
        for line in ["", "  \t ", "# from to", "  #"] {
            assert_eq!(parse(line.as_bytes()).unwrap(), None);
        }
    }

    #[test]
    fn options_come_first() {
        let asked = command("--method=map-map --chunk 64KiB -- --a -b");
        assert_eq!(
            (asked.options.method, asked.options.chunk),
            (Some(Method::MapMap), 64 << 10)
        );
        assert_eq!(
            (asked.source, asked.destination),
            (b"--a".into(), b"-b".into())
        );
        assert_eq!(
            command("--method map-write a b").options.method,
            Some(Method::MapWrite)
        );
        assert_eq!(command("--chunk=1G - b").options.chunk, 1 << 30);
        assert_eq!(command("--chunk=131072 a b").options.chunk, 128 << 10);
        assert_eq!(command("--chunk=3m a b").options.chunk, 3 << 20);
    }

    #[test]
    fn a_complaint_names_the_column_and_the_word() {
        assert_eq!(complaint("a b c"), "column 5: one name too many: c");
        assert_eq!(complaint("a"), "column 2: the destination is missing");
        assert_eq!(complaint("--chunk=1M"), "column 11: the names are missing");
        assert_eq!(complaint("--"), "column 3: the names are missing");
        assert_eq!(complaint("  --foo a b"), "column 3: unknown option --foo");
        assert_eq!(complaint("-r a b"), "column 1: unknown option -r");
        assert_eq!(complaint("--chunk"), "column 1: no value for --chunk");
        assert_eq!(
            complaint("--method=read-write a b"),
            "column 1: unknown method in --method=read-write"
        );
    }

    #[test]
    fn chunks_out_of_bounds_are_refused() {
        let sizes = [
            "0",
            "4K",
            "65537",
            "2G",
            "1T",
            "-1",
            "M",
            "1KB",
            "x",
            "99999999999G",
            "",
        ];
        for size in sizes {
            assert!(complaint(&format!("--chunk={size} a b")).starts_with("column 1: a chunk is"));
        }
    }

    proptest! {
        #[test]
        fn no_line_makes_it_panic(line in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&line);
        }

        #[test]
        fn any_two_names_are_read_back(
            source in prop::collection::vec(1u8..=255, 0..40),
            destination in prop::collection::vec(1u8..=255, 0..40),
        ) {
            let line = format!("-- {} {}", quote(&source), quote(&destination));
            let read = parse(line.as_bytes()).unwrap().unwrap();
            prop_assert_eq!((read.source, read.destination), (source, destination));
        }
    }
}
