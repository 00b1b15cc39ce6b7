//! Readies the next window of a sequential reader, in a thread of its own.

use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock, Weak};

use super::cache::{FileId, WindowCache};

/// Windows that may wait to be readied. More are dropped: whoever waited that long behind a slow
/// source is served sooner by its own read.
const QUEUE: usize = 16;

/// A window that will be asked for soon.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) file: FileId,
    pub(super) fd: Arc<OwnedFd>,
    /// Where the window begins in the file, in bytes.
    pub(super) start: u64,
    /// The file's size in bytes.
    pub(super) size: u64,
}

impl Job {
    pub(super) fn new(file: FileId, fd: Arc<OwnedFd>, start: u64, size: u64) -> Self {
        Self {
            file,
            fd,
            start,
            size,
        }
    }
}

/// The way to the readying thread, which is started at the first job. Without thread (the system
/// has none left) nothing is readied.
#[derive(Debug)]
pub(super) struct Ahead {
    queue: OnceLock<Option<SyncSender<Job>>>,
}

impl Ahead {
    pub(super) const fn new() -> Self {
        Self {
            queue: OnceLock::new(),
        }
    }

    /// Hands a job over and does not wait. If the queue is full it is dropped.
    pub(super) fn ask(&self, cache: &Arc<WindowCache>, job: Job) {
        if let Some(queue) = self.queue.get_or_init(|| start(Arc::downgrade(cache))) {
            let _ = queue.try_send(job);
        }
    }
}

fn start(cache: Weak<WindowCache>) -> Option<SyncSender<Job>> {
    let (queue, jobs) = sync_channel(QUEUE);
    let thread = std::thread::Builder::new().name("corfs-ahead".to_owned());
    match thread.spawn(move || run(&cache, &jobs)) {
        Ok(_) => Some(queue),
        Err(error) => {
            log::warn!("no thread to ready windows ahead of readers: {error}");
            None
        }
    }
}

/// Works until the cache is gone, whose drop closes the queue. The cache is held only while a
/// window is mapped, not while it is populated, which may take as long as the source likes.
fn run(cache: &Weak<WindowCache>, jobs: &Receiver<Job>) {
    while let Ok(job) = jobs.recv() {
        let Some(cache) = cache.upgrade() else {
            return;
        };
        let readied = cache.ready_ahead(&job);
        drop(cache);
        if let Some((window, range)) = readied {
            window.start(&range);
            window.populate_ahead(&range);
        }
    }
}
