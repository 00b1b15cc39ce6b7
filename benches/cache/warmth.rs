//! What is read again, and what is read when the source is not there.

use std::time::Duration;

use crate::figures::{Verdicts, median, rate};
use crate::support::{FaultySource, Mount, On, Scratch, drop_caches, is_root, set_owner};
use crate::{LATENCY, Sizes, cached, old_file, readers};

/// Random reads of a file that lies at hand are so fast that there must be more of them.
const MANY: u64 = 10;

/// The second time, after a restart, with the source away: against a local file.
pub(crate) fn second(sizes: &Sizes, verdicts: &mut Verdicts) {
    let source = FaultySource::new();
    old_file(&source, "file", sizes.file);
    let scratch = Scratch::new();
    let cache = scratch.dir("cache");
    let native = scratch.path().join("native");
    std::fs::copy(source.store().join("file"), &native).expect("copy");
    {
        let mount = cached(source.path(), &cache).start();
        readers::through(&mount.path().join("file"));
        assert!(mount.finish().success());
    }
    let gone = source.path().to_owned();
    source.die();
    let mount = match cached(&gone, &cache).try_start() {
        Ok(mount) => mount,
        Err(words) => return verdicts.left_out("second read, the source away", &words),
    };
    let file = mount.path().join("file");
    let [(local, local_random), (ours, our_random)] = taking_turns(sizes, &[&native, &file]);
    told(sizes, "a local file", local, "through the cache", ours);
    verdicts.at_least("second read of native, sequential", local / ours, 0.95);
    verdicts.at_least(
        "second read of native, random 4 KiB",
        local_random / our_random,
        0.95,
    );
    drop(mount);
    unprivileged(sizes, verdicts);
}

/// An ordinary user's cache against an ordinary user's mirror of the same local file.
fn unprivileged(sizes: &Sizes, verdicts: &mut Verdicts) {
    const USER: u32 = 65_534;
    debug_assert!(is_root());
    let scratch = Scratch::new();
    let (tree, cache) = (scratch.dir("tree"), scratch.dir("cache"));
    let path = tree.join("file");
    crate::support::write_content(&path, 1, sizes.file);
    crate::support::age(&path);
    for path in [&tree, &cache, &path] {
        set_owner(path, USER, USER);
    }
    let both = Mount::of(&tree)
        .as_user(USER, USER)
        .opt("allow_other")
        .try_start()
        .and_then(|mirror| {
            let cached = cached(&tree, &cache).as_user(USER, USER).opt("racy=0");
            Ok((mirror, cached.opt("allow_other").try_start()?))
        });
    let (mirror, cached) = match both {
        Ok(both) => both,
        Err(words) => return verdicts.left_out("second read, unprivileged", &words),
    };
    let (mirrored, file) = (mirror.path().join("file"), cached.path().join("file"));
    readers::through(&file);
    let [(local, _), (ours, _)] = taking_turns(sizes, &[&mirrored, &file]);
    told(sizes, "the mirror", local, "through the cache", ours);
    verdicts.at_least(
        "second read of the mirror's, unprivileged",
        local / ours,
        0.85,
    );
}

/// Medians of both, in seconds: sequential reading, and one random read.
fn taking_turns(sizes: &Sizes, files: &[&std::path::Path; 2]) -> [(f64, f64); 2] {
    let mut times: [(Vec<Duration>, Vec<Duration>); 2] = Default::default();
    for round in 0..sizes.rounds {
        for turn in [round % 2, 1 - round % 2] {
            let (sequential, random) = &mut times[turn];
            drop_caches();
            sequential.push(readers::through(files[turn]));
            drop_caches();
            let reads = sizes.reads * MANY;
            random.push(
                readers::anywhere(files[turn], round as u64, reads)
                    .iter()
                    .sum(),
            );
        }
    }
    times.map(|(mut sequential, mut random)| (median(&mut sequential), median(&mut random)))
}

fn told(sizes: &Sizes, who: &str, theirs: f64, what: &str, ours: f64) {
    let (theirs, ours) = (rate(sizes.file, theirs), rate(sizes.file, ours));
    println!("  {who} {theirs:.0} MB/s, {what} {ours:.0} MB/s");
}

/// Small reads anywhere in a file of 10 GiB: never more than a block each, and nothing the second
/// time.
pub(crate) fn random(sizes: &Sizes, verdicts: &mut Verdicts) {
    const BLOCK: u64 = 1 << 20;
    let source = FaultySource::new();
    let path = source.store().join("file");
    let file = std::fs::File::create(&path).expect("create");
    file.set_len(10 << 30).expect("a sparse file");
    crate::support::age(&path);
    source.faults().show_older(Duration::from_secs(2 * 86_400));
    source.faults().delay(On::Read, None, LATENCY);
    let scratch = Scratch::new();
    let mount = cached(source.path(), &scratch.dir("cache")).start();
    let file = mount.path().join("file");
    source.faults().take_asked();
    readers::anywhere(&file, 7, sizes.reads);
    let asked = source.faults().take_asked();
    let blocks = asked.bytes as f64 / BLOCK as f64;
    verdicts.at_most(
        "blocks asked a random miss",
        blocks / sizes.reads as f64,
        1.0,
    );
    drop_caches();
    readers::anywhere(&file, 7, sizes.reads);
    let again = source.faults().take_asked();
    verdicts.at_most("bytes asked the second time", again.bytes as f64, 0.0);
}

/// What is in the cache is read while the source hangs, and others wait for it.
pub(crate) fn hang(sizes: &Sizes, verdicts: &mut Verdicts) {
    let source = FaultySource::new();
    old_file(&source, "file", sizes.file / 4);
    old_file(&source, "other", 8 << 20);
    let scratch = Scratch::new();
    let mount = cached(source.path(), &scratch.dir("cache"))
        .opt("passthrough=never")
        .start();
    let (file, other) = (mount.path().join("file"), mount.path().join("other"));
    readers::through(&file);
    let held = std::fs::File::open(&other).expect("open");
    source.faults().hang(On::Read, None);
    let mut times = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut byte = [0];
            // It gets its error by the deadline.
            let _ = std::os::unix::fs::FileExt::read_at(&held, &mut byte, 0);
        });
        source.faults().await_hanging(On::Read, 1);
        for round in 0..sizes.rounds {
            drop_caches();
            times.extend(readers::anywhere(&file, round as u64, sizes.reads));
        }
        source.faults().heal();
    });
    times.sort();
    let p99 = times[times.len() * 99 / 100].as_secs_f64() * 1e3;
    verdicts.at_most("p99 of cached reads while the source hangs (ms)", p99, 50.0);
}
