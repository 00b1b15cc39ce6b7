//! Trees that are copied through a mount, and what befalls them on the way.

use std::os::unix::fs::symlink;
use std::process::Stdio;
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};

use super::*;
use crate::callers::escape::beside_swappers;
use crate::support::{Dice, FaultySource, Need, On, Scratch, require, sh, soak};

const SIZES: [usize; 6] = [0, 1, 5_000, 65_536, 300_000, 1 << 20];

/// In a directory of nothing but small files, which is filled unseen where the file system allows.
const SMALL: [usize; 30] = [3_000; 30];

fn sizes(dir: u64) -> &'static [usize] {
    if dir < 3 { &SIZES } else { &SMALL }
}

/// Files of all sizes in three directories, with links another of small ones; the content tells the
/// name, and the generation.
fn grow(top: &Path, generation: u64, links: bool) {
    for dir in 0..3 + u64::from(links) {
        let at = top.join(format!("d{dir}"));
        fs::create_dir_all(&at).unwrap();
        for (number, &size) in sizes(dir).iter().enumerate() {
            let seed = generation * 1000 + dir * 10 + number as u64;
            fs::write(at.join(format!("f{number}")), content(seed, 0, size)).unwrap();
        }
        if links && dir < 3 {
            let _ = fs::hard_link(at.join("f4"), at.join("g4"));
            let _ = symlink("f4", at.join("l"));
        }
    }
}

/// Every file is one of these generations, whole; answers how many are there.
#[track_caller]
fn assert_all_whole(top: &Path, generations: &[u64]) -> usize {
    let mut count = 0;
    for dir in 0..4 {
        for (number, &size) in sizes(dir).iter().enumerate() {
            let path = top.join(format!("d{dir}/f{number}"));
            let Ok(bytes) = fs::read(&path) else {
                continue;
            };
            count += 1;
            let is = |generation: &&u64| {
                bytes == content(*generation * 1000 + dir * 10 + number as u64, 0, size)
            };
            assert!(
                generations.iter().any(|generation| is(&generation)),
                "{}: {} bytes, of no generation of {generations:?}",
                path.display(),
                bytes.len()
            );
        }
    }
    count
}

fn hidden(top: &Path) -> Vec<String> {
    let all = sh(top, "find . -name '.corfs-*'").output().unwrap();
    let all = String::from_utf8_lossy(&all.stdout).into_owned();
    all.lines().map(str::to_owned).collect()
}

/// One round: a copy over nothing, or over the generation before, is killed with its daemon.
fn killed(at: &Path, store: &Path, delay: Duration, round: u64, links: bool) -> usize {
    let old = round % 2 == 1;
    let _ = fs::remove_dir_all(store.join("to"));
    if old {
        grow(&store.join("to"), 2, links);
    }
    let sandbox = ["sandbox=auto", "sandbox=off"][usize::from(round % 5 == 4)];
    let mut mount = Mount::of(at).opt(sandbox).start();
    let server = mount.server();
    let options = ["-a", "-r --sync", "-a --method=map-map", "-a --verify"];
    let options = options[round as usize % options.len()];
    let copy = telling(mount.path(), &format!("{options} -T from to"));
    std::thread::sleep(delay);
    match round % 3 {
        0 => mount.signal(Signal::KILL),
        _ => mount.signal_server(Signal::KILL),
    }
    let _ = copy.join().unwrap();
    assert!(mount.wait(PATIENCE).is_some(), "the guardian stays");
    wait_until("the server is gone", PATIENCE, || {
        let stat = fs::read_to_string(format!("/proc/{server}/stat"));
        stat.map_or(true, |stat| stat.contains(") Z "))
    });
    drop(mount);
    let count = assert_all_whole(&store.join("to"), if old { &[1, 2] } else { &[1] });
    let left = hidden(store).len();

    let next = Mount::of(at).start();
    tell(next.path(), "-a -T from to").unwrap();
    assert_eq!(hidden(store), [""; 0], "round {round}, {count} were there");
    assert_all_whole(&store.join("to"), &[1]);
    assert_eq!(names(store), ["from", "to"]);
    left
}

