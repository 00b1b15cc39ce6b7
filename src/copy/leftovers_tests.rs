//! What is removed as a leftover, and what never is.

use std::fs::File;
use std::os::unix::fs::symlink;

use rustix::fs::open;

use std::path::Path;

use super::*;

fn folder_of(path: &Path) -> OwnedFd {
    open(path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap()
}

fn swept(path: &Path) -> bool {
    sweep(folder_of(path).as_fd(), MOST_NAMES, || Ok(())).unwrap()
}

fn listing(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn name(boot: &str, namespace: u64, pid: u32, start: u64) -> String {
    format!("{PREFIX}{boot}-{namespace}-{pid}-{start}-0{SUFFIX}")
}

#[test]
fn a_name_tells_its_owner() {
    let own = hidden_name();
    assert_eq!(Owner::of(&own).as_ref(), Some(Owner::this()));
    assert_ne!(own, hidden_name());
    assert!(own.len() < 255);
    for other in [
        "file",
        ".corfs-copy-",
        ".corfs-copy-17-0.tmp",
        ".corfs-copy-a-1-2-3.tmp",
        ".corfs-copy-a-1-2-3-4-5.tmp",
        ".corfs-copy-a-1-2-x-4.tmp",
        ".corfs-copy-a-1-2-3-4.tmp~",
    ] {
        assert_eq!(Owner::of(OsStr::new(other)), None, "{other}");
    }
}

/// A hard link on its way to its place, say, which nobody locks.
#[test]
fn a_second_name_stays_unless_its_owner_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let this = Owner::this();
    let lives = name(&this.boot, this.namespace, 1, this.start);
    let gone = name(&this.boot, this.namespace, 1 << 23, 1);
    File::create(folder.path().join("first")).unwrap();
    let before = name("0123", this.namespace, 1, this.start);
    for hidden in [&lives, &gone, &before] {
        fs::hard_link(folder.path().join("first"), folder.path().join(hidden)).unwrap();
    }
    assert!(!swept(folder.path()));
    let left = listing(folder.path());
    assert!(left.contains(&lives) || this.pid == 1, "{left:?}");
    assert!(!left.contains(&gone) && !left.contains(&before), "{left:?}");
}

#[test]
fn an_owner_is_gone_only_when_that_is_certain() {
    let this = Owner::this();
    assert!(!this.is_gone());
    let other = |change: fn(&mut Owner)| {
        let mut owner = this.clone();
        change(&mut owner);
        owner
    };
    // A number that is ours now was another's before.
    assert!(other(|owner| owner.start += 1).is_gone());
    // Above every number that Linux gives (`proc(5)`, pid_max).
    assert!(other(|owner| owner.pid = 1 << 23).is_gone());
    assert!(!other(|owner| owner.pid = 1).is_gone());
    let far = |change: fn(&mut Owner)| {
        let mut owner = other(|owner| owner.pid = 1 << 23);
        change(&mut owner);
        owner
    };
    assert!(!far(|owner| owner.boot = "0123".into()).is_gone());
    assert!(!far(|owner| owner.namespace += 1).is_gone());
    assert!(!far(|owner| owner.boot.clear()).is_gone());
}

#[test]
fn what_nobody_holds_goes_and_what_is_held_stays_whatever_its_name_says() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    if !fstatfs(folder_of(path)).is_ok_and(|system| is_of_one_kernel(&system)) {
        crate::sys::testing::skip("not a file system of one kernel");
        return;
    }
    let this = Owner::this();
    let dead = name("0123", 1, 1, 1);
    let recycled = name(&this.boot, this.namespace, this.pid, this.start + 1);
    // A hard link on its way, perhaps.
    let own = hidden_name().into_string().unwrap();
    let living = name(&this.boot, this.namespace, 1 << 23, 1);
    for file in [&dead, &recycled, &living, &own] {
        fs::write(path.join(file), "text").unwrap();
    }
    fs::write(path.join("file"), "text").unwrap();
    fs::write(path.join(".corfs-copy-notes.tmp"), "text").unwrap();
    let holder = File::open(path.join(&living)).unwrap();
    assert!(hold(holder.as_fd()).unwrap());

    assert!(!swept(path));
    let mut left = vec![
        living.clone(),
        own.clone(),
        ".corfs-copy-notes.tmp".into(),
        "file".into(),
    ];
    left.sort();
    assert_eq!(listing(path), left);
    drop(holder);
    // A process that another test starts has the descriptor too, until it executes its program.
    let gone = (0..500).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(10));
        !swept(path) && !path.join(&living).exists()
    });
    assert!(gone);
}

