//! A source that does not answer: who waits for it, how long, and who does not.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use crate::support::{
    FaultySource, Mount, Need, On, Scratch, assert_content, errno_of, require, wait_until,
    write_content,
};

const NEEDS: &[Need] = &[Need::Fuse, Need::Root];

/// How long anything may take that does not wait for the source.
const PATIENCE: Duration = Duration::from_secs(60);

/// A source with the files `a` and `b` and its mirror, whose kernel remembers nothing.
fn stand(opt: &str) -> (FaultySource, Mount) {
    let source = FaultySource::new();
    write_content(&source.store().join("a"), 1, 1 << 20);
    write_content(&source.store().join("b"), 2, 1 << 20);
    let mount = Mount::of(source.path())
        .opt("attr_timeout=0,entry_timeout=0")
        .opt(opt)
        .start();
    fs::metadata(mount.path()).unwrap();
    (source, mount)
}

fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Receiver<T> {
    let (told, hears) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let _ = told.send(work());
    });
    hears
}

/// A line of `.corfs/config`.
fn in_force(mount: &Mount, key: &str) -> String {
    let text = fs::read_to_string(mount.path().join(".corfs/config")).unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    line.expect(key).to_owned()
}

#[test]
fn workers_serve_what_may_hang_and_event_loops_what_is_local() {
    if !require(NEEDS) {
        return;
    }
    let (_source, mount) = stand("source_timeout=7");
    assert_content(1, 0, &fs::read(mount.path().join("a")).unwrap());
    assert_eq!(in_force(&mount, "source_workers"), "always");
    assert_eq!(in_force(&mount, "source_timeout"), "7");
    assert_eq!(in_force(&mount, "source_timeout_write"), "never");
    assert!(mount.stats().value("corfs_source_workers", &[]) >= 1.0);

    let local = Scratch::new();
    fs::write(local.path().join("f"), "local").unwrap();
    let mount = Mount::of(local.path()).start();
    assert_eq!(fs::read(mount.path().join("f")).unwrap(), b"local");
    assert_eq!(in_force(&mount, "source_workers"), "never");
    assert_eq!(mount.stats().value("corfs_source_workers", &[]), 0.0);
}

#[test]
fn twenty_hung_callers_stall_nobody_else() {
    if !require(NEEDS) {
        return;
    }
    let (source, mount) = stand("threads=4");
    let mut stuck = Vec::new();
    for n in 0..20 {
        let name = format!("hung{n}");
        fs::write(source.store().join(&name), &name).unwrap();
        source.faults().hang(On::Open, Some(&name));
        let path = mount.path().join(&name);
        stuck.push(aside(move || fs::read_to_string(path)));
    }
    source.faults().await_hanging(On::Open, 20);
    let at = mount.path().to_owned();
    let others = aside(move || {
        assert_content(2, 0, &fs::read(at.join("b")).unwrap());
        fs::write(at.join("c"), "c").unwrap();
        fs::create_dir(at.join("d")).unwrap();
        fs::rename(at.join("c"), at.join("d/c")).unwrap();
        fs::write(at.join(".copy"), "b e\n").unwrap();
        assert_content(2, 0, &fs::read(at.join("e")).unwrap());
        fs::read_dir(&at).unwrap().count()
    });
    assert_eq!(others.recv_timeout(PATIENCE), Ok(24));
    mount.stats();
    source.faults().heal();
    for (n, stuck) in stuck.iter().enumerate() {
        let read = stuck.recv_timeout(PATIENCE).unwrap().unwrap();
        assert_eq!(read, format!("hung{n}"));
    }
    assert_eq!(mount.finish().code(), Some(0));
}

