//! The values of `uid=`, `gid=` and `map=`.

use std::ffi::OsStr;

use crate::mirror::{IdRange, LAST};

const NUMBER: &str = "must be a number, 0 to 4294967293";
const MAP: &str = "must be SOURCE:MOUNT:COUNT, as 1000:2000:1, three numbers; u before it for users \
                   alone, g for groups; several with / between";

/// Whose ids a map is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    Users,
    Groups,
    Both,
}

/// One id.
pub(super) fn one(value: &OsStr) -> Result<u32, &'static str> {
    let id = value.to_str().and_then(number);
    id.filter(|id| *id <= LAST).ok_or(NUMBER)
}

/// Maps, with `/` between them.
pub(super) fn maps(value: &OsStr) -> Result<Vec<(Which, IdRange)>, &'static str> {
    let maps = value.to_str().ok_or(MAP)?.split('/');
    maps.map(|text| map(text).ok_or(MAP)).collect()
}

fn map(text: &str) -> Option<(Which, IdRange)> {
    let (which, rest) = match text.as_bytes().first()? {
        b'u' => (Which::Users, &text[1..]),
        b'g' => (Which::Groups, &text[1..]),
        _ => (Which::Both, text),
    };
    let mut numbers = rest.split(':').map(number);
    let range = IdRange {
        source: numbers.next()??,
        mount: numbers.next()??,
        count: numbers.next()??,
    };
    numbers.next().is_none().then_some((which, range))
}

/// Digits alone: `parse` would take a sign.
fn number(text: &str) -> Option<u32> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}
