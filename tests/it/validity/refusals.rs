//! Directories that can't be a cache, and the words for it.

use super::*;

#[track_caller]
fn refused(source: &Path, cache: &Path) -> String {
    let point = Scratch::new();
    let out = output(corfs().arg("--cache").args([cache, source, point.path()]));
    assert_eq!(out.status.code(), Some(32), "{}", cache.display());
    assert!(!is_mounted(point.path(), "fuse.corfs"));
    String::from_utf8_lossy(&out.stderr).into_owned()
}

#[test]
fn a_cache_within_its_source_or_around_it_is_refused() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let outer = Scratch::new();
    set_mode(outer.path(), 0o700);
    let inner = outer.dir("inner");
    set_mode(&inner, 0o700);
    let words = refused(outer.path(), &inner);
    assert!(words.contains("source"), "{words}");
    let words = refused(&inner, outer.path());
    assert!(words.contains("source"), "{words}");
    assert!(!inner.join("v1").exists(), "nothing was made");
}

#[test]
fn a_cache_that_others_could_change_is_refused() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    let open = Scratch::new();
    set_mode(open.path(), 0o777);
    let words = refused(source.path(), open.path());
    assert!(words.contains("write"), "{words}");
    let theirs = Scratch::new();
    set_mode(theirs.path(), 0o700);
    set_owner(theirs.path(), USER, USER);
    let words = refused(source.path(), theirs.path());
    assert!(words.contains("belongs to somebody else"), "{words}");
    let words = refused(source.path(), &source.file("file", b"x"));
    assert!(words.contains("directory"), "{words}");
}
