//! A few bytes that need no allocation of their own: names and file handles, of which a table
//! holds a million.

use std::fmt;

/// What stands inline; with the tag and the length it makes 24 bytes.
const INLINE: usize = 22;

/// Bytes, up to 22 of them inline.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Short(Bytes);

/// One length has one form only, so that the derived comparison is that of the bytes.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Bytes {
    /// Length and bytes, the rest zeros.
    Inline(u8, [u8; INLINE]),
    /// More than `INLINE` bytes.
    Boxed(Box<[u8]>),
}

impl Short {
    /// A copy of `bytes`.
    pub fn new(bytes: &[u8]) -> Self {
        let mut inline = [0; INLINE];
        match inline.get_mut(..bytes.len()) {
            Some(place) => {
                place.copy_from_slice(bytes);
                Self(Bytes::Inline(bytes.len() as u8, inline))
            }
            None => Self(Bytes::Boxed(bytes.into())),
        }
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Bytes::Inline(length, bytes) => &bytes[..usize::from(*length)],
            Bytes::Boxed(bytes) => bytes,
        }
    }
}

impl fmt::Debug for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.as_bytes().escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_every_length_come_back() {
        for length in 0..=300 {
            let bytes: Vec<u8> = (0..length).map(|n| n as u8).collect();
            let short = Short::new(&bytes);
            assert_eq!(short.as_bytes(), bytes);
            assert_eq!(short, Short::new(&bytes));
            assert_ne!(short, Short::new(&[&bytes[..], &[0]].concat()));
        }
    }

    #[test]
    fn it_is_as_small_as_a_vector_and_so_is_an_option_of_it() {
        assert_eq!(size_of::<Short>(), 24);
        assert_eq!(size_of::<Option<Short>>(), 24);
    }
}