#[test]
fn elsewhere_the_name_must_tell_too() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder_of(folder.path());
    let file = folder.path().join("x");
    fs::write(&file, "text").unwrap();
    let elsewhere = Owner {
        boot: "0123".to_owned(),
        ..Owner::this().clone()
    };
    remove_leftover(directory.as_fd(), OsStr::new("x"), &elsewhere, false);
    assert!(file.exists());
    remove_leftover(directory.as_fd(), OsStr::new("x"), &elsewhere, true);
    assert!(!file.exists());
}

#[test]
fn only_regular_files_are_leftovers_where_nobody_knows_the_owner() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::write(path.join("victim"), "text").unwrap();
    symlink("victim", path.join(name("a", 1, 1, 1))).unwrap();
    fs::create_dir(path.join(name("a", 1, 1, 2))).unwrap();
    let fifo = rustix::fs::mknodat(
        folder_of(path),
        name("a", 1, 1, 3),
        FileType::Fifo,
        Mode::RWXU,
        0,
    );
    fifo.unwrap();
    swept(path);
    assert_eq!(listing(path).len(), 4);
    assert_eq!(fs::read(path.join("victim")).unwrap(), b"text");
}

#[test]
fn a_link_goes_with_an_owner_who_is_known_to_be_dead() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let this = Owner::this();
    for (pid, start) in [
        (1 << 23, 1),
        (this.pid, this.start + 1),
        (this.pid, this.start),
    ] {
        let link = name(&this.boot, this.namespace, pid, start);
        symlink("victim", path.join(link)).unwrap();
    }
    swept(path);
    let own = name(&this.boot, this.namespace, this.pid, this.start);
    assert_eq!(listing(path), [own]);
}

#[test]
fn one_who_was_swept_before_he_held_his_file_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    let file = File::create(&path).unwrap();
    fs::remove_file(&path).unwrap();
    assert!(!hold(file.as_fd()).unwrap());
    let file = File::create(&path).unwrap();
    let sweeper = File::open(&path).unwrap();
    assert!(hold(sweeper.as_fd()).unwrap());
    assert!(!hold(file.as_fd()).unwrap());
}

#[test]
fn interrupted_copies_stay_for_a_week_and_no_journal_without_its_part() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(ABANDONED + 60);
    for (part, age) in [("new", None), ("old", Some(old)), ("held", Some(old))] {
        let file = File::create(path.join(format!("{PART}{part}"))).unwrap();
        age.map_or(Ok(()), |age| file.set_modified(age)).unwrap();
        File::create(path.join(format!("{PART}{part}{JOURNAL}"))).unwrap();
    }
    File::create(path.join(format!("{PART}gone{JOURNAL}"))).unwrap();
    let holder = File::open(path.join(format!("{PART}held"))).unwrap();
    assert!(hold(holder.as_fd()).unwrap());
    assert!(swept(path));
    let left = ["held", "held.journal", "new", "new.journal"].map(|name| format!("{PART}{name}"));
    assert_eq!(listing(path), left);
    abandon(folder_of(path).as_fd(), OsStr::new(&left[0]));
    abandon(folder_of(path).as_fd(), OsStr::new(&left[2]));
    assert_eq!(listing(path), left[..2]);
}

#[test]
fn a_job_looks_once_at_a_directory_and_remembers_few() {
    let progress = Progress::new(None);
    let root = tempfile::tempdir().unwrap();
    let looked = |path: &Path| visit(folder_of(path).as_fd(), &progress).unwrap();
    assert!(!looked(root.path()));
    fs::write(root.path().join(format!("{PART}x")), "").unwrap();
    assert!(!looked(root.path()), "remembered");
    for number in 0..MOST_SWEPT {
        let path = root.path().join(number.to_string());
        fs::create_dir(&path).unwrap();
        assert!(!looked(&path));
    }
    assert!(looked(root.path()), "looked again");
    assert_eq!(progress.swept.directories.lock().len(), MOST_SWEPT);
}

#[test]
fn who_has_ended_and_is_not_waited_for_is_gone() {
    let mut child = std::process::Command::new("true").spawn().unwrap();
    let stat = format!("/proc/{}/stat", child.id());
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !has_ended(&fs::read_to_string(&stat).unwrap()) {
        assert!(std::time::Instant::now() < deadline, "it does not end");
    }
    assert!(!has_ended(&fs::read_to_string("/proc/self/stat").unwrap()));
    assert!(!has_ended("1 (a) Z) R 1") && has_ended("1 (a) R) Z 1"));
    child.wait().unwrap();
}
