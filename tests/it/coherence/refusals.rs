//! What can't be watched is refused before it is mounted.

use super::*;
use crate::support::{Need, Scratch, corfs, output, require};

#[track_caller]
fn refused(source: &Path, options: &str) -> String {
    let point = Scratch::new();
    let mut command = corfs();
    let out = output(command.arg(source).arg(point.path()).args(["-o", options]));
    assert!(
        !out.status.success(),
        "{options} over {} went well",
        source.display()
    );
    String::from_utf8_lossy(&out.stderr).into_owned()
}

#[test]
fn a_fuse_source_can_not_be_watched_and_the_error_says_what_to_use() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    let below = Mount::of(source.path()).start();
    let words = refused(below.path(), "coherence=watch");
    assert!(words.contains("FUSE"), "{words}");
    assert!(
        words.contains("use coherence=ttl, or coherence=strict"),
        "{words}"
    );
    // The other ways work there.
    for way in [Way::Ttl, Way::Strict] {
        let above = way.start(below.path());
        source.file(&format!("{way:?}"), b"x");
        comes_true("through two mirrors", PATIENCE, || {
            above.path().join(format!("{way:?}")).exists()
        });
    }
}

#[test]
fn a_source_that_the_kernel_makes_up_can_not_be_watched() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let words = refused(Path::new("/proc"), "coherence=watch");
    assert!(words.contains("use coherence=ttl"), "{words}");
}

#[test]
fn strict_takes_no_timeout() {
    let source = Scratch::new();
    let words = refused(source.path(), "coherence=strict,attr_timeout=1");
    assert!(words.contains("leave out attr_timeout"), "{words}");
}
