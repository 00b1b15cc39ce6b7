//! More than there is room for, and very many.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::figures::{Verdicts, median, rate};
use crate::support::{FaultySource, Loop, Need, Scratch, age, drop_caches, require, write_content};
use crate::{Sizes, cached, old_file, readers};

const READERS: usize = 8;
/// How often the disk is looked at from outside.
const LOOK: Duration = Duration::from_millis(10);

/// Eight readers of three times the budget, against the same with room for all of it.
pub(crate) fn budget(sizes: &Sizes, verdicts: &mut Verdicts) {
    const FILES: u64 = 48;
    let source = FaultySource::new();
    let each = (sizes.file / FILES).next_multiple_of(1 << 20);
    for at in 0..FILES {
        old_file(&source, &format!("{at}"), each);
    }
    source.faults().bandwidth(Some(200 << 20));
    let limit = FILES * each / 3;
    let (mut tight, mut roomy, mut most, mut looks) = (Vec::new(), Vec::new(), 0, 0);
    for _ in 0..sizes.rounds {
        for narrow in [true, false] {
            let scratch = Scratch::new();
            let cache = scratch.dir("cache");
            let mut builder = cached(source.path(), &cache);
            if narrow {
                builder = builder.opt(format!("cache_size={limit}"));
            }
            let mount = builder.start();
            let (time, high, count) = watched(&cache, || read_all(mount.path(), FILES));
            if narrow {
                tight.push(time);
                (most, looks) = (most.max(high), looks + count);
            } else {
                roomy.push(time);
            }
        }
    }
    println!("  looked {looks} times; highest {most} of {limit} bytes");
    verdicts.at_most("budget used at most", most as f64 / limit as f64, 1.0);
    let (tight, roomy) = (median(&mut tight), median(&mut roomy));
    verdicts.at_least("rate under eviction, of that without", roomy / tight, 0.9);
}

fn read_all(mount: &Path, files: u64) {
    std::thread::scope(|scope| {
        for reader in 0..READERS as u64 {
            scope.spawn(move || {
                for at in (0..files).filter(|at| at % READERS as u64 == reader) {
                    readers::through(&mount.join(at.to_string()));
                }
            });
        }
    });
}

/// Runs `work`; the time it took, the most that was seen in `folder`, and how often it was seen.
fn watched(folder: &Path, work: impl FnOnce()) -> (Duration, u64, u64) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let (mut most, mut looks) = (0, 0);
            while !done.load(Ordering::Relaxed) {
                most = most.max(readers::on_disk(folder));
                looks += 1;
                std::thread::sleep(LOOK);
            }
            (most, looks)
        });
        let started = Instant::now();
        work();
        let time = started.elapsed();
        done.store(true, Ordering::Relaxed);
        let (most, looks) = looking.join().expect("the one who looks");
        (time, most, looks)
    })
}

/// Very many small files: the daemon's memory, and what a lookup takes as they become more.
pub(crate) fn small(sizes: &Sizes, verdicts: &mut Verdicts) {
    const FOLDER: u64 = 1000;
    let scratch = Scratch::new();
    let (tree, cache) = (scratch.dir("tree"), scratch.dir("cache"));
    let name = |at: u64| PathBuf::from(format!("{:04}/{at}", at / FOLDER));
    for at in 0..sizes.files {
        let path = tree.join(name(at));
        if at % FOLDER == 0 {
            fs::create_dir(path.parent().expect("a folder")).expect("mkdir");
        }
        fs::write(&path, b"small").expect("write");
        age(&path);
    }
    let mount = cached(&tree, &cache).opt("racy=0").start();
    let mut costs = Vec::new();
    for tenth in 0..10 {
        let started = Instant::now();
        let some = tenth * sizes.files / 10..(tenth + 1) * sizes.files / 10;
        let count = some.end - some.start;
        for at in some {
            fs::read(mount.path().join(name(at))).expect("read");
        }
        costs.push(started.elapsed().as_secs_f64() / count.max(1) as f64);
    }
    let (early, late) = (costs[1], costs[9]);
    println!(
        "  a first read {:.0} us, later {:.0} us",
        early * 1e6,
        late * 1e6
    );
    verdicts.at_most(
        "cost with all files, of that with a tenth",
        late / early,
        1.5,
    );
    let memory = mount.rss().anon as f64 / f64::from(1 << 20);
    let what = format!("memory with {} files (MiB)", sizes.files);
    verdicts.at_most(&what, memory, 256.0);
    assert!(mount.finish().success());
    let started = Instant::now();
    let mount = cached(&tree, &cache).opt("racy=0").start();
    verdicts.at_most("mount again (s)", started.elapsed().as_secs_f64(), 0.5);
    drop(mount);
}

/// A local disk that is slow: a loop device under the block controller's limit.
pub(crate) fn disk(sizes: &Sizes, verdicts: &mut Verdicts) {
    const WHAT: &str = "first read of a slow disk";
    const LIMIT: u64 = 50 << 20;
    if !require(&[Need::Filesystem("ext4")]) {
        return verdicts.left_out(WHAT, "no ext4 on a loop device here");
    }
    let size = sizes.file / 2;
    let disk = Loop::new("ext4", size * 2 + (64 << 20));
    write_content(&disk.path().join("file"), 1, size);
    age(&disk.path().join("file"));
    let Some(slow) = Slow::new(disk.device(), LIMIT) else {
        return verdicts.left_out(WHAT, "no block controller that can be told of a limit");
    };
    let (mut direct, mut through) = (Vec::new(), Vec::new());
    for _ in 0..sizes.rounds {
        drop_caches();
        direct.push(readers::through(&disk.path().join("file")));
        let scratch = Scratch::new();
        let mount = cached(disk.path(), &scratch.dir("cache"))
            .opt("racy=0")
            .start();
        drop_caches();
        through.push(readers::through(&mount.path().join("file")));
    }
    drop(slow);
    let (direct, through) = (median(&mut direct), median(&mut through));
    let (theirs, ours) = (rate(size, direct), rate(size, through));
    println!("  the disk itself {theirs:.0} MB/s, through an empty cache {ours:.0} MB/s");
    verdicts.at_least(WHAT, direct / through, 0.9);
}

/// A control group whose members read slowly from one device; this process and those it starts
/// are in it until the end.
struct Slow {
    group: PathBuf,
    parent: PathBuf,
}

impl Slow {
    fn new(device: &Path, limit: u64) -> Option<Self> {
        use std::os::unix::fs::MetadataExt;
        let number = fs::metadata(device).ok()?.rdev();
        let (major, minor) = (libc::major(number), libc::minor(number));
        let old = (
            "/sys/fs/cgroup/blkio",
            "blkio.throttle.read_bps_device",
            format!("{major}:{minor} {limit}"),
        );
        let new = (
            "/sys/fs/cgroup",
            "io.max",
            format!("{major}:{minor} rbps={limit}"),
        );
        [old, new].into_iter().find_map(|(parent, file, words)| {
            let this = Self {
                group: Path::new(parent).join(format!("corfs-bench-{}", std::process::id())),
                parent: parent.into(),
            };
            fs::create_dir(&this.group).ok()?;
            let told = fs::write(this.group.join(file), words).and_then(|()| {
                fs::write(
                    this.group.join("cgroup.procs"),
                    std::process::id().to_string(),
                )
            });
            told.ok().map(|()| this)
        })
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        let _ = fs::write(
            self.parent.join("cgroup.procs"),
            std::process::id().to_string(),
        );
        let _ = fs::remove_dir(&self.group);
    }
}