#[test]
fn a_killed_daemon_leaves_whole_files_in_a_tree_and_what_is_hidden_goes_with_the_next_copy() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let scratch = Scratch::new();
    let faulty = FaultySource::new();
    let places = [
        (scratch.path(), scratch.path(), true),
        // It knows no files without a name, nor links.
        (faulty.path(), faulty.store(), false),
    ];
    let mut dice = Dice::new(5);
    for (at, store, links) in places {
        grow(&store.join("from"), 1, links);
        let whole = {
            let mount = Mount::of(at).start();
            let start = Instant::now();
            tell(mount.path(), "-a from to").unwrap();
            start.elapsed()
        };
        let mut left = 0;
        for round in 0..soak(100).max(5) {
            let delay = whole.mul_f64(dice.below(1100) as f64 / 1000.0);
            left += killed(at, store, delay, round, links);
        }
        println!("{left} hidden names were left, and went");
    }
}

#[test]
fn no_link_leads_a_tree_copy_through_a_mount_out() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let mut dice = Dice::new(815);
    let mut mount: Option<Mount> = None;
    let (mut done, mut some) = (0, 0);
    let deed = |source: &Path| {
        let mount = mount.get_or_insert_with(|| Mount::of(source).start());
        let place = |dice: &mut Dice| match dice.below(4) {
            0 => format!("alt/x{}", dice.below(6)),
            1 => format!("s{0}/n{1}", dice.below(3), dice.below(4)),
            _ => format!("s{}", dice.below(3)),
        };
        let (from, to) = (place(&mut dice), place(&mut dice));
        let words = ["-a", "-r --inplace", "-a --backup=numbered", "-r --verify"];
        let words = words[dice.below(words.len() as u64) as usize];
        let copied = dice.below(2);
        let line = format!("{words} --exclude='copied*' {from} {to}/copied{copied}");
        match tell(mount.path(), &line) {
            Ok(()) => done += 1,
            Err(Errno::INTR | Errno::CANCELED | Errno::IO) => panic!("{line}"),
            Err(_) => some += 1,
        }
    };
    beside_swappers(soak(100).max(5), deed);
    println!("{done} copied, {some} refused or in part");
    assert!(done > 0 && some > 0, "the exchanges met no copy");
}

#[test]
fn a_tree_that_hangs_can_be_cancelled_and_one_that_can_not_be_read_in_part_goes_on() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = FaultySource::new();
    let store = source.store();
    grow(&store.join("from"), 1, false);
    for on in [On::Read, On::Readdir, On::Mkdir, On::Create] {
        let mount = Mount::of(source.path()).start();
        // By a signal to the one who waits, and by a line of his.
        for by_line in [false, true] {
            // Of the tree's directories, not of the root, which a new mount looks through.
            source
                .faults()
                .hang(on, (on == On::Readdir).then_some("from"));
            let mut writer = sh(mount.path(), "echo -r from to > .copy");
            let mut writer = writer.stderr(Stdio::null()).spawn().unwrap();
            // The open of the next .copy must not wait for the listing of the root.
            source.faults().await_hanging(on, 1);
            let start = Instant::now();
            if by_line && on == On::Read {
                tell(mount.path(), "--cancel all").unwrap();
            } else {
                kill_process(Pid::from_child(&writer), Signal::INT).unwrap();
            }
            wait_until("the caller is answered", PATIENCE, || {
                writer.try_wait().unwrap().is_some()
            });
            println!("{on:?}: answered after {:?}", start.elapsed());
            assert!(source.faults().hanging(on) > 0, "{on:?} still hangs");
            source.faults().heal();
            wait_until("nothing hidden is left", PATIENCE, || {
                hidden(store).is_empty()
            });
            assert_all_whole(&store.join("to"), &[1]);
            wait_until("the tree is at rest", PATIENCE, || {
                let _ = fs::remove_dir_all(store.join("to"));
                !store.join("to").exists()
            });
        }
    }
    let mount = Mount::of(source.path()).start();
    source.faults().fail(On::Read, Some("f3"), Errno::IO);
    source.faults().fail(On::Open, Some("f1"), Errno::ACCESS);
    let told = tell(mount.path(), "-r from to");
    assert!(matches!(told, Err(Errno::IO | Errno::ACCESS)), "{told:?}");
    assert_eq!(assert_all_whole(&store.join("to"), &[1]), 12);
    assert_eq!(hidden(store), [""; 0]);
    let list = fs::read_to_string(mount.path().join(".copy")).unwrap();
    assert!(list.contains("6 of 22 failed"), "{list}");
    source.faults().heal();
    tell(mount.path(), "-r -T from to").unwrap();
    assert_eq!(assert_all_whole(&store.join("to"), &[1]), 18);
}
