//! tar and rsync bring a tree of every kind of file back, out of the mount and into it.

use std::path::Path;
use std::process::Command;

use super::Who;
use super::tree::{assert_same, build, snapshot};
use crate::support::{Scratch, as_user, output};

/// `diff -r` of two trees; the special files apart, which diff calls different even when alike.
#[track_caller]
fn assert_no_diff(who: Who, left: &Path, right: &Path) {
    let mut command = Command::new("diff");
    command
        .args(["-r", "--no-dereference", "--exclude=special-*"])
        .args([left, right]);
    if let Some((uid, gid)) = who.ids() {
        as_user(&mut command, uid, gid);
    }
    let out = output(&mut command);
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{command:?}: {said}");
}

/// Packs `tree` of the mount with `pack` into the plain folder `out`, and the plain `tree` onto the
/// mount into `back`, and compares everything with everything.
fn round_trips(who: Who, pack: &dyn Fn(&Path, &Path)) {
    let scratch = Scratch::new();
    let source = who.folder(&scratch, "source");
    let plain = who.folder(&scratch, "plain");
    who.apart(|| build(&source.join("tree")));
    let original = who.apart(|| snapshot(&source.join("tree")));
    let mount = who.mount(&source);
    let point = mount.path();

    let seen = who.apart(|| snapshot(&point.join("tree")));
    assert_same("the mount shows the source", &seen, &original);

    pack(&point.join("tree"), &plain);
    let out = who.apart(|| snapshot(&plain.join("tree")));
    assert_same("taken out of the mount", &out, &original);

    let back = point.join("back");
    who.script(point, "mkdir back", &[]);
    pack(&source.join("tree"), &back);
    let put = who.apart(|| snapshot(&source.join("back/tree")));
    assert_same("put onto the mount", &put, &original);
    let shown = who.apart(|| snapshot(&back.join("tree")));
    assert_same(
        "put onto the mount, as the mount shows it",
        &shown,
        &original,
    );
    assert_no_diff(who, &source.join("tree"), &back.join("tree"));
    assert_no_diff(who, &plain.join("tree"), &point.join("tree"));
    who.script(point, "rm -r tree back", &[]);
}

fn tar_round_trips(who: Who) {
    if !who.can(&["tar"]) {
        return;
    }
    round_trips(who, &|from, to| {
        let script = "all='--format=posix --xattrs --xattrs-include=* --acls --sparse'
            tar -C \"$1\" $all -cf - tree >archive.tar
            tar -C \"$2\" $all -xpf archive.tar
            rm archive.tar";
        let folder = from.parent().expect("a parent");
        who.script(folder, script, &[folder, to]);
    });
}

#[test]
fn tar_brings_a_tree_back_as_root() {
    tar_round_trips(Who::Root);
}

#[test]
fn tar_brings_a_tree_back_as_an_ordinary_user() {
    tar_round_trips(Who::User);
}

#[test]
fn rsync_brings_a_tree_back() {
    let who = Who::Root;
    if !who.can(&["rsync"]) {
        return;
    }
    round_trips(who, &|from, to| {
        // The second run must find nothing to do, also by content.
        let script = "rsync -aHAXS \"$1\" \"$2\"
            again=$(rsync -aHAXSic --dry-run --delete \"$1\" \"$2\")
            [ -z \"$again\" ] || { echo \"rsync would do it again: $again\" >&2; exit 1; }";
        who.script(Path::new("/"), script, &[from, to]);
    });
}
