//! While others exchange names as fast as they can, no copy leaves the tree.

use std::path::Path;

use crate::callers::escape::beside_swappers;
use crate::support::{Dice, Need, require, soak};

use super::*;

#[test]
fn no_link_leads_a_tree_copy_out() {
    if !require(&[Need::Root]) {
        return;
    }
    let mut dice = Dice::new(4711);
    let (mut done, mut some, mut failed) = (0, 0, 0);
    let deed = |source: &Path| {
        let mut options = archive();
        // What was copied is not copied on: it would grow for ever.
        options.exclude = vec![b"copied*".to_vec()];
        options.inplace = dice.below(4) == 0;
        let place = |dice: &mut Dice| match dice.below(4) {
            0 => format!("alt/x{}", dice.below(6)),
            1 => format!("s{0}/n{1}", dice.below(3), dice.below(4)),
            _ => format!("s{}", dice.below(3)),
        };
        let (from, to) = (place(&mut dice), place(&mut dice));
        let to = format!("{to}/copied{}", dice.below(2));
        let copied = copy(source, &options, &[&from], &to);
        match (copied.outcome.is_ok(), copied.failures.is_empty()) {
            (true, _) => done += 1,
            (false, false) => some += 1,
            (false, true) => failed += 1,
        }
    };
    beside_swappers(soak(100).max(5), deed);
    println!("{done} copied, {some} in part, {failed} refused");
    assert!(done > 0 && failed > 0, "the exchanges met no copy");
}
