//! What cargo-fuzz would run for long, on a few random lines, so that it stays true.

use crate::support::{Dice, soak};

#[path = "../../fuzz/check.rs"]
mod check;

/// Pieces that the grammar knows; bytes alone seldom come as far as an option.
const PIECES: [&str; 24] = [
    " ",
    " ",
    " ",
    "a",
    "b/c",
    "--",
    "-r",
    "-a",
    "--chunk=",
    "64K",
    "--backup",
    "=",
    "'",
    "\"",
    "\\",
    "$'",
    "&",
    "#",
    "--wait",
    "--cancel",
    "all",
    "7",
    "--preserve=mode,links",
    "\u{e4}",
];

#[test]
fn random_lines_are_read_or_refused_in_words() {
    let mut dice = Dice::new(4711);
    for _ in 0..soak(100_000) {
        let mut line = Vec::new();
        for _ in 0..dice.below(12) {
            match dice.below(4) {
                0 => line.push(dice.below(256) as u8),
                _ => line.extend(PIECES[dice.below(PIECES.len() as u64) as usize].bytes()),
            }
        }
        check::check(&line);
    }
}
