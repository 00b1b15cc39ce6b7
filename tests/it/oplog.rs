//! `.corfs/oplog`, `corfs replay`, `corfs stat --watch`: what happens on a mount, told and played
//! back.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use crate::support::{
    FaultySource, Mount, Need, OTHER, On, Scratch, corfs, errno_of, output, read_file, require,
    run, wait_until, write_file,
};

const PATIENCE: Duration = Duration::from_secs(30);

/// A `cat` of the log into a file, killed with the test.
struct Reader {
    child: Child,
    file: PathBuf,
    _scratch: Scratch,
}

impl Reader {
    /// Returns when the log has begun.
    #[track_caller]
    fn of(mount: &Mount) -> Self {
        let scratch = Scratch::new();
        let file = scratch.path().join("log");
        let child = Command::new("cat")
            .arg(mount.path().join(".corfs/oplog"))
            .stdout(File::create(&file).expect("a file"))
            .spawn()
            .expect("cat");
        let reader = Self {
            child,
            file,
            _scratch: scratch,
        };
        reader.await_line("# time\t");
        reader
    }

    fn text(&self) -> String {
        String::from_utf8(read_file(&self.file)).expect("a log is ASCII")
    }

    /// The fields of the first line that begins or goes on like this.
    #[track_caller]
    fn await_line(&self, part: &str) -> Vec<String> {
        wait_until(part, PATIENCE, || self.find(part).is_some());
        self.find(part).expect("found")
    }

    fn find(&self, part: &str) -> Option<Vec<String>> {
        self.all(part).into_iter().next()
    }

    /// The fields of all such lines.
    fn all(&self, part: &str) -> Vec<Vec<String>> {
        let text = self.text();
        // The last line may have come in part only.
        let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
        let lines = whole.lines().filter(|line| line.contains(part));
        lines
            .map(|line| line.split('\t').map(str::to_owned).collect())
            .collect()
    }

    #[track_caller]
    fn ends(&mut self) -> std::process::ExitStatus {
        let child = &mut self.child;
        wait_until("the reader ends", PATIENCE, || {
            child.try_wait().expect("wait").is_some()
        });
        child.wait().expect("wait")
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn each_operation_is_a_line_with_its_caller() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    let mount = Mount::of(source.path()).start();
    write_file(&mount.path().join("before"), b"nobody reads the log yet");
    let reader = Reader::of(&mount);
    let at = |name: &str| mount.path().join(name);
    fs::create_dir(at("dir")).unwrap();
    write_file(&at("dir/a b"), b"content");
    fs::rename(at("dir/a b"), at("dir/c")).unwrap();
    assert_eq!(read_file(&at("dir/c")), b"content");
    fs::remove_file(at("none")).unwrap_err();
    fs::remove_file(at("dir/c")).unwrap();

    let made = reader.await_line("\tcreate\tdir/a\\040b\t");
    let own = rustix::process::geteuid().as_raw().to_string();
    assert_eq!(made[8], "0");
    assert_eq!(made[10], own, "the user: {made:?}");
    assert!(made[11].parse::<u32>().unwrap() > 0, "the thread: {made:?}");
    let written = reader.await_line("\twrite\tdir/a\\040b\t");
    assert_eq!((&*written[4], &*written[5]), ("0", "7"));
    let renamed = reader.await_line("\trename\tdir/a\\040b\tdir/c\t");
    assert_eq!(renamed[8], "0");
    reader.await_line("\tread\tdir/c\t");
    let missing = reader.await_line("\tlookup\tnone\t");
    assert_eq!(missing[8], libc::ENOENT.to_string());
    reader.await_line("\tunlink\tdir/c\t");
    let text = reader.text();
    assert!(
        !text.contains("before"),
        "what was before is not told: {text}"
    );
    assert!(!text.contains("oplog\t"), "nor the reader itself: {text}");
}

/// A lock of an open file (F_OFD_SETLK, or F_OFD_SETLKW) over all of it.
fn lock(file: &File, command: libc::c_int, kind: libc::c_int) -> std::io::Result<()> {
    // SAFETY: flock is plain numbers, of which all zeros are some.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    // SAFETY: the descriptor is open, and `lock` lives through the call.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, &lock) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

#[test]
fn a_lock_that_is_not_had_and_one_that_is_waited_for_are_told_as_they_ended() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    source.file("f", b"content");
    let mount = Mount::of(source.path()).start();
    let reader = Reader::of(&mount);
    let open = || {
        let mut options = File::options();
        let options = options.read(true).write(true);
        options.open(mount.path().join("f")).unwrap()
    };
    let told = |count: usize| {
        let lines = || reader.all("\tsetlk\tf\t");
        wait_until("locks are told", PATIENCE, || lines().len() >= count);
        lines()
    };
    let (holder, other) = (open(), open());
    lock(&holder, libc::F_OFD_SETLK, libc::F_WRLCK).unwrap();
    let missed = lock(&other, libc::F_OFD_SETLK, libc::F_WRLCK);
    assert_eq!(errno_of("lock", missed), Errno::AGAIN);
    let ends: Vec<_> = told(2).into_iter().map(|line| line[8].clone()).collect();
    assert_eq!(ends, ["0", &libc::EAGAIN.to_string()]);

    let waits = std::thread::spawn(move || lock(&other, libc::F_OFD_SETLKW, libc::F_WRLCK));
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(reader.all("\tsetlk\t").len(), 2, "it waits");
    lock(&holder, libc::F_OFD_SETLK, libc::F_UNLCK).unwrap();
    waits.join().unwrap().unwrap();
    let waited = |line: &Vec<String>| line[8] == "0" && line[9].parse::<f64>().unwrap() > 0.2;
    assert_eq!(told(4).iter().filter(|line| waited(line)).count(), 1);
}

/// What hangs in the source has been answered, and its late end is nobody's.
#[test]
fn what_is_answered_before_the_source_does_is_told_then() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = FaultySource::new();
    let mount = Mount::of(source.path())
        .opt("attr_timeout=0,entry_timeout=0,source_timeout=0.3")
        .start();
    let reader = Reader::of(&mount);
    source.faults().hang(On::Lookup, Some("hung"));
    let missed = fs::metadata(mount.path().join("hung"));
    assert_eq!(errno_of("lookup", missed), Errno::TIMEDOUT);
    let told = reader.await_line("\tlookup\thung\t");
    assert_eq!(told[8], libc::ETIMEDOUT.to_string());
    assert!(told[9].parse::<f64>().unwrap() >= 0.3, "{told:?}");
    source.faults().heal();
    wait_until("nothing hangs", PATIENCE, || {
        source.faults().hanging(On::Lookup) == 0
    });
    fs::metadata(mount.path().join("later")).unwrap_err();
    reader.await_line("\tlookup\tlater\t");
    assert_eq!(reader.all("\tlookup\thung\t").len(), 1);
}

