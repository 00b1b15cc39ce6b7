//! Jobs: in the background, held, cancelled, waited for; who sees them, and how urgent they are.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use serde_json::Value;

use crate::support::{
    Mount, Need, OTHER, Scratch, USER, apart, content, read_file, require, set_mode, set_owner,
    wait_until,
};

use super::*;

/// Longer than anything here takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A world with a file `big` of 6 MiB, which takes for ever at a limit of 1 KiB a second.
fn slow_world(options: &str) -> (Scratch, Mount) {
    let source = Scratch::new();
    source.file("f", &content(1, 0, 100_000));
    source.file("big", &content(2, 0, 6 << 20));
    set_owner_if_root(&source.dir("own"));
    let mount = Mount::of(source.path()).opt(options).start();
    (source, mount)
}

fn set_owner_if_root(path: &Path) {
    if rustix::process::geteuid().is_root() {
        set_owner(path, USER, OTHER);
    }
}

/// The list for programs.
fn list(mount: &Mount) -> Vec<Value> {
    let text = read_file(&mount.path().join(".corfs/jobs.json"));
    let list: Value = serde_json::from_slice(&text).expect("JSON");
    list.as_array().expect("an array").clone()
}

fn state(mount: &Mount, number: u64) -> String {
    let list = list(mount);
    let job = list.iter().find(|job| job["number"] == number);
    job.expect("the job is there")["state"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[track_caller]
fn await_state(mount: &Mount, number: u64, wanted: &str) {
    wait_until(wanted, PATIENCE, || state(mount, number) == wanted);
}

#[test]
fn a_copy_in_the_background_is_answered_at_once_and_told_of() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let (source, mount) = slow_world("rw");
    let at = mount.path();
    // That this comes back at all is what is tried: in the foreground it would take 100 minutes.
    tell(at, "--limit 1K big slow &\n").unwrap();
    tell(at, "f g &\nmissing h &\n").unwrap();
    assert_eq!(tell(at, "--wait 2\n"), Ok(()));
    assert_copied(&source.path().join("g"));
    assert_copied(&at.join("g"));
    assert_eq!(tell(at, "--wait 3\n"), Err(Errno::NOENT));
    assert_eq!(tell(at, "--wait 4\n"), Err(Errno::SRCH));

    await_state(&mount, 1, "running");
    wait_until("bytes are counted", PATIENCE, || {
        list(&mount)[..]
            .iter()
            .any(|job| job["number"] == 1 && job["bytes_done"] != 0)
    });
    let jobs_now = list(&mount);
    let of = |number: u64| jobs_now.iter().find(|job| job["number"] == number).unwrap();
    assert_eq!(of(1)["bytes_total"], 6 << 20);
    assert_eq!(of(1)["title"], "big -> slow");
    assert_eq!(of(2)["state"], "done");
    assert_eq!(of(2)["bytes_done"], 100_000);
    assert_eq!(of(3)["state"], "failed");
    assert_eq!(of(3)["errno"], libc::ENOENT);
    assert!(jobs(at).contains("running") && jobs(at).contains("big -> slow"));

    tell(at, "--cancel 1\n").unwrap();
    await_state(&mount, 1, "cancelled");
    assert_eq!(tell(at, "--wait 1\n"), Err(Errno::CANCELED));
    assert_eq!(tell(at, "--cancel 1\n"), Err(Errno::SRCH));
    wait_until("nothing is left", PATIENCE, || {
        names(source.path()) == ["big", "f", "g", "own"]
    });
}

#[test]
fn the_end_of_the_mount_ends_what_runs_in_the_background() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let (source, mount) = slow_world("rw");
    let lines = "--limit 1K big a &\n--limit 1K big b &\n--limit 1K big c &\n--pause 2\n";
    tell(mount.path(), lines).unwrap();
    await_state(&mount, 2, "paused");
    let status = mount.finish_within(Duration::from_secs(60));
    assert_eq!(status.code(), Some(0));
    assert_eq!(names(source.path()), ["big", "f", "own"]);
}

#[test]
fn a_held_copy_goes_on() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let (source, mount) = slow_world("rw");
    let at = mount.path();
    tell(at, "--limit 4M big copy &\n--pause 1\n").unwrap();
    await_state(&mount, 1, "paused");
    assert!(jobs(at).contains("paused"));
    assert!(!source.path().join("copy").exists());
    tell(at, "--resume-job 1\n--wait 1\n").unwrap();
    assert_content(2, 0, &read_file(&source.path().join("copy")));
    assert_eq!(tell(at, "--pause 1\n"), Err(Errno::SRCH));
}