/// All that is about the mount itself is there while nobody is left to wait for the source.
#[test]
fn the_mounts_own_files_take_no_worker() {
    if !require(NEEDS) {
        return;
    }
    let source = FaultySource::new();
    write_content(&source.store().join("a"), 1, 1 << 20);
    let mount = Mount::of(source.path())
        .opt("attr_timeout=3600,entry_timeout=3600,source_timeout=20")
        .start();
    let path = mount.path().join("a");
    fs::metadata(&path).unwrap();
    source.faults().hang(On::Open, Some("a"));
    std::thread::scope(|scope| {
        let open = || File::open(&path).map(drop);
        let stuck: Vec<_> = (0..256).map(|_| scope.spawn(open)).collect();
        source.faults().await_hanging(On::Open, 256);
        for name in ["stats", "config", "jobs.json", "oplog"] {
            let own = mount.path().join(".corfs").join(name);
            let seen = aside(move || fs::metadata(&own).and(File::open(&own)).map(drop));
            let seen = seen.recv_timeout(Duration::from_secs(10));
            seen.expect(name).expect(name);
        }
        source.faults().heal();
        for one in stuck {
            one.join().unwrap().unwrap();
        }
    });
}

#[test]
fn an_event_loop_that_hangs_stalls_nobody_while_one_leads() {
    if !require(NEEDS) {
        return;
    }
    let (source, mount) = stand("threads=4,source_workers=never,busy_poll=1000");
    let path = mount.path().join("b");
    let ask = move || {
        for _ in 0..5000 {
            fs::metadata(&path).unwrap();
        }
    };
    ask();
    source.faults().hang(On::Open, Some("a"));
    let a = mount.path().join("a");
    let stuck = aside(move || fs::read(a));
    source.faults().await_hanging(On::Open, 1);
    assert_eq!(aside(ask).recv_timeout(PATIENCE), Ok(()));
    source.faults().heal();
    let read = stuck.recv_timeout(PATIENCE).unwrap().unwrap();
    assert_content(1, 0, &read);
    assert_eq!(in_force(&mount, "busy_poll"), "1000");
    assert_eq!(mount.finish().code(), Some(0));
}

type Attempt = fn(&Path) -> io::Result<()>;

#[test]
fn who_asks_or_reads_is_answered_by_the_deadline() {
    if !require(NEEDS) {
        return;
    }
    let (source, mount) = stand("source_timeout=0.3");
    let attempts: &[(On, Attempt)] = &[
        (On::Lookup, |at| fs::metadata(at.join("fresh")).map(drop)),
        (On::Getattr, |at| fs::metadata(at.join("a")).map(drop)),
        (On::Open, |at| File::open(at.join("a")).map(drop)),
        (On::Read, |at| fs::read(at.join("b")).map(drop)),
        (On::Readdir, |at| {
            fs::read_dir(at)?.collect::<Result<Vec<_>, _>>().map(drop)
        }),
    ];
    for (on, attempt) in attempts {
        source.faults().hang(*on, None);
        let at = mount.path().to_owned();
        let attempt = *attempt;
        let tried = aside(move || attempt(&at)).recv_timeout(PATIENCE);
        let errno = errno_of(format!("{on:?}"), tried.expect("an answer"));
        // The kernel makes EIO of a page that it could not get.
        let right = match on {
            On::Read => [Errno::TIMEDOUT, Errno::IO],
            _ => [Errno::TIMEDOUT; 2],
        };
        assert!(right.contains(&errno), "{on:?}: {errno}");
        source.faults().heal();
    }
    assert!(mount.stats().value("corfs_source_timeouts_total", &[]) >= 5.0);
    assert_content(1, 0, &fs::read(mount.path().join("a")).unwrap());
    assert_eq!(mount.finish().code(), Some(0));
}

/// Lookups that took longer than any that does not wait for the source.
fn slow_lookups(mount: &Mount) -> f64 {
    let stats = mount.stats();
    let within = |le| {
        let labels = [("op", "lookup"), ("le", le)];
        stats.sum("corfs_operation_duration_seconds_bucket", &labels)
    };
    within("+Inf") - within("0.25")
}

