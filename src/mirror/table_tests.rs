use std::fs;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use super::super::prune::Crowd;
use super::super::reach::NAME_ONLY;
use super::*;

struct Tree {
    dir: tempfile::TempDir,
    table: InodeTable,
}

/// Who is to find parked inodes again.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Who {
    /// Root: by handle.
    Privileged,
    /// Root in a sandbox: by name, else by handle.
    Sandboxed,
    /// By name alone.
    Ordinary,
}

const ALL: [Who; 3] = [Who::Privileged, Who::Sandboxed, Who::Ordinary];

/// A table with room for 16 descriptors and 1000 inodes over a new directory.
fn tree(who: Who) -> Tree {
    let dir = tempfile::tempdir().unwrap();
    let root = rustix::fs::open(dir.path(), NAME_ONLY, Mode::empty()).unwrap();
    let ceilings = Ceilings {
        descriptors: 16,
        inodes: 1000,
    };
    let reach = match who {
        Who::Sandboxed => Reach::NameFirst,
        _ => Reach::HandleFirst,
    };
    let mut table = InodeTable::new(root, ceilings, reach, Arc::default()).unwrap();
    if who == Who::Ordinary {
        table.handles = None.into();
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
    for who in ALL {
        let tree = tree(who);
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
    for who in ALL {
        let tree = tree(who);
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
fn what_was_renamed_while_parked_is_found_by_handle_or_by_its_next_lookup() {
    for who in ALL {
        let tree = tree(who);
        make(tree.dir.path(), "before");
        let inode = lookup(&tree, "before");
        assert!(tree.table.park(&inode));
        let path = |name| tree.dir.path().join(name);
        fs::rename(path("before"), path("after")).unwrap();
        make(tree.dir.path(), "before");
        match who == Who::Ordinary || tree.table.handles.read().is_none() {
            true => assert_eq!(errno(tree.table.fd(&inode)), Errno::STALE),
            false => assert_eq!(read(&tree, &inode), "before"),
        }
        assert_eq!(lookup(&tree, "after").id, inode.id);
        assert_eq!(read(&tree, &inode), "before");
    }
}

#[test]
fn an_open_file_lends_its_descriptor_when_its_name_is_gone() {
    for who in ALL {
        let tree = tree(who);
        make(tree.dir.path(), "name");
        let inode = lookup(&tree, "name");
        let open = |_| Arc::new(fs::File::open(tree.dir.path().join("name")).unwrap().into());
        let files: [Arc<OwnedFd>; 2] = [0, 1].map(open);
        files.iter().for_each(|file| tree.table.lend(&inode, file));
        assert!(tree.table.park(&inode), "{who:?}: one descriptor will do");
        fs::remove_file(tree.dir.path().join("name")).unwrap();
        make(tree.dir.path(), "name");
        assert_eq!(read(&tree, &inode), "name");
        let [first, last] = files;
        let renew = |fd: &Arc<OwnedFd>| {
            let path = crate::sys::procfd::path(fd.as_fd());
            rustix::fs::open(path, OFlags::PATH, Mode::empty()).or_fail("open")
        };
        assert!(!tree.table.take_back(&inode, &first, true, || renew(&first)));
        drop(first);
        assert_eq!(read(&tree, &inode), "name");
        // The last one leaves the table a descriptor: somebody may still stand in it.
        assert!(tree.table.take_back(&inode, &last, true, || renew(&last)));
        drop(last);
        let fd = tree.table.fd(&inode).unwrap();
        assert_eq!(rustix::fs::fstat(&fd).unwrap().st_nlink, 0);
        let other = lookup(&tree, "name");
        assert_ne!(other.id, inode.id);
    }
}

#[test]
fn what_has_lost_its_name_is_not_left_to_it() {
    for who in [Who::Sandboxed, Who::Ordinary] {
        let tree = tree(who);
        make(tree.dir.path(), "name");
        let inode = lookup(&tree, "name");
        fs::remove_file(tree.dir.path().join("name")).unwrap();
        assert!(!tree.table.park(&inode));
        let fd = tree.table.fd(&inode).unwrap();
        assert_eq!(rustix::fs::fstat(&fd).unwrap().st_nlink, 0);
    }
}

#[test]
fn a_rename_of_ours_keeps_the_way_back() {
    for who in ALL {
        let tree = tree(who);
        make(tree.dir.path(), "before");
        let inode = lookup(&tree, "before");
        let path = |name| tree.dir.path().join(name);
        fs::rename(path("before"), path("after")).unwrap();
        tree.table.moved(tree.table.root(), OsStr::new("after"));
        let seen = inode.last_seen().unwrap();
        assert_eq!(seen, (ROOT, "after".into()));
        assert!(tree.table.park(&inode));
        assert_eq!(read(&tree, &inode), "before");
    }
}

#[test]
fn a_deep_directory_is_found_again_by_names() {
    const DEPTH: usize = 1000;
    let tree = tree(Who::Ordinary);
    let mut dir = rustix::fs::open(tree.dir.path(), OFlags::PATH, Mode::empty()).unwrap();
    let mut inode = tree.table.root().clone();
    let mut all = Vec::new();
    for _ in 0..DEPTH {
        rustix::fs::mkdirat(&dir, "d", Mode::RWXU).unwrap();
        dir = openat_name_only(&dir, OsStr::new("d")).unwrap();
        inode = tree.table.lookup(&inode, OsStr::new("d")).unwrap().0;
        all.push(inode.clone());
    }
    all.iter().for_each(|inode| assert!(tree.table.park(inode)));
    assert_eq!(tree.table.open.load(Ordering::Relaxed), 1);
    let found = tree
        .table
        .see(tree.table.fd(&inode).unwrap().as_fd())
        .unwrap();
    assert_eq!(found.key, inode.key);
    assert!(tree.table.open.load(Ordering::Relaxed) <= 17);
}

#[test]
fn a_ring_of_names_is_stale_and_no_endless_way() {
    let tree = tree(Who::Ordinary);
    let path = |name| tree.dir.path().join(name);
    fs::create_dir_all(path("a/b")).unwrap();
    let a = lookup(&tree, "a");
    let b = tree.table.lookup(&a, OsStr::new("b")).unwrap().0;
    // What is remembered of both, after each was moved into the other, the first behind us.
    a.moved(Home::new(b.id, OsStr::new("a")));
    assert!(tree.table.park(&a) && tree.table.park(&b));
    assert_eq!(errno(tree.table.fd(&a)), Errno::STALE);
}

#[test]
fn one_system_call_tells_what_fstat_tells() {
    let tree = tree(Who::Privileged);
    make(tree.dir.path(), "name");
    for path in [
        tree.dir.path().join("name"),
        "/dev/null".into(),
        "/proc/self/stat".into(),
    ] {
        let file = fs::File::open(path).unwrap();
        let seen = tree.table.see(file.as_fd()).unwrap().stat;
        let mut told = rustix::fs::fstat(&file).unwrap();
        // The time of procfs's files is that of the looking.
        if told.st_ino != seen.st_ino || told.st_mtime != seen.st_mtime {
            told.st_mtime = seen.st_mtime;
        }
        assert_eq!(format!("{seen:?}"), format!("{told:?}"));
    }
}

#[test]
fn what_was_not_used_is_offered_once_to_be_forgotten() {
    let tree = tree(Who::Privileged);
    for n in 0..100 {
        make(tree.dir.path(), &n.to_string());
    }
    let inodes: Vec<_> = (0..100).map(|n| lookup(&tree, &n.to_string())).collect();
    let sweep = || {
        let round = (0..InodeTable::sweep()).flat_map(|_| tree.table.next_idle());
        let mut ids: Vec<_> = round.map(|inode| inode.id).collect();
        ids.sort_unstable();
        ids
    };
    assert_eq!(sweep(), [0; 0], "all are new");
    let used = tree.table.get(inodes[7].id).unwrap();
    inodes[8].opens.store(1, Ordering::Relaxed);
    let mut expected: Vec<_> = inodes.iter().map(|inode| inode.id).collect();
    expected.retain(|id| *id != used.id && *id != inodes[8].id);
    expected.sort_unstable();
    assert_eq!(sweep(), expected);
    for inode in inodes {
        tree.table.forget(inode.id, 1);
    }
    assert_eq!(sweep(), [0; 0], "the root stays");
    assert_eq!(tree.table.count(), 1);
}

#[test]
fn who_prunes_is_woken_by_the_limit_and_by_the_end() {
    let tree = tree(Who::Privileged);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| tree.table.wait_crowded());
        for n in 0..1000 {
            make(tree.dir.path(), &n.to_string());
            lookup(&tree, &n.to_string());
        }
        // 1001 with the root; a sixteenth of the limit is 62.
        assert_eq!(waiting.join().unwrap(), Crowd::Surplus(1001 - 938));
        assert_eq!(tree.table.surplus(), 1001 - 938);
        for id in tree.table.ids() {
            tree.table.forget(id, 1);
        }
        let waiting = scope.spawn(|| tree.table.wait_crowded());
        tree.table.end_pruning();
        assert_eq!(waiting.join().unwrap(), Crowd::Ending);
        assert_eq!(tree.table.wait_crowded(), Crowd::Ending);
    });
}

#[test]
fn hard_links_are_one_inode_with_a_count() {
    let tree = tree(Who::Privileged);
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
    let tree = tree(Who::Privileged);
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
    let tree = tree(Who::Privileged);
    assert!(tree.table.forget(ROOT, u64::MAX).is_none());
    assert!(tree.table.get(ROOT).is_ok());
}

#[test]
fn ids_of_virtual_files_are_their_own() {
    let tree = tree(Who::Privileged);
    let id = tree.table.virtual_id();
    assert!(InodeTable::is_virtual(id));
    assert_ne!(id, tree.table.virtual_id());
    let elsewhere = Key { ino: 7, site: 1 };
    assert!(!InodeTable::is_virtual(tree.table.likely_id(elsewhere)));
}

fn glance(tree: &Tree, name: &str) -> Option<Arc<Inode>> {
    let root = tree.table.root();
    let dir = tree.table.fd(root).unwrap();
    let found = tree.table.glance(root, dir.as_fd(), OsStr::new(name));
    found.unwrap().map(|(inode, _)| inode)
}

/// Replaces a file until its successor has its number and was born at another time, as far as
/// numbers are given again at all.
fn replace(tree: &Tree, name: &str) -> bool {
    let path = tree.dir.path().join(name);
    let look = || {
        let file = fs::File::open(&path).unwrap();
        let (seen, born) = tree.table.see_with_birth(file.as_fd(), c"").unwrap();
        (seen.key, born)
    };
    let old = look();
    for _ in 0..1000 {
        fs::remove_file(&path).unwrap();
        make(tree.dir.path(), name);
        let new = look();
        if new.0 == old.0 && new.1 != old.1 {
            return true;
        }
    }
    false
}

#[test]
fn what_was_only_listed_has_no_descriptor_until_it_is_used() {
    for who in ALL {
        let tree = tree(who);
        let names: Vec<String> = (0..100).map(|n| format!("file{n}")).collect();
        names.iter().for_each(|name| make(tree.dir.path(), name));
        let listed: Option<Vec<_>> = names.iter().map(|name| glance(&tree, name)).collect();
        let Some(inodes) = listed else {
            return crate::sys::testing::skip("no times of birth on this file system");
        };
        // By whichever way it is looked at again, it is the same.
        for (inode, name) in inodes.iter().zip(&names) {
            assert_eq!(glance(&tree, name).unwrap().id, inode.id);
        }
        assert_eq!(tree.table.open.load(Ordering::Relaxed), 1);
        for (inode, name) in inodes.iter().zip(&names) {
            assert_eq!(&read(&tree, inode), name);
            assert_eq!(lookup(&tree, name).id, inode.id);
            assert_eq!(inode.lookups.load(Ordering::Relaxed), 3);
        }
        assert!(tree.table.open.load(Ordering::Relaxed) <= 17);
        fs::create_dir(tree.dir.path().join("folder")).unwrap();
        assert!(glance(&tree, "folder").is_none(), "held by its descriptor");
    }
}

#[test]
fn what_was_only_listed_is_never_another_file() {
    for who in ALL {
        let begin = || {
            let tree = tree(who);
            make(tree.dir.path(), "name");
            let old = glance(&tree, "name");
            (tree, old)
        };
        if begin().1.is_none() {
            return crate::sys::testing::skip("no times of birth on this file system");
        }
        // The number may go to a file of another test meanwhile.
        let replaced = std::iter::repeat_with(begin)
            .take(20)
            .find(|(tree, _)| replace(tree, "name"));
        let Some((tree, Some(old))) = replaced else {
            return eprintln!("SKIP: numbers are not given again here");
        };
        assert_eq!(errno(tree.table.fd(&old)), Errno::STALE);
        assert!(glance(&tree, "name").is_none(), "to be looked at");
        let new = lookup(&tree, "name");
        assert_ne!(old.id, new.id);
        assert_eq!(errno(tree.table.fd(&old)), Errno::STALE);
        assert_eq!(glance(&tree, "name").unwrap().id, new.id);
    }
}

#[test]
fn what_was_only_listed_is_found_by_a_name_that_it_got_here() {
    for who in ALL {
        let tree = tree(who);
        make(tree.dir.path(), "before");
        let Some(inode) = glance(&tree, "before") else {
            return crate::sys::testing::skip("no times of birth on this file system");
        };
        let path = |name| tree.dir.path().join(name);
        fs::rename(path("before"), path("after")).unwrap();
        make(tree.dir.path(), "before");
        assert_eq!(errno(tree.table.fd(&inode)), Errno::STALE);
        tree.table.moved(tree.table.root(), OsStr::new("after"));
        assert_eq!(read(&tree, &inode), "before");
    }
}
