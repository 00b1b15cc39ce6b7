//! rename(2) and renameat2(2), with every flag.

use super::*;
use rustix::fs::{CWD, RenameFlags, lstat, rename, renameat_with};

checks! {
    a_file_changes_its_name,
    a_file_moves_to_another_directory,
    a_file_replaces_another,
    an_open_file_is_replaced_and_lives_on,
    a_directory_replaces_an_empty_one_only,
    files_and_directories_do_not_replace_each_other,
    a_directory_does_not_move_into_itself,
    two_links_to_one_file_stay,
    a_name_onto_itself_changes_nothing,
    missing_names_are_refused,
    noreplace_refuses_what_exists,
    exchange_swaps_two_files,
    exchange_swaps_a_file_and_a_directory,
    exchange_needs_both,
    flags_that_exclude_each_other,
    whiteout_leaves_a_device [Need::Root],
    a_moved_directory_keeps_its_content,
    a_renamed_link_is_not_followed,
    a_chain_of_renames_is_seen_at_once,
}

fn with(from: &Path, to: &Path, flags: RenameFlags) -> Result<(), Errno> {
    renameat_with(CWD, from, CWD, to, flags)
}

fn a_file_changes_its_name(at: &Path) {
    let from = file(at, "a", b"x");
    let before = stat(&from);
    rename(&from, at.join("b")).unwrap();
    assert_errno!(lstat(&from), NOENT);
    let after = stat(&at.join("b"));
    assert_eq!(
        (after.st_ino, after.st_mtime),
        (before.st_ino, before.st_mtime)
    );
    assert_eq!(read(&at.join("b")), b"x");
}

fn a_file_moves_to_another_directory(at: &Path) {
    let (one, two) = (dir(at, "one"), dir(at, "two"));
    file(&one, "f", b"x");
    rename(one.join("f"), two.join("g")).unwrap();
    assert_errno!(lstat(one.join("f")), NOENT);
    assert_eq!(read(&two.join("g")), b"x");
    rustix::fs::rmdir(&one).unwrap();
}

fn a_file_replaces_another(at: &Path) {
    let (from, to) = (file(at, "a", b"new"), file(at, "b", b"old"));
    let ino = stat(&from).st_ino;
    rename(&from, &to).unwrap();
    assert_eq!(read(&to), b"new");
    assert_eq!(stat(&to).st_ino, ino);
    assert_errno!(lstat(&from), NOENT);
}

fn an_open_file_is_replaced_and_lives_on(at: &Path) {
    let to = file(at, "b", b"old content");
    let old = open(&to, OFlags::RDWR);
    for round in 0..20 {
        rename(file(at, "a", format!("new {round}").as_bytes()), &to).unwrap();
        assert_eq!(read(&to), format!("new {round}").as_bytes());
        assert_eq!(read_at(&old, 0, 100), b"old content");
    }
    write_at(&old, 0, b"OLD");
    assert_eq!(read_at(&old, 0, 100), b"OLD content");
    assert_eq!(rustix::fs::fstat(&old).unwrap().st_nlink, 0);
    assert_eq!(read(&to), b"new 19");
}

fn a_directory_replaces_an_empty_one_only(at: &Path) {
    let (from, to) = (dir(at, "from"), dir(at, "to"));
    file(&from, "inside", b"x");
    rename(&from, &to).unwrap();
    assert_eq!(read(&to.join("inside")), b"x");
    let from = dir(at, "from");
    match rename(&from, &to) {
        Err(Errno::NOTEMPTY | Errno::EXIST) => {}
        other => panic!("over a full directory: {other:?}"),
    }
    assert!(lstat(&from).is_ok());
}

fn files_and_directories_do_not_replace_each_other(at: &Path) {
    let (plain, folder) = (file(at, "f", b"x"), dir(at, "d"));
    assert_errno!(rename(&plain, &folder), ISDIR);
    assert_errno!(rename(&folder, &plain), NOTDIR);
    assert_eq!(read(&plain), b"x");
}

fn a_directory_does_not_move_into_itself(at: &Path) {
    let outer = dir(at, "outer");
    let inner = dir(&outer, "inner");
    assert_errno!(rename(&outer, inner.join("x")), INVAL);
    assert_errno!(rename(&outer, outer.join("x")), INVAL);
    assert_errno!(rename(&inner, &outer), NOTEMPTY);
}

fn two_links_to_one_file_stay(at: &Path) {
    let (one, two) = (file(at, "one", b"x"), at.join("two"));
    rustix::fs::link(&one, &two).unwrap();
    rename(&one, &two).unwrap();
    assert_eq!(stat(&one).st_ino, stat(&two).st_ino);
    assert_eq!(stat(&one).st_nlink, 2);
}