#[test]
fn what_comes_too_late_is_undone() {
    if !require(NEEDS) {
        return;
    }
    let (source, mount) = stand("source_timeout=0.5");
    let (inodes, handles) = {
        let stats = mount.stats();
        let value = |name| stats.value(name, &[]);
        (value("corfs_inodes"), value("corfs_handles"))
    };
    let slow = slow_lookups(&mount);
    source.faults().hang(On::Lookup, Some("a"));
    let missed = fs::metadata(mount.path().join("a"));
    assert_eq!(errno_of("lookup", missed), Errno::TIMEDOUT);
    source.faults().heal();
    wait_until("the lookup comes back", PATIENCE, || {
        slow_lookups(&mount) > slow
    });
    wait_until("the inode is forgotten", PATIENCE, || {
        mount.stats().value("corfs_inodes", &[]) == inodes
    });

    source.faults().hang(On::Open, Some("b"));
    let missed = File::open(mount.path().join("b"));
    assert_eq!(errno_of("open", missed), Errno::TIMEDOUT);
    source.faults().heal();
    wait_until("nothing hangs", PATIENCE, || {
        source.faults().hanging(On::Open) == 0
    });
    wait_until("the file is closed", PATIENCE, || {
        mount.stats().value("corfs_handles", &[]) == handles
    });
    assert_content(2, 0, &fs::read(mount.path().join("b")).unwrap());
}

/// A child that is reaped with the test.
struct Ends(Child);

impl Ends {
    fn start(script: &str, file: &Path) -> Self {
        let mut shell = Command::new("sh");
        Self(shell.args(["-c", script, "sh"]).arg(file).spawn().unwrap())
    }

    /// Signals it, and waits for its end by that.
    #[track_caller]
    fn by(&mut self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
        let mut end = None;
        wait_until("the child ends", PATIENCE, || {
            end = self.0.try_wait().unwrap();
            end.is_some()
        });
        assert_eq!(end.unwrap().signal(), Some(signal.as_raw()));
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
    }
}

#[test]
fn who_writes_waits_and_can_be_ended() {
    if !require(NEEDS) {
        return;
    }
    let (source, mount) = stand("source_timeout=0.3");
    source.faults().hang(On::Write, None);
    source.faults().hang(On::Open, Some("b"));
    let mut writer = Ends::start("echo x >> \"$1\"", &mount.path().join("a"));
    source.faults().await_hanging(On::Write, 1);
    // Much longer than who reads would have had to wait.
    for _ in 0..4 {
        let missed = File::open(mount.path().join("b"));
        assert_eq!(errno_of("open", missed), Errno::TIMEDOUT);
    }
    assert!(writer.0.try_wait().unwrap().is_none(), "it waits");
    writer.by(Signal::TERM);
    assert!(mount.stats().value("corfs_source_interrupts_total", &[]) >= 1.0);
    source.faults().heal();
    assert_eq!(mount.finish().code(), Some(0));

    let (source, mount) = stand("source_timeout_write=0.3");
    source.faults().hang(On::Write, None);
    let written = fs::write(mount.path().join("a"), "x");
    assert_eq!(errno_of("write", written), Errno::TIMEDOUT);
    source.faults().heal();
}

#[test]
fn who_reads_without_a_deadline_can_be_ended() {
    if !require(NEEDS) {
        return;
    }
    let (source, mount) = stand("source_timeout=never");
    source.faults().hang(On::Open, Some("a"));
    let mut reader = Ends::start("exec cat \"$1\"", &mount.path().join("a"));
    source.faults().await_hanging(On::Open, 1);
    reader.by(Signal::INT);
    source.faults().heal();
}

#[test]
fn workers_list_large_directories_whole() {
    if !require(NEEDS) {
        return;
    }
    let source = Scratch::new();
    let mut expected: Vec<(String, u64)> = (0..3000u64)
        .map(|n| (format!("{n}{}", "x".repeat((n % 50) as usize)), n % 97))
        .collect();
    for (name, length) in &expected {
        fs::write(source.path().join(name), vec![b'x'; *length as usize]).unwrap();
    }
    expected.sort();
    for control in ["control=hidden", "control=visible"] {
        let mount = Mount::of(source.path())
            .opt("source_workers=always")
            .opt(control)
            .start();
        let entries = fs::read_dir(mount.path()).unwrap().map(Result::unwrap);
        let mut names: Vec<(String, u64)> = entries
            .filter(|entry| entry.file_name() != ".copy")
            .map(|entry| {
                let name = entry.file_name().into_string().unwrap();
                (name, entry.metadata().unwrap().len())
            })
            .collect();
        names.sort();
        assert_eq!(names, expected, "{control}");
        let visible = fs::read_dir(mount.path())
            .unwrap()
            .any(|entry| entry.unwrap().file_name() == ".copy");
        assert_eq!(visible, control == "control=visible");
    }
}
