//! Directories that can't be a cache, and the words for it.

use super::*;

#[track_caller]
fn refused(source: &Path, cache: &Path) -> String {
    refused_at(source, cache, Scratch::new().path())
}

#[track_caller]
fn refused_at(source: &Path, cache: &Path, point: &Path) -> String {
    let out = output(
        corfs()
            .args(["-o", "nonempty", "--cache"])
            .args([cache, source, point]),
    );
    assert_eq!(out.status.code(), Some(32), "{}", cache.display());
    assert!(!is_mounted(point, "fuse.corfs"));
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

#[test]
fn a_cache_within_its_mountpoint_or_around_it_is_refused() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    let outer = Scratch::new();
    set_mode(outer.path(), 0o700);
    let inner = outer.dir("inner");
    set_mode(&inner, 0o700);
    for (cache, point, how) in [
        (inner.as_path(), outer.path(), "lies inside the mountpoint"),
        (outer.path(), &inner, "is around the mountpoint"),
        (&inner, &inner, "the mountpoint"),
        (&inner.join("made"), &inner, "lies inside the mountpoint"),
    ] {
        let words = refused_at(source.path(), cache, point);
        assert!(words.contains(how), "{words}");
        assert!(words.contains(cache.to_str().unwrap()), "{words}");
        assert!(!cache.join("v1").exists(), "nothing was made");
    }
    assert!(!inner.join("made").exists(), "nothing was made");
}

/// Where others can put names, a link may lead elsewhere tomorrow.
#[test]
fn a_cache_behind_a_link_that_others_can_change_is_refused() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let (source, outer) = (Scratch::new(), Scratch::new());
    let real = outer.dir("real");
    set_mode(&real, 0o700);
    let open = outer.dir("open");
    let link = open.join("link");
    std::os::unix::fs::symlink(&real, &link).unwrap();
    set_mode(&open, 0o777);
    let words = refused(source.path(), &link);
    assert!(
        words.contains("a symbolic link that others can change"),
        "{words}"
    );
    assert!(!real.join("v1").exists(), "nothing was made");
    set_mode(&real, 0o770);
    let words = refused(source.path(), &real);
    assert!(words.contains("chmod go-w"), "{words}");
}