#[test]
fn the_log_is_its_owners_alone() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    let mount = Mount::of(source.path()).opt("allow_other").start();
    let log = mount.path().join(".corfs/oplog");
    let stat = fs::metadata(&log).unwrap();
    assert_eq!(stat.mode(), libc::S_IFREG | 0o400);
    assert_eq!(stat.uid(), rustix::process::geteuid().as_raw());
    let opened = crate::support::apart(Some((OTHER, OTHER)), || File::open(&log).map(drop));
    assert_eq!(opened.unwrap_err().raw_os_error(), Some(libc::EACCES));
    let written = File::options().write(true).open(&log);
    assert_eq!(written.unwrap_err().raw_os_error(), Some(libc::EACCES));
}

/// With one event loop: were a reader to wait in it, nothing else would be answered.
#[test]
fn readers_that_wait_hold_up_nobody_and_can_be_stopped() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    source.file("file", b"content");
    let mount = Mount::of(source.path()).opt("threads=1").start();
    let mut readers: Vec<_> = (0..3).map(|_| Reader::of(&mount)).collect();
    assert_eq!(read_file(&mount.path().join("file")), b"content");
    for (reader, signal) in readers
        .iter_mut()
        .zip([Signal::TERM, Signal::KILL, Signal::INT])
    {
        reader.await_line("\tread\tfile\t");
        let pid = Pid::from_child(&reader.child);
        kill_process(pid, signal).unwrap();
        assert!(!reader.ends().success());
    }
    assert_eq!(read_file(&mount.path().join("file")), b"content");
}

#[test]
fn readers_find_the_end_when_the_mount_goes() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    let mount = Mount::of(source.path()).start();
    let mut reader = Reader::of(&mount);
    let status = mount.finish();
    assert!(status.success(), "{status}");
    assert!(reader.ends().success());
}

