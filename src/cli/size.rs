//! Numbers with units.

use std::time::Duration;

pub(super) use crate::copy::language::args::bytes;

/// The longest timeout: a year, in seconds.
const LONGEST: f64 = 31_536_000.0;

/// Seconds, with decimals and an `s` behind them if one likes; `ms` for thousandths.
pub(super) fn seconds(text: &str) -> Option<Duration> {
    let (number, scale) = match text.strip_suffix("ms") {
        Some(number) => (number, 1000.0),
        None => (text.strip_suffix('s').unwrap_or(text), 1.0),
    };
    // "inf" and "nan" are numbers to the parser.
    if !number.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    let seconds = number.parse::<f64>().ok()? / scale;
    (seconds <= LONGEST).then(|| Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn units_are_powers_of_1024() {
        assert_eq!(bytes("4096"), Some(4096));
        assert_eq!(bytes("64K"), Some(65536));
        assert_eq!(bytes("64kib"), Some(65536));
        assert_eq!(bytes("3M"), Some(3 << 20));
        assert_eq!(bytes("1GiB"), Some(1 << 30));
        assert_eq!(bytes("2t"), Some(2 << 40));
    }

    #[test]
    fn what_is_no_size_is_none() {
        for text in [
            "",
            "K",
            "-1",
            "+1",
            "1.5M",
            "1KB",
            "1 K",
            "99999999999999T",
            "0x10",
        ] {
            assert_eq!(bytes(text), None, "{text}");
        }
    }

    #[test]
    fn seconds_have_decimals_and_a_bound() {
        assert_eq!(seconds("0"), Some(Duration::ZERO));
        assert_eq!(seconds("1.5"), Some(Duration::from_millis(1500)));
        assert_eq!(seconds("2s"), Some(Duration::from_secs(2)));
        assert_eq!(seconds("250ms"), Some(Duration::from_millis(250)));
        for text in ["", "s", "-1", "inf", "nan", "1h", "31536001", "1e300"] {
            assert_eq!(seconds(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parsers_panic(text in ".*") {
            let _ = (bytes(&text), seconds(&text));
        }
    }
}
