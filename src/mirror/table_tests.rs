use std::fs;
use std::path::Path;

use super::*;

struct Tree {
    dir: tempfile::TempDir,
    table: InodeTable,
}

/// A table with room for 16 descriptors over a new directory.
fn tree(by_handle: bool) -> Tree {
    let dir = tempfile::tempdir().unwrap();
    let root = rustix::fs::open(dir.path(), NAME_ONLY, Mode::empty()).unwrap();
    let mut table = InodeTable::new(root, 16, Arc::default()).unwrap();
    if !by_handle {
        table.handles = None;
    }
    Tree { dir, table }
}

fn lookup(tree: &Tree, name: &str) -> Arc<Inode> {
    tree.table
        .lookup(tree.table.root(), OsStr::new(name))
        .unwrap()
        .0
}

fn errno(result: Result<Arc<OwnedFd>>) -> Errno {
    result.unwrap_err().errno
}

fn make(dir: &Path, name: &str) {
    fs::write(dir.join(name), name).unwrap();
}

fn read(tree: &Tree, inode: &Inode) -> String {
    let fd = tree.table.fd(inode).unwrap();
    fs::read_to_string(crate::sys::procfd::path(fd.as_fd())).unwrap()
}

#[test]
fn many_inodes_live_on_few_descriptors() {
    for by_handle in [true, false] {
        let tree = tree(by_handle);
        let names: Vec<String> = (0..300).map(|n| format!("file{n}")).collect();
        for name in &names {
            make(tree.dir.path(), name);
        }
        let inodes: Vec<_> = names.iter().map(|name| lookup(&tree, name)).collect();
        assert!(tree.table.open.load(Ordering::Relaxed) <= 17);
        for (inode, name) in inodes.iter().zip(&names) {
            assert_eq!(&read(&tree, inode), name);
        }
        for inode in &inodes {
            assert!(tree.table.forget(inode.id, 1).is_some());
        }
        assert_eq!(tree.table.open.load(Ordering::Relaxed), 1);
        assert_eq!(tree.table.ids(), [ROOT]);
    }
}

#[test]
fn what_was_replaced_while_parked_is_stale_and_never_another_file() {
    for by_handle in [true, false] {
        let tree = tree(by_handle);
        make(tree.dir.path(), "name");
        let old = lookup(&tree, "name");
        assert!(tree.table.park(&old));
        fs::remove_file(tree.dir.path().join("name")).unwrap();
        // The number is free: file systems like to give it to the next file.
        make(tree.dir.path(), "name");
        assert_eq!(errno(tree.table.fd(&old)), Errno::STALE);
        let new = lookup(&tree, "name");
        assert_ne!(old.id, new.id);
        assert_eq!(read(&tree, &new), "name");
        assert_eq!(errno(tree.table.fd(&old)), Errno::STALE);
    }
}

#[test]
fn what_was_renamed_while_parked_is_found_by_its_next_lookup() {
    let tree = tree(false);
    make(tree.dir.path(), "before");
    let inode = lookup(&tree, "before");
    assert!(tree.table.park(&inode));
    let path = |name| tree.dir.path().join(name);
    fs::rename(path("before"), path("after")).unwrap();
    assert_eq!(errno(tree.table.fd(&inode)), Errno::STALE);
    assert_eq!(lookup(&tree, "after").id, inode.id);
    assert_eq!(read(&tree, &inode), "before");
}

#[test]
fn what_is_open_is_not_left_to_its_name() {
    for by_handle in [true, false] {
        let tree = tree(by_handle);
        make(tree.dir.path(), "name");
        let inode = lookup(&tree, "name");
        inode.opens.fetch_add(1, Ordering::Relaxed);
        let open = fs::File::open(tree.dir.path().join("name")).unwrap();
        tree.table.park(&inode);
        fs::remove_file(tree.dir.path().join("name")).unwrap();
        assert_eq!(read(&tree, &inode), "name");
        drop(open);
    }
}

#[test]
fn a_rename_of_ours_keeps_the_way_back() {
    let tree = tree(false);
    make(tree.dir.path(), "before");
    let inode = lookup(&tree, "before");
    let path = |name| tree.dir.path().join(name);
    fs::rename(path("before"), path("after")).unwrap();
    tree.table.moved(tree.table.root(), OsStr::new("after"));
    assert!(tree.table.park(&inode));
    assert_eq!(read(&tree, &inode), "before");
}

#[test]
fn hard_links_are_one_inode_with_a_count() {
    let tree = tree(true);
    make(tree.dir.path(), "one");
    fs::hard_link(tree.dir.path().join("one"), tree.dir.path().join("two")).unwrap();
    let (one, two) = (lookup(&tree, "one"), lookup(&tree, "two"));
    assert!(Arc::ptr_eq(&one, &two));
    assert!(tree.table.forget(one.id, 1).is_none());
    assert!(tree.table.forget(one.id, 1).is_some());
    assert_eq!(tree.table.get(one.id).unwrap_err().errno, Errno::STALE);
}

#[test]
fn a_number_used_again_and_again_does_not_fill_the_queue() {
    let tree = tree(true);
    make(tree.dir.path(), "name");
    for _ in 0..20_000 {
        let inode = lookup(&tree, "name");
        assert!(tree.table.forget(inode.id, 1).is_some());
    }
    let queued = tree.table.clock.lock().len();
    assert!(queued < 10_000, "{queued} in the queue, for one inode");
}

#[test]
fn the_root_is_never_forgotten() {
    let tree = tree(true);
    assert!(tree.table.forget(ROOT, u64::MAX).is_none());
    assert!(tree.table.get(ROOT).is_ok());
}

#[test]
fn ids_of_virtual_files_are_their_own() {
    let tree = tree(true);
    let id = tree.table.virtual_id();
    assert!(InodeTable::is_virtual(id));
    assert_ne!(id, tree.table.virtual_id());
    let elsewhere = Key {
        dev: 12345,
        ino: 7,
        mount: 1,
    };
    assert!(!InodeTable::is_virtual(tree.table.likely_id(elsewhere)));
}