#[test]
fn a_slow_reader_is_told_how_much_it_lost() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    let mount = Mount::of(source.path()).start();
    let mut log = File::open(mount.path().join(".corfs/oplog")).unwrap();
    // Absent names are asked for each time, a line of more than 250 bytes each: a few more than a
    // reader may let wait.
    let mut asked = 6_000;
    for number in 0..asked {
        let name = format!("{number:0>200}");
        fs::symlink_metadata(mount.path().join(name)).unwrap_err();
    }
    let mut text = Vec::new();
    let mut part = vec![0; 1 << 16];
    let lost_in = |text: &str| -> usize {
        let counts = text.lines().filter_map(|line| line.strip_prefix("# lost "));
        counts.filter_map(|count| count.parse::<usize>().ok()).sum()
    };
    // There may be more than one gap; each read returns when there is something.
    let lost = loop {
        let count = log.read(&mut part).unwrap();
        text.extend_from_slice(&part[..count]);
        let text = String::from_utf8_lossy(&text);
        let lost = lost_in(&text);
        if lost > 0 && lost + text.matches("\tlookup\t").count() >= asked {
            break lost;
        }
        // So that there is something to wait for, if one is missing.
        assert!(asked < 7_000, "{lost} lost of {asked}");
        fs::symlink_metadata(mount.path().join("more")).unwrap_err();
        asked += 1;
    };
    let told = String::from_utf8_lossy(&text).matches("\tlookup\t").count();
    assert!(lost > 0 && told > 3_000, "{told} told, {lost} lost");
    // Other operations may be among the lost, none of these is missing.
    assert!(told + lost >= asked, "{told} told, {lost} lost");
    assert!(text.len() < 2 << 20, "{} bytes waited", text.len());
}

#[test]
fn an_impatient_reader_is_told_to_come_again() {
    if !require(&[Need::Fuse]) {
        return;
    }
    use std::os::unix::fs::OpenOptionsExt;
    let source = Scratch::new();
    let mount = Mount::of(source.path()).start();
    let mut log = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(mount.path().join(".corfs/oplog"))
        .unwrap();
    let mut part = vec![0; 4096];
    assert!(log.read(&mut part).unwrap() > 0, "the header waits");
    let empty = loop {
        // What the open itself has asked for may come first.
        if let Err(error) = log.read(&mut part) {
            break error;
        }
    };
    assert_eq!(empty.raw_os_error(), Some(libc::EAGAIN));
    let seek = log.read_at(&mut part, 0).unwrap_err();
    assert_eq!(seek.raw_os_error(), Some(libc::ESPIPE));
}

/// What a log tells of a tree makes the same tree elsewhere, its bytes aside.
#[test]
fn a_log_played_back_makes_the_same_tree() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    let mount = Mount::of(source.path()).start();
    let reader = Reader::of(&mount);
    let script = "mkdir -p a/b && echo one >a/b/one && cp a/b/one two && ln two three &&
        ln -s two link && mv a/b/one 'a/o n e' && chmod 600 two && rmdir a/b && truncate -s 9 three &&
        cat two >/dev/null && ls -lR . >/dev/null && touch gone && rm gone && touch last";
    run(&mut crate::support::sh(mount.path(), script));
    reader.await_line("\tcreate\tlast\t");
    // Until the reader has all of it: what comes last is in the log.
    reader.await_line("\trelease\tlast\t");
    let target = Scratch::new();
    let words = run(corfs().arg("replay").arg(&reader.file).arg(target.path()));
    assert!(words.contains("create"), "{words}");
    assert!(!words.contains("lost"), "{words}");
    let list = "find . -printf '%P %y %s %m %n %l\\n' | grep -v ' d ' | sort";
    let made = |folder: &Path| run(&mut crate::support::sh(folder, list));
    assert_eq!(made(target.path()), made(source.path()));
    let refused = output(
        corfs()
            .arg("replay")
            .arg("/etc/hostname")
            .arg(target.path()),
    );
    assert_eq!(refused.status.code(), Some(2));
}

