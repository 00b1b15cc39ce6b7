//! tar and rsync bring a tree of every kind of file back, out of the mount and into it.

use std::path::Path;
use std::process::Command;

use super::Who;
use super::tree::{assert_same, build, snapshot};
use crate::support::{Need, Scratch, as_user, output, require, run, sh};

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

/// Copies of one sparse file by `cp`, in each of its ways with holes.
const SPARSE: &str = "for way in always auto never; do
        cp --preserve=all --sparse=$way \"$1/sparse\" copy-$way
        cp --preserve=all --sparse=$way copy-$way again-$way
    done";

#[test]
fn cp_makes_the_same_holes() {
    let who = Who::Root;
    if !who.can(&["cp"]) {
        return;
    }
    let scratch = Scratch::new();
    let (tree, native) = (scratch.path().join("tree"), who.folder(&scratch, "native"));
    build(&tree);
    let source = who.folder(&scratch, "source");
    let mount = who.mount(&source);
    who.script(&native, SPARSE, &[&tree]);
    who.script(mount.path(), SPARSE, &[&tree]);
    let expected = snapshot(&native);
    let name = Path::new("again-always");
    assert!(expected[name].data.len() == 3, "{:?}", expected[name]);
    assert!(expected[Path::new("copy-never")].data.len() == 1);
    let but_the_root = |mut tree: super::tree::Tree| {
        tree.remove(Path::new(""));
        tree
    };
    let expected = but_the_root(expected);
    assert_same("in the source", &but_the_root(snapshot(&source)), &expected);
    assert_same("as shown", &but_the_root(snapshot(mount.path())), &expected);
}

/// The comparison is worth what it sees: each kind of difference, made by hand, is one.
#[test]
fn every_kind_of_difference_is_seen() {
    if !require(&[Need::Root, Need::Tool("setfacl"), Need::Tool("setfattr")]) {
        return;
    }
    let scratch = Scratch::new();
    let tree = scratch.path().join("tree");
    build(&tree);
    let original = snapshot(&tree);
    assert_same("a tree and itself", &snapshot(&tree), &original);
    for change in [
        "printf x | dd of=file-4096 bs=1 seek=99 conv=notrunc status=none",
        "truncate -s +1 file-1",
        "chmod 600 file-70000",
        "chown 77 file-1",
        "chgrp 77 other",
        "chown -h 77 soft",
        "touch -d '2001-02-03 04:05:06.123456788' sub/file-1",
        "touch -h -d '2001-02-03 04:05:06.5' soft",
        "setfattr -n user.text -v other file-4096",
        "setfattr -n user.more -v x file-0",
        "setfattr -x user.empty file-4096",
        "setfattr -x trusted.on-a-folder other",
        "setfacl -m u:1235:r file-4097",
        "setfacl -d -m u:1235:r sub/deep",
        "cp -p --remove-destination sub/deep/hard hard",
        "ln hard one-more",
        "cp -p --sparse=never sparse full && cat full >sparse && touch -r full sparse && rm full",
        "fallocate -p -o 0 -l 262144 sparse",
        "rm special-fifo && touch special-fifo",
        "rm special-char && mknod -m 640 special-char c 1 5",
        "ln -sfn file-4095 soft",
        "rm -r empty",
        "touch new",
    ] {
        let copy = scratch.path().join("copy");
        run(&mut sh(scratch.path(), "rm -rf copy; cp -a tree copy"));
        assert_same("a copy", &snapshot(&copy), &original);
        run(&mut sh(&copy, change));
        let seen = std::panic::catch_unwind(|| assert_same(change, &snapshot(&copy), &original));
        assert!(seen.is_err(), "not seen: {change}");
    }
}