#[test]
fn a_cancelled_copy_in_place_says_what_it_leaves() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let (source, mount) = slow_world("rw");
    let at = mount.path();
    source.file("stands", &content(3, 0, 6 << 20));
    tell(at, "--inplace --limit 1M --chunk 64K big stands &\n").unwrap();
    wait_until("bytes are written", PATIENCE, || {
        list(&mount)[0]["bytes_done"] != 0
    });
    tell(at, "--cancel 1\n").unwrap();
    assert_eq!(tell(at, "--wait 1\n"), Err(Errno::CANCELED));
    assert_eq!(state(&mount, 1), "cancelled");
    let error = list(&mount)[0]["error"].to_string();
    assert!(
        error.contains("it may be a mixture of old and new"),
        "{error}"
    );
    assert!(jobs(at).contains("it may be a mixture of old and new"));
}

#[test]
fn a_caller_sees_and_stops_its_own_and_root_all() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let (_source, mount) = slow_world("allow_other");
    let at = mount.path();
    set_mode(&at.join("big"), 0o644);
    tell(at, "--limit 1K big roots &\n").unwrap();
    apart(Some((USER, OTHER)), || {
        tell(at, "--limit 1K big own/theirs &\n").unwrap();
        await_state(&mount, 2, "running");
        let seen = list(&mount);
        assert_eq!(seen.len(), 1, "{seen:?}");
        assert_eq!(
            (&seen[0]["number"], &seen[0]["owner"]),
            (&2.into(), &USER.into())
        );
        assert!(!jobs(at).contains("roots"));
        for word in ["--cancel", "--pause", "--resume-job", "--wait"] {
            assert_eq!(tell(at, format!("{word} 1\n")), Err(Errno::SRCH), "{word}");
        }
        tell(at, "--cancel all\n").unwrap();
        await_state(&mount, 2, "cancelled");
        tell(at, "--limit 1K big own/again &\n").unwrap();
    });
    assert_eq!(state(&mount, 1), "running");
    let numbered = |number: u64| list(&mount).iter().any(|job| job["number"] == number);
    assert!(numbered(1) && numbered(2));
    let again = list(&mount)
        .iter()
        .filter_map(|job| job["number"].as_u64())
        .max()
        .unwrap();
    await_state(&mount, again, "running");
    tell(at, format!("--cancel {again}\n")).unwrap();
    await_state(&mount, again, "cancelled");
    tell(at, "--cancel all\n").unwrap();
    await_state(&mount, 1, "cancelled");
}

#[test]
fn one_users_copies_keep_no_other_waiting() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let (source, mount) = slow_world("allow_other");
    let at = mount.path();
    let many: String = (0..20)
        .map(|i| format!("--limit 1K big slow{i} &\n"))
        .collect();
    tell(at, many).unwrap();
    await_state(&mount, 1, "running");
    apart(Some((USER, OTHER)), || copy(at, "f", "own/g").unwrap());
    assert_copied(&source.path().join("own/g"));
    assert_eq!(state(&mount, 20), "queued");
    tell(at, "--cancel all\n").unwrap();
    await_state(&mount, 20, "cancelled");
}

#[test]
fn copies_that_many_have_paused_keep_nobody_waiting() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let (source, mount) = slow_world("allow_other");
    let at = mount.path();
    set_mode(&source.path().join("own"), 0o777);
    let mut number = 0;
    // Each pauses as many as one may.
    for user in USER..USER + 4 {
        apart(Some((user, OTHER)), || {
            for _ in 0..16 {
                number += 1;
                tell(at, format!("--limit 1K big own/{number} &\n")).unwrap();
                await_state(&mount, number, "running");
                tell(at, format!("--pause {number}\n")).unwrap();
            }
        });
    }
    // One who has paused none, and one who has.
    for user in [USER + 4, USER] {
        let to = format!("own/of-{user}");
        number += 1;
        // Not one that is waited for: who never gets a turn would wait for ever.
        apart(Some((user, OTHER)), || {
            tell(at, format!("f {to} &\n")).unwrap()
        });
        await_state(&mount, number, "done");
        assert_copied(&source.path().join(to));
    }
    apart(Some((USER, OTHER)), || {
        tell(at, "--limit 1K big own/more &\n").unwrap();
        let more = number + 1;
        await_state(&mount, more, "running");
        assert_eq!(tell(at, format!("--pause {more}\n")), Err(Errno::AGAIN));
        let words = "16 copies of that user, 64 of all, are paused within their course";
        assert!(jobs(at).contains(words), "{}", jobs(at));
    });
    tell(at, "--cancel all\n").unwrap();
    await_state(&mount, 1, "cancelled");
}