/// What the kernel asks as it is asked: by whom a file is open is in the log, too. As an ordinary
/// user, whom modes stop.
#[test]
fn what_programs_do_with_open_files_is_played_back() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    let mount = Mount::of(source.path()).start();
    let reader = Reader::of(&mount);
    // A range that is copied; a file that its maker alone writes, as git's objects are; modes under
    // a mask; a file that is written when its name is another's.
    let script = "umask 022 && head -c 300000 /dev/zero >big && cp big copy &&
        (umask 0222 && echo object >object) && (umask 077 && mkdir own && echo x >own/file) &&
        exec 3>gone && rm gone && echo new >gone && echo 'more than that' >&3 && exec 3>&- &&
        exec 4>over && echo 5 >it && mv it over && echo 'more than that' >&4 && chmod 600 /dev/fd/4 &&
        exec 4>&- && touch last";
    run(&mut crate::support::sh(mount.path(), script));
    reader.await_line("\trelease\tlast\t");
    let copied = reader.await_line("\tcopy_file_range\tbig\tcopy\t");
    assert_eq!((&*copied[13], &*copied[15]), ("300000", "0"), "{copied:?}");
    let nameless = reader.await_line("\twrite\t-\t");
    assert_eq!(&*nameless[5], "15", "{nameless:?}");

    let target = Scratch::new();
    crate::support::set_owner(target.path(), OTHER, OTHER);
    let shared = Scratch::new();
    let log = shared.file("log", reader.text().as_bytes());
    for place in [shared.path(), target.path()] {
        crate::support::set_mode(place, 0o755);
    }
    let mut replay = Command::new(crate::support::reachable_binary(&shared));
    replay.arg("replay").arg(&log).arg(target.path());
    let words = run(crate::support::as_user(&mut replay, OTHER, OTHER));
    for of_files in ["create", "write", "copy_file_range", "release"] {
        let row = words.lines().find(|line| line.starts_with(of_files));
        let row = row.unwrap_or_else(|| panic!("{of_files}: {words}"));
        assert!(row.trim_end().ends_with(" 0         0"), "{words}");
    }
    let list =
        "find . -mindepth 1 -printf '%P %y %m %s\\n' | sed 's/^\\(own d [0-9]*\\).*/\\1/' | sort";
    let made = |folder: &Path| run(&mut crate::support::sh(folder, list));
    assert_eq!(made(target.path()), made(source.path()), "{words}");
}

#[test]
fn control_files_are_told_of_by_no_line() {
    if !require(&[Need::Fuse]) {
        return;
    }
    for options in ["control=hidden", "control=hidden,source_timeout=20"] {
        let source = Scratch::new();
        fs::create_dir(source.path().join("own")).unwrap();
        let mount = Mount::of(source.path()).opt(options).start();
        let at = |name: &str| mount.path().join(name);
        let reader = Reader::of(&mount);
        fs::metadata(at(".copy")).unwrap();
        fs::metadata(at("own/.copy")).unwrap();
        let done = File::options().write(true).open(at(".copy"));
        done.unwrap().write_all(b"cancel 77\n").unwrap_err();
        mount.stats();
        File::create_new(at("own/.copy")).unwrap_err();
        fs::remove_file(at(".copy")).unwrap_err();
        fs::rename(at("own"), at(".corfs")).unwrap_err();
        write_file(&at("last"), b"");
        reader.await_line("\trelease\tlast\t");
        let told = [reader.all("\t.co"), reader.all("/.co")].concat();
        assert_eq!(told, Vec::<Vec<String>>::new(), "{options}");
        // One of the source's own is a file like all others.
        write_file(&source.path().join("own/.copy"), b"content");
        fs::metadata(at("own/.copy")).unwrap();
        reader.await_line("\tlookup\town/.copy\t");
    }
}

/// Each line of it would be another operation, and another line.
#[test]
fn a_log_is_not_played_back_while_it_tells_of_that() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    fs::create_dir(source.path().join("dir")).unwrap();
    let mount = Mount::of(source.path()).start();
    let log = mount.path().join(".corfs/oplog");
    let replay = |name: &Path, input: Stdio| {
        let mut replay = Command::new("timeout");
        replay.arg("30").arg(env!("CARGO_BIN_EXE_corfs"));
        replay.arg("replay").arg(name).arg(mount.path().join("dir"));
        replay.stdin(input).output().expect("timeout")
    };
    let by_name = replay(&log, Stdio::null());
    let as_input = replay(Path::new("-"), File::open(&log).unwrap().into());
    for refused in [by_name, as_input] {
        assert_eq!(refused.status.code(), Some(2), "{refused:?}");
        let words = String::from_utf8_lossy(&refused.stderr);
        assert!(words.contains("its own replay"), "{words}");
    }
    // One that was saved there has an end.
    write_file(&mount.path().join("saved"), b"# corfs oplog 1\n");
    let saved = replay(&mount.path().join("saved"), Stdio::null());
    assert!(saved.status.success(), "{saved:?}");
}

/// A watch of a mount, on a terminal of its own of so many lines and columns (script(1)), or on none.
struct Watch {
    child: Child,
    file: PathBuf,
    _scratch: Scratch,
}

