//! The daemon is killed while it copies.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::*;
use crate::support::{Dice, FaultySource, Mount, Need, On, Scratch, require, soak, write_content};

const SIZE: u64 = 16 << 20;

/// Starts a copy, kills the server after `delay`, and waits until the mount is gone. Whether the kill
/// fell into the copy: bytes had been moved, and it was not answered.
fn killed(mut mount: Mount, line: &str, delay: Duration) -> bool {
    let copy = telling(mount.path(), line);
    std::thread::sleep(delay);
    let had_begun = moved(&mount) > 0;
    mount.signal_server(Signal::KILL);
    let answer = copy.join().unwrap();
    assert!(mount.wait(PATIENCE).is_some(), "the guardian stays");
    had_begun && answer.is_err()
}

/// What stands under the name is what stood there, or the whole copy.
#[track_caller]
fn assert_whole_or_absent(path: &Path, old: bool) -> bool {
    if !old && !path.exists() {
        return false;
    }
    let bytes = read_file(path);
    if old && bytes == b"old" {
        return false;
    }
    assert_file(path, 1, SIZE);
    true
}

#[test]
fn a_killed_daemon_leaves_the_old_or_the_new_and_what_it_leaves_hidden_goes() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    let at = source.path();
    write_content(&at.join("f"), 1, SIZE);
    source.file("small", b"small");
    // How long a copy takes here and now, so that the kills fall into it.
    let whole = {
        let mount = Mount::of(at).start();
        let start = Instant::now();
        tell(mount.path(), "f to").unwrap();
        start.elapsed()
    };
    fs::remove_file(at.join("to")).unwrap();
    let mut dice = Dice::new(4);
    let mut within = 0;
    for round in 0..soak(200).max(4) {
        let old = round % 2 == 1;
        if old {
            source.file("to", b"old");
        }
        let mut delay = whole.mul_f64(dice.below(1200) as f64 / 1000.0);
        let options = ["", "--method=map-map ", "--sync ", "--limit=16M "][round as usize % 4];
        if options.contains("limit") {
            // So slow that it has begun, and is far from done.
            delay += whole / 2;
        }
        let met = killed(Mount::of(at).start(), &format!("{options}f to"), delay);
        assert_whole_or_absent(&at.join("to"), old);
        within += u64::from(met);
        let _ = fs::remove_file(at.join("to"));
        // Where the file system has files without a name, a kill finds one with a name only
        // between its link and its rename.
        if names(at).len() > 2 {
            tell(Mount::of(at).start().path(), "small small2").unwrap();
            fs::remove_file(at.join("small2")).unwrap();
            assert_eq!(names(at), ["f", "small"], "round {round}");
        }
    }
    println!("{within} kills fell into a copy");
    assert!(within > 0, "no kill fell into a copy");
}

#[test]
fn a_temporary_with_a_name_goes_with_the_next_copy_or_mount() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    // It knows no files without a name, and its locks are not known to be everybody's.
    let source = FaultySource::new();
    let store = source.store().to_owned();
    write_content(&store.join("f"), 1, SIZE);
    fs::write(store.join("small"), "small").unwrap();
    fs::create_dir(store.join("d")).unwrap();
    let hidden = |dir: &Path| {
        let all = names(dir);
        all.iter()
            .filter(|name| name.starts_with(".corfs-"))
            .count()
    };
    for to in ["to", "d/to"] {
        let dir = store.join(to).parent().unwrap().to_owned();
        for old in [false, true] {
            if old {
                fs::write(store.join(to), "old").unwrap();
            }
            source
                .faults()
                .delay(On::Write, None, Duration::from_millis(20));
            let mut mount = Mount::of(source.path()).start();
            let copy = telling(mount.path(), &format!("--method=map-write f {to}"));
            wait_until("a temporary file grows", PATIENCE, || hidden(&dir) == 1);
            // A job of another daemon takes it for what it is: a living one's.
            let other = Mount::of(source.path()).start();
            tell(other.path(), &format!("small {to}2")).unwrap();
            assert_eq!(hidden(&dir), 1, "a living one's temporary was removed");
            drop(other);
            mount.signal_server(Signal::KILL);
            let _ = copy.join().unwrap();
            assert!(mount.wait(PATIENCE).is_some());
            source.faults().heal();
            assert_eq!(hidden(&dir), 1);
            assert!(!assert_whole_or_absent(&store.join(to), old));

            let next = Mount::of(source.path()).start();
            if dir == store {
                wait_until("the mount removes what is left", PATIENCE, || {
                    hidden(&dir) == 0
                });
            } else {
                tell(next.path(), &format!("small {to}2")).unwrap();
            }
            assert_eq!(hidden(&dir), 0);
        }
    }
}
