//! What holds for any bytes as a line of `.copy`: no panic, and what is refused is refused with a
//! column within the line, in words that stay on one. For the fuzz target, and for a test that runs
//! it on random bytes.

use corfs::copy::language::{Request, parse, quote};

/// Panics where it does not hold.
pub(crate) fn check(line: &[u8]) {
    match parse(line) {
        Ok(None) => {}
        Ok(Some(Request::Copy(copy))) => {
            assert!(!copy.sources.is_empty());
            // Names are read back as they were read.
            let names = copy.sources.iter().chain([&copy.destination]);
            let again: Vec<String> = names.map(|name| quote(name)).collect();
            let again = format!("-- {}", again.join(" "));
            match parse(again.as_bytes()) {
                Ok(Some(Request::Copy(other))) => {
                    assert_eq!(other.sources, copy.sources);
                    assert_eq!(other.destination, copy.destination);
                }
                other => panic!("{again}: {other:?}"),
            }
        }
        Ok(Some(_)) => {}
        Err(fail) => {
            let said = fail.to_string();
            assert!(!said.chars().any(char::is_control), "{said}");
            let column = said
                .split("column ")
                .nth(1)
                .and_then(|rest| rest.split(':').next());
            let column: usize = column.expect("a column").parse().expect("a number");
            assert!((1..=line.len() + 1).contains(&column), "{said}");
        }
    }
}