impl Watch {
    fn of(at: &Path, screen: Option<(u16, u16)>) -> Self {
        let scratch = Scratch::new();
        let file = scratch.path().join("views");
        let views = File::create(&file).unwrap();
        let watch = format!(
            "exec '{}' stat --watch --interval 0.05 '{}'",
            env!("CARGO_BIN_EXE_corfs"),
            at.display()
        );
        let mut command = match screen {
            Some((rows, columns)) => {
                let line = format!("stty rows {rows} cols {columns}; {watch}");
                let mut script = Command::new("script");
                script.args(["-qefc", &line, "/dev/null"]);
                script
            }
            None => crate::support::sh(Path::new("/"), &watch),
        };
        let child = command
            .stdin(Stdio::null())
            .stdout(views.try_clone().unwrap())
            .stderr(views)
            .spawn()
            .unwrap();
        Self {
            child,
            file,
            _scratch: scratch,
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&read_file(&self.file)).into_owned()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_view_fits_the_terminal_that_it_is_on() {
    if !require(&[Need::Fuse, Need::Tool("script")]) {
        return;
    }
    let source = Scratch::new();
    let mount = Mount::of(source.path()).start();
    let watch = Watch::of(mount.path(), Some((10, 60)));
    let script =
        "mkdir -p d && echo x >d/f && mv d/f d/g && cat d/g >/dev/null && ls -l d >/dev/null &&
        ln -s d/g d/h && readlink d/h >/dev/null && truncate -s 9 d/g && rm d/g d/h && rmdir d";
    let whole = |text: &str| text.matches("\x1b[J").count();
    let mut tallest = 0;
    wait_until("a screen that is full", PATIENCE, || {
        run(&mut crate::support::sh(mount.path(), script));
        let text = watch.text();
        let views: Vec<&str> = text.split("\x1b[H").skip(1).take(whole(&text)).collect();
        for view in &views {
            let lines: Vec<String> = view
                .lines()
                .map(|line| line.replace("\x1b[K", "").replace("\x1b[J", ""))
                .filter(|line| !line.is_empty())
                .collect();
            assert!(lines[0].starts_with("corfs on "), "{view:?}");
            assert!(view.matches('\n').count() < 10, "{view:?}");
            assert!(lines.iter().all(|line| line.len() <= 60), "{view:?}");
            assert!(view.contains("in progress"), "{view:?}");
            tallest = tallest.max(lines.len());
        }
        tallest == 9
    });
}

#[test]
fn who_watches_is_told_that_the_mount_has_gone() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    std::fs::create_dir(source.path().join("folder")).unwrap();
    let mount = Mount::of(source.path()).start();
    let folder = mount.path().join("folder");
    let mut watch = Watch::of(&folder, None);
    let views = |watch: &Watch| watch.text().matches("in progress").count();
    wait_until("a view", PATIENCE, || views(&watch) > 0);
    // What it was found by may go.
    std::fs::remove_dir(&folder).unwrap();
    let before = views(&watch);
    wait_until("more views", PATIENCE, || views(&watch) > before + 2);
    let status = mount.finish();
    assert!(status.success(), "{status}");
    let child = &mut watch.child;
    wait_until("the end", PATIENCE, || child.try_wait().unwrap().is_some());
    let status = child.wait().unwrap();
    let words = watch.text();
    assert_eq!(status.code(), Some(32), "{words}");
    assert!(words.contains("the mount is gone"), "{words}");
}

#[test]
fn what_happens_can_be_watched() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    source.file("file", b"content");
    let mount = Mount::of(source.path()).start();
    for (words, shown) in [
        (&["--watch"][..], "mmap"),
        (&["-w", "--json"], "\"lookup\""),
    ] {
        let found = Scratch::new();
        let file = found.path().join("views");
        let mut child = corfs()
            .arg("stat")
            .args(words)
            .args(["--interval", "0.05"])
            .arg(mount.path())
            .stdout(File::create(&file).unwrap())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait_until(shown, PATIENCE, || {
            // Dropped from the kernel's cache, so that a read comes to us.
            let read = File::open(mount.path().join("file")).unwrap();
            let _ = rustix::fs::fadvise(&read, 0, None, rustix::fs::Advice::DontNeed);
            drop(read_file(&mount.path().join("file")));
            String::from_utf8_lossy(&read_file(&file)).contains(shown)
        });
        let text = String::from_utf8(read_file(&file)).unwrap();
        if words.len() == 1 {
            assert!(
                text.contains("a second") && text.contains("in progress"),
                "{text}"
            );
            assert!(
                !text.contains('\x1b'),
                "no screen, no signs for one: {text}"
            );
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let elsewhere = output(corfs().args(["stat", "--watch"]).arg(source.path()));
    assert_eq!(elsewhere.status.code(), Some(1));
}