fn a_name_onto_itself_changes_nothing(at: &Path) {
    let path = file(at, "f", b"x");
    rename(&path, &path).unwrap();
    assert_eq!(read(&path), b"x");
}

fn missing_names_are_refused(at: &Path) {
    assert_errno!(rename(at.join("none"), at.join("x")), NOENT);
    let path = file(at, "f", b"x");
    assert_errno!(rename(&path, at.join("none/x")), NOENT);
    assert_errno!(rename(&path, path.join("x")), NOTDIR);
    assert_eq!(read(&path), b"x");
}

fn noreplace_refuses_what_exists(at: &Path) {
    let (a, b) = (file(at, "a", b"a"), file(at, "b", b"b"));
    assert_errno!(with(&a, &b, RenameFlags::NOREPLACE), EXIST);
    assert_errno!(with(&a, &a, RenameFlags::NOREPLACE), EXIST);
    assert_eq!((read(&a), read(&b)), (b"a".to_vec(), b"b".to_vec()));
    with(&a, &at.join("c"), RenameFlags::NOREPLACE).unwrap();
    assert_eq!(read(&at.join("c")), b"a");
    assert_errno!(lstat(&a), NOENT);
}

fn exchange_swaps_two_files(at: &Path) {
    let (a, b) = (file(at, "a", b"a"), file(&dir(at, "d"), "b", b"b"));
    let inodes = (stat(&a).st_ino, stat(&b).st_ino);
    with(&a, &b, RenameFlags::EXCHANGE).unwrap();
    assert_eq!((read(&a), read(&b)), (b"b".to_vec(), b"a".to_vec()));
    assert_eq!((stat(&b).st_ino, stat(&a).st_ino), inodes);
}

fn exchange_swaps_a_file_and_a_directory(at: &Path) {
    let (plain, folder) = (file(at, "f", b"plain"), dir(at, "d"));
    file(&folder, "inside", b"x");
    with(&plain, &folder, RenameFlags::EXCHANGE).unwrap();
    assert_eq!(read(&folder), b"plain");
    assert_eq!(read(&plain.join("inside")), b"x");
}

fn exchange_needs_both(at: &Path) {
    let a = file(at, "a", b"a");
    assert_errno!(with(&a, &at.join("none"), RenameFlags::EXCHANGE), NOENT);
    assert_eq!(read(&a), b"a");
}

fn flags_that_exclude_each_other(at: &Path) {
    let (a, b) = (file(at, "a", b"a"), file(at, "b", b"b"));
    let both = RenameFlags::EXCHANGE | RenameFlags::NOREPLACE;
    assert_errno!(with(&a, &b, both), INVAL);
    assert_errno!(with(&a, &b, RenameFlags::from_bits_retain(1 << 20)), INVAL);
}

fn whiteout_leaves_a_device(at: &Path) {
    let (a, b) = (file(at, "a", b"a"), at.join("b"));
    with(&a, &b, RenameFlags::WHITEOUT).unwrap();
    assert_eq!(read(&b), b"a");
    let left = stat(&a);
    assert_eq!(left.st_mode & libc::S_IFMT, libc::S_IFCHR);
    assert_eq!(left.st_rdev, 0);
}

fn a_moved_directory_keeps_its_content(at: &Path) {
    let (one, two) = (dir(at, "one"), dir(at, "two"));
    let moved = dir(&one, "moved");
    let inner = dir(&moved, "inner");
    let inside = file(&inner, "f", b"deep");
    let fd = open(&inside, OFlags::RDONLY);
    rename(&moved, two.join("there")).unwrap();
    assert_eq!(read(&two.join("there/inner/f")), b"deep");
    assert_eq!(read_at(&fd, 0, 10), b"deep");
    assert_errno!(lstat(&inside), NOENT);
    assert_eq!(stat(&two.join("there/..")).st_ino, stat(&two).st_ino);
}

fn a_renamed_link_is_not_followed(at: &Path) {
    file(at, "target", b"t");
    rustix::fs::symlink("target", at.join("l")).unwrap();
    rename(at.join("l"), at.join("m")).unwrap();
    assert_eq!(
        rustix::fs::readlink(at.join("m"), Vec::new())
            .unwrap()
            .as_bytes(),
        b"target"
    );
    assert_eq!(read(&at.join("target")), b"t");
}

fn a_chain_of_renames_is_seen_at_once(at: &Path) {
    let mut path = file(at, "0", b"x");
    for n in 1..200 {
        let next = at.join(n.to_string());
        rename(&path, &next).unwrap();
        assert_errno!(lstat(&path), NOENT);
        assert_eq!(stat(&next).st_size, 1);
        path = next;
    }
}
