//! How long it takes until one who said Ctrl-C is answered.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::Sizes;
use crate::common::touch;
use crate::competitors::Competitor;
use crate::figures::Verdicts;
use crate::stage::Stage;

/// Milliseconds.
const MOST: u64 = 1000;
/// How far a copy is let go, one after the other.
const AFTER: [u64; 3] = [5, 60, 150];

/// SIGINT at several moments, in every method, natively and by `.copy`.
pub(crate) fn cancel(stage: &Stage, sizes: &Sizes, verdicts: &mut Verdicts) {
    const WAYS: [(&str, &str); 8] = [
        ("map-write", "--method=map-write"),
        ("map-map", "--method=map-map"),
        ("copy-range", "--method=copy-range"),
        ("read-write", "--method=read-write"),
        ("limited", "--limit=1M"),
        ("synced", "--sync"),
        ("verified", "--verify"),
        ("resumed", "--resume"),
    ];
    stage.make_file("big", sizes.file);
    println!(
        "\ncancel: one file of {} MiB, the slowest answer",
        sizes.file >> 20
    );
    for (name, option) in WAYS {
        let native = Competitor::program("engine", move |from, to| {
            crate::competitors::Program::new(env!("CARGO_BIN_EXE_corfs")).words([
                "copy",
                "--reflink=never",
                option,
                from,
                to,
            ])
        });
        let line = Competitor::line(".copy", &format!("--reflink=never {option}"));
        for who in [native, line] {
            let Some(slowest) = slowest(stage, &who, sizes) else {
                println!("  {name}, {}: every copy was done before", who.name);
                continue;
            };
            let what = format!("cancel, {name}, {} (ms)", who.name);
            verdicts.at_most(&stage.kind, &what, slowest.as_millis() as u64, MOST);
        }
    }
}

/// The longest of the answers; none when nothing was there to be stopped.
fn slowest(stage: &Stage, who: &Competitor, sizes: &Sizes) -> Option<Duration> {
    let mut slowest = None;
    for after in AFTER {
        let to = stage.new_name();
        touch(sizes.file);
        let mut child = who.start(stage, "big", &to).expect("a process");
        std::thread::sleep(Duration::from_millis(after));
        if child.try_wait().expect("wait").is_none() {
            let asked = Instant::now();
            // One that ends just now is no longer there to be told; it is waited for all the same.
            let _ = kill_process(Pid::from_child(&child), Signal::INT);
            child.wait().expect("wait");
            slowest = slowest.max(Some(asked.elapsed()));
        }
        stage.drop_copy(&to);
    }
    slowest
}
