//! The store without a mount: processes that read through it as the mirror does, and that can be
//! killed at any point.

use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use corfs::cache::{
    BLOCKS, Entry, Identity, Ready, Share, SourceClock, SourceKey, Store, StoreOptions, Verify,
};
use corfs::observe::Metrics;
use corfs::sys::{Errno, Fail};

use super::*;

/// What a reading process is told, in one environment variable.
const WORDS: &str = "CORFS_IT_DIRECT";

/// Who reads, from where, and how much.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    pub(super) cache: PathBuf,
    pub(super) source: PathBuf,
    pub(super) files: u64,
    pub(super) size: u64,
    pub(super) limit: u64,
    /// Which store.
    pub(super) id: u64,
    pub(super) seed: u64,
    pub(super) reads: u64,
}

impl Reading {
    /// Of a tree, through a cache of that limit.
    pub(super) fn of(tree: &Tree, cache: &Path, limit: u64) -> Self {
        Self {
            cache: cache.to_owned(),
            source: tree.path.clone(),
            files: tree.files,
            size: tree.size,
            limit,
            id: 0,
            seed: 1,
            reads: u64::MAX,
        }
    }

    /// A process that does it; it ends well when all was right.
    pub(super) fn spawn(&self) -> Child {
        let words = format!(
            "{}\n{}\n{}\n{}\n{}\n{}\n{}\n{}",
            self.cache.display(),
            self.source.display(),
            self.files,
            self.size,
            self.limit,
            self.id,
            self.seed,
            self.reads
        );
        let this = std::env::current_exe().expect("this program");
        Command::new(this)
            .args(["--exact", "cached::direct::what_is_read_is_right"])
            .env(WORDS, words)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("a reading process")
    }

    fn told() -> Option<Self> {
        let words = std::env::var(WORDS).ok()?;
        let mut lines = words.lines();
        let mut word = || lines.next().expect("a line");
        let (cache, source) = (word().into(), word().into());
        let mut number = || word().parse().expect("a number");
        Some(Self {
            cache,
            source,
            files: number(),
            size: number(),
            limit: number(),
            id: number(),
            seed: number(),
            reads: number(),
        })
    }

    fn tree(&self) -> Tree {
        Tree {
            path: self.source.clone(),
            files: self.files,
            size: self.size,
        }
    }

    /// Reads anywhere with several threads, and ends the store cleanly; panics at a wrong byte.
    pub(super) fn run(&self) {
        let direct = Direct::open(&self.cache, self.id, self.limit, Verify::Unclean);
        let tree = self.tree();
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let (direct, tree) = (&direct, &tree);
                scope.spawn(move || {
                    let mut dice = Dice::new(self.seed * 10 + thread);
                    for _ in 0..self.reads {
                        direct.read_somewhere(tree, &mut dice);
                    }
                });
            }
        });
        direct.store.close();
    }
}

/// An open store.
pub(super) struct Direct {
    pub(super) store: Arc<Store>,
    pub(super) metrics: Arc<Metrics>,
}

impl Direct {
    #[track_caller]
    pub(super) fn open(cache: &Path, id: u64, limit: u64, verify: Verify) -> Self {
        let source = SourceKey {
            path: "/".into(),
            key: format!("id:direct-{id}"),
            about: String::new(),
            stable_inodes: false,
            clock: SourceClock::Ours,
        };
        let mut options = StoreOptions::new(cache.to_owned(), source);
        options.block = *BLOCKS.start();
        options.racy = Duration::ZERO;
        options.size = Share::Bytes(limit);
        options.free = Share::Bytes(0);
        options.verify = verify;
        let metrics = Arc::new(Metrics::new());
        let store = Store::open(&options, metrics.clone()).unwrap_or_else(|fail| panic!("{fail}"));
        store.start().unwrap_or_else(|fail| panic!("{fail}"));
        Self { store, metrics }
    }

