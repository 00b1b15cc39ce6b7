//! Any bytes as a line of `.copy`.

#![no_main]

#[path = "../check.rs"]
mod check;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|line: &[u8]| check::check(line));
