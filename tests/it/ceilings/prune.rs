//! `inode_limit=`: the kernel forgets what nobody uses, and nothing else.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::fs::{Mode, OFlags};

use super::*;
use crate::support::{Need, Scratch, content, require, soak, write_content};

/// A shell that stands in a directory, and says on request where it is and what it sees.
struct Stander(Child);

impl Stander {
    fn at(folder: &Path) -> Self {
        let child = Command::new("sh")
            .args(["-c", "while read line; do /bin/pwd; cat inside; done"])
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("sh");
        Self(child)
    }

    fn ask(&mut self) -> [String; 2] {
        writeln!(self.0.stdin.as_mut().expect("piped")).expect("it reads");
        let out = self.0.stdout.as_mut().expect("piped");
        let mut lines = BufReader::new(out).lines();
        [0, 1].map(|_| lines.next().expect("a line").expect("text"))
    }
}

impl Drop for Stander {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn look_at_all(base: &Path, count: u64) {
    for folder in 0..count.div_ceil(A_FOLDER) {
        for n in 0..A_FOLDER.min(count - folder * A_FOLDER) {
            let path = base.join(folder_name(folder)).join(file_name(n));
            fs::symlink_metadata(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        }
    }
}

#[test]
fn the_kernel_forgets_what_is_above_the_limit() {
    const LIMIT: u64 = 1000;
    if !require(&[Need::Fuse]) {
        return;
    }
    let count = soak(100_000).max(10_000);
    let source = Scratch::new();
    make_files(source.path(), count);
    let mount = Mount::of(source.path())
        .opt(format!("inode_limit={LIMIT}"))
        .start();
    let ((), took, peak) = watched(&mount, || look_at_all(mount.path(), count));
    println!(
        "{count} files in {took:.1?}, limit {LIMIT}, at most {} inodes",
        peak.inodes
    );
    assert!(peak.inodes < count, "{peak:?}");
    wait_until("the limit holds", PATIENCE, || inodes(&mount) <= LIMIT);
    let stats = mount.stats();
    assert_eq!(gauge(&stats, "corfs_inode_limit"), LIMIT);
    assert!(gauge(&stats, "corfs_inodes_pruned_total") > LIMIT);
}

#[test]
fn what_is_in_use_keeps_its_name() {
    const LIMIT: u64 = 300;
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    make_files(source.path(), 5000);
    let deep = source.path().join("one/two/three");
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("inside"), "seen\n").unwrap();
    write_content(&source.path().join("one/open"), 5, 100_000);
    let mount = Mount::of(source.path())
        .opt(format!("inode_limit={LIMIT}"))
        .start();
    let at = mount.path().join("one");
    let mut stander = Stander::at(&at.join("two/three"));
    let expected = [at.join("two/three").display().to_string(), "seen".into()];
    assert_eq!(stander.ask(), expected);
    let open = File::open(at.join("open")).unwrap();
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let only_name = rustix::fs::open(at.join("two"), flags, Mode::empty()).unwrap();
    for _ in 0..3 {
        look_at_all(mount.path(), 5000);
        wait_until("the limit holds", PATIENCE, || inodes(&mount) <= LIMIT);
    }
    assert!(gauge(&mount.stats(), "corfs_inodes_pruned_total") > LIMIT);
    assert_eq!(stander.ask(), expected);
    let path_of = |fd: i32| -> PathBuf { fs::read_link(format!("/proc/self/fd/{fd}")).unwrap() };
    assert_eq!(path_of(open.as_raw_fd()), at.join("open"));
    assert_eq!(path_of(only_name.as_raw_fd()), at.join("two"));
    let mut bytes = vec![0; 100_000];
    std::os::unix::fs::FileExt::read_exact_at(&open, &mut bytes, 0).unwrap();
    assert!(bytes == content(5, 0, 100_000));
    let three = rustix::fs::openat(&only_name, "three", flags, Mode::empty());
    assert!(three.is_ok());
}

/// What is in use can't go, however often the kernel is asked.
#[test]
fn who_prunes_rests_while_all_is_in_use() {
    const LIMIT: u64 = 256;
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    make_files(source.path(), 2 * LIMIT);
    let mount = Mount::of(source.path())
        .opt(format!("inode_limit={LIMIT}"))
        .start();
    let path = |n| mount.path().join(folder_name(0)).join(file_name(n));
    let held: Vec<_> = (0..2 * LIMIT)
        .map(|n| File::open(path(n)).unwrap())
        .collect();
    let server = mount.server();
    std::thread::sleep(Duration::from_secs(2));
    let before = sleeps_of(server, "prune");
    std::thread::sleep(Duration::from_secs(2));
    // They double; that of 20 ms, again and again, would be a hundred.
    let sleeps = sleeps_of(server, "prune") - before;
    assert!(sleeps < 20, "{sleeps} in two seconds");
    drop(held);
}

/// How often the thread of that name has gone to sleep.
fn sleeps_of(process: u32, thread: &str) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let mut threads = tasks.map(|task| task.unwrap().path());
    let named = |task: &PathBuf| fs::read_to_string(task.join("comm")).unwrap().trim() == thread;
    let task = threads.find(named).expect("the thread");
    let status = fs::read_to_string(task.join("status")).unwrap();
    let mut lines = status.lines();
    let sleeps = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    sleeps.unwrap().trim().parse().unwrap()
}