    /// Reads as [`Tree::read_somewhere`] does.
    #[track_caller]
    pub(super) fn read_somewhere(&self, tree: &Tree, dice: &mut Dice) {
        let at = dice.below(tree.files);
        let offset = dice.below(tree.len(at));
        let len = (dice.below(3 * BLOCK) + 1).min(tree.len(at) - offset);
        let bytes = self.read(tree, at, offset, len);
        assert_content(at, offset, &bytes);
    }

    /// Reads all of all files; panics when a byte is wrong.
    #[track_caller]
    pub(super) fn compare(&self, tree: &Tree) {
        for at in 0..tree.files {
            let bytes = self.read(tree, at, 0, tree.len(at));
            assert_content(at, 0, &bytes);
        }
    }

    /// Those bytes of a file, as the mirror reads them.
    fn read(&self, tree: &Tree, at: u64, offset: u64, len: u64) -> Vec<u8> {
        let path = name(at);
        let source = Arc::new(File::open(tree.path.join(&path)).expect("open"));
        let identity = identity_of(&source);
        let mut bytes = vec![0xee; len as usize];
        let Some(entry) = self.store.entry(path.as_bytes(), &identity) else {
            source.read_exact_at(&mut bytes, offset).expect("read");
            return bytes;
        };
        let size = entry.block_size();
        for block in offset / size..(offset + len).div_ceil(size) {
            let start = (block * size).max(offset);
            let end = ((block + 1) * size).min(offset + len);
            let part = &mut bytes[(start - offset) as usize..(end - offset) as usize];
            read_block(&entry, block, start, part, &source);
        }
        bytes
    }
}

fn identity_of(source: &File) -> Identity {
    Identity::of(&rustix::fs::fstat(source).expect("fstat"), false)
}

/// A part of one block, that begins at `start`.
fn read_block(entry: &Arc<Entry>, block: u64, start: u64, part: &mut [u8], source: &Arc<File>) {
    let deadline = Instant::now() + PATIENCE;
    let range = start..start + part.len() as u64;
    let ready = match entry.ready(range.clone()) {
        Ready::Suspect if entry.check(range) => Ready::All,
        ready => ready,
    };
    if ready == Ready::All {
        let data = entry.data();
        let count = rustix::io::pread(data.as_fd(), &mut *part, start);
        assert_eq!(count, Ok(part.len()), "what is ready is there");
        return;
    }
    if ready == Ready::Suspect
        && let Some(block) = entry.verified(block, deadline)
    {
        let from = (start - block.offset()) as usize;
        return part.copy_from_slice(&block.bytes()[from..from + part.len()]);
    }
    let (reading, checking, known) = (source.clone(), source.clone(), *entry.identity());
    let offset = block * entry.block_size();
    let read = move |buffer: &mut [u8]| {
        let count = reading.read_at(buffer, offset);
        count.map_err(|_| Fail::new(Errno::IO, "read"))
    };
    let same = move || Ok(identity_of(&checking) == known);
    match entry.fill(block, deadline, read, same) {
        Ok(block) => {
            let from = (start - block.offset()) as usize;
            part.copy_from_slice(&block.bytes()[from..from + part.len()]);
        }
        Err(fail) => {
            assert_eq!(fail.errno, Errno::BUSY, "{fail}");
            source.read_exact_at(part, start).expect("read");
        }
    }
}

/// As long as nobody says otherwise this is a test of its own; a process that is told what to read
/// reads that.
#[test]
fn what_is_read_is_right() {
    if let Some(reading) = Reading::told() {
        return reading.run();
    }
    let scratch = Scratch::new();
    let tree = Tree::new(&scratch.dir("source"), 8, 4 * BLOCK);
    let mut reading = Reading::of(&tree, &cache_folder(&scratch, "cache"), tree.bytes() / 2);
    reading.reads = soak(3000);
    reading.run();
    let used = disk_usage(&reading.cache.join("v1"));
    assert!(used <= reading.limit, "{used} of {}", reading.limit);
    // Four whole files would fit; how many blocks of those that stay were read is left to chance.
    assert!(used > 2 * BLOCK, "{used} of {}: it is used", reading.limit);
}
