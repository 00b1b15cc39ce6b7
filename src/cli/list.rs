//! The list behind `-o`: words between commas.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// One word of the list, or one long option: a name, and a value if one was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) name: OsString,
    pub(super) value: Option<OsString>,
}

impl Word {
    /// `name` or `name=value`, as it would stand in a list.
    pub(super) fn shown(&self) -> String {
        let name = self.name.display();
        match &self.value {
            Some(value) => format!("{name}={}", value.display()),
            None => name.to_string(),
        }
    }
}

/// The words of a list. `\,` is a comma and `\\` a backslash within a word; a backslash before
/// anything else is itself. Nothing between two commas is no word.
pub(super) fn words(list: &OsStr) -> Vec<Word> {
    split(list.as_bytes()).into_iter().map(word).collect()
}

fn split(list: &[u8]) -> Vec<Vec<u8>> {
    let mut words = vec![Vec::new()];
    let mut bytes = list.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        let byte = match byte {
            b',' => {
                words.push(Vec::new());
                continue;
            }
            b'\\' => bytes.next_if(|next| matches!(next, b',' | b'\\')),
            _ => None,
        }
        .unwrap_or(byte);
        if let Some(word) = words.last_mut() {
            word.push(byte);
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

fn word(bytes: Vec<u8>) -> Word {
    let end = bytes.iter().position(|&b| b == b'=');
    let (name, value) = match end {
        Some(end) => (&bytes[..end], Some(&bytes[end + 1..])),
        None => (&bytes[..], None),
    };
    Word {
        name: OsString::from_vec(name.to_vec()),
        value: value.map(|value| OsString::from_vec(value.to_vec())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn join(words: &[Vec<u8>]) -> Vec<u8> {
        let escape = |word: &Vec<u8>| {
            let escaped = word.iter().flat_map(|&byte| match byte {
                b',' | b'\\' => vec![b'\\', byte],
                _ => vec![byte],
            });
            escaped.collect::<Vec<u8>>()
        };
        words.iter().map(escape).collect::<Vec<_>>().join(&b',')
    }

    fn shown(list: &str) -> Vec<String> {
        words(OsStr::new(list)).iter().map(Word::shown).collect()
    }

    #[test]
    fn commas_separate_and_backslashes_escape() {
        assert_eq!(shown("ro,fsname=a=b"), ["ro", "fsname=a=b"]);
        assert_eq!(shown(r"fsname=a\,b,ro"), ["fsname=a,b", "ro"]);
        assert_eq!(shown(r"fsname=a\\,ro"), [r"fsname=a\", "ro"]);
        assert_eq!(shown(r"fsname=a\b\"), [r"fsname=a\b\"]);
        assert_eq!(shown(",,ro,,"), ["ro"]);
        assert!(shown("").is_empty());
    }

    #[test]
    fn the_value_is_what_follows_the_first_equals_sign() {
        let found = words(OsStr::new("a=,b"));
        assert_eq!(found[0].value.as_deref(), Some(OsStr::new("")));
        assert_eq!(found[1].value, None);
    }

    proptest! {
        #[test]
        fn splitting_undoes_joining(words in vec(vec(any::<u8>(), 1..8), 0..6)) {
            prop_assert_eq!(split(&join(&words)), words);
        }

        #[test]
        fn a_word_shows_as_it_was_written(text in "[a-z]{1,5}(=[a-z=\\\\,]{0,5})?") {
            prop_assert_eq!(word(text.clone().into_bytes()).shown(), text);
        }
    }
}