#[test]
fn an_idle_copy_runs_behind_all_others_in_the_sandbox_too() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let (_source, mount) = slow_world("rw");
    let at = mount.path();
    tell(at, "--priority idle --limit 1K big slow &\n").unwrap();
    let tasks = format!("/proc/{}/task", mount.server());
    let policies = |name: &str| -> Vec<String> {
        let stats = fs::read_dir(&tasks)
            .unwrap()
            .filter_map(|task| fs::read_to_string(task.unwrap().path().join("stat")).ok());
        let of = stats.filter(|stat| stat.contains(&format!("({name})")));
        // The 41st field (proc_pid_stat(5)); the third follows the name.
        let policy = |stat: String| {
            stat.rsplit(") ")
                .next()?
                .split(' ')
                .nth(38)
                .map(str::to_owned)
        };
        of.filter_map(policy).collect()
    };
    // SCHED_IDLE is 5.
    wait_until("it is idle", PATIENCE, || policies("corfs-idle") == ["5"]);
    assert_eq!(state(&mount, 1), "running");
    tell(at, "--limit 1K big other &\n").unwrap();
    await_state(&mount, 2, "running");
    assert!(policies("corfs-copy").iter().all(|policy| policy == "0"));
    tell(at, "--cancel all\n").unwrap();
    await_state(&mount, 1, "cancelled");
    tell(at, "--priority=idle f g\n").unwrap();
    assert_copied(&at.join("g"));
}

#[test]
fn what_is_wrong_is_told_with_its_column() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let (_source, mount) = world("rw");
    let at = mount.path();
    let cases = [
        (
            "f --metod=x g",
            "column 3: unknown option --metod; perhaps --method?",
        ),
        ("f g&", "column 4: a space belongs before this &"),
        ("--help", "column 1: `cat .copy` tells what a line may say"),
        ("--inplace --resume f g", "column 11: --resume goes on"),
        (
            "-r '--exclude=[a' d g &",
            "column 4: --exclude takes a glob (unclosed character class; missing ']'); not '[a'",
        ),
    ];
    for (line, words) in cases {
        assert_eq!(tell(at, format!("{line}\n")), Err(Errno::INVAL), "{line}");
        assert!(jobs(at).contains(words), "{line}: {}", jobs(at));
    }
    assert!(jobs(at).starts_with("# a line: [options] SRC... DST [&]\n"));
}

#[test]
fn a_plan_stops_at_the_line_that_fails() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let (source, mount) = world("rw");
    let plan = Scratch::new();
    let mut file = File::create(plan.path().join("plan")).unwrap();
    let good: String = (0..500).map(|i| format!("f 'd/{i}' # one\n\n")).collect();
    write!(file, "{good}missing d/x\nf d/never\n").unwrap();
    let mut cat = crate::support::sh(mount.path(), "cat \"$PLAN\" > .copy");
    let said = cat.env("PLAN", plan.path().join("plan")).output().unwrap();
    let words = String::from_utf8_lossy(&said.stderr);
    assert!(
        !said.status.success() && words.contains("No such file"),
        "{words}"
    );
    assert_eq!(names(&source.path().join("d")).len(), 500);
    assert_eq!(jobs(mount.path()).matches("missing -> d/x").count(), 1);
}

/// Comments that take so many bytes.
fn comments(bytes: usize) -> String {
    let mut text = format!("#{:62}\n", "").repeat(bytes / 64 - 1);
    let last = bytes - text.len() - "#\n".len();
    text += &format!("#{:last$}\n", "");
    text
}

/// The kernel hands on a large write(2) in parts, and who writes is told the length of those before
/// one that fails, never its errno.
#[test]
fn a_plan_in_one_large_write_stops_at_the_line_that_fails() {
    if !require(&[Need::Fuse]) {
        return;
    }
    const PART: usize = 1 << 20;
    let fails = "missing d/x\n";
    let mut room = vec![0; 2 * PART];
    let page = room.as_ptr().align_offset(4096);
    // A part ends where its pages do; the line that fails ends there, stands across, or begins.
    for (skew, before) in [(0, fails.len()), (0, 5), (0, 0), (16, 5), (16, 0)] {
        let (source, mount) = world("rw");
        let first = "f d/first\n";
        let filling = comments(PART - skew - before - first.len());
        let rest = comments(PART / 2);
        let plan = format!("{first}{filling}{fails}f d/never\n{rest}");
        let place = &mut room[page + skew..][..plan.len()];
        place.copy_from_slice(plan.as_bytes());

        let fd = open_control(mount.path()).unwrap();
        let mut left = &*place;
        let end = loop {
            assert!(!left.is_empty(), "it does not stop");
            match rustix::io::write(&fd, left) {
                Ok(count) => left = &left[count..],
                Err(errno) => break errno,
            }
        };
        assert_eq!(end, Errno::NOENT);
        assert!(left.starts_with(fails.as_bytes()), "it stops elsewhere");
        assert_eq!(close(fd), Ok(()));
        let list = jobs(mount.path());
        assert_eq!(list.matches("missing -> d/x").count(), 1, "{list}");
        assert_eq!(list.matches("  failed  ").count(), 1, "{list}");
        assert_eq!(names(&source.path().join("d")), ["first"]);
    }
}
