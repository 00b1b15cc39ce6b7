//! `.corfs/oplog`: a line for each operation, for those who read it now.
//!
//! While nobody does, an operation does no more for it than two relaxed loads, three where bytes are
//! moved, and a look at the thread's own line: so the code says, it has not been measured. A reader
//! that finds nothing waits without a thread: its reply is parked, and one thread, which lives as long
//! as there are readers, answers it when there are lines, when it is told to stop, or at the end.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fuser::{Errno, FileHandle, INodeNo, ReplyData, Request};
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::shared::Shared;
use crate::mirror::{InodeTable, Mirror, NodeId, ROOT};
use crate::observe::Op;
use crate::observe::oplog::{Entry, Stream};
use crate::sys::watch::CallerWatch;
use crate::sys::{self, Fail};

/// How many may read the log of one mount at once.
const MOST_READERS: usize = 16;
/// How often it is seen whether a waiting reader was told to stop.
const LOOK: Duration = Duration::from_millis(50);
/// The deepest path that is told whole; a name may be moved while its path is found.
const DEEPEST: usize = 4096;

// ---------------------------------------------------------------------------------------------
// What is noted of an operation

/// What was asked for, as far as the log tells it.
#[derive(Debug, Default)]
pub(super) struct Asked {
    uid: u32,
    pid: u32,
    name: Option<OsString>,
    new_parent: Option<NodeId>,
    to: Option<NodeId>,
    word: Option<OsString>,
    /// Where it is, as it was before: a link gives an inode another last name.
    path: Option<Vec<u8>>,
    other: Option<Vec<u8>>,
    pub(super) offset: Option<u64>,
    pub(super) size: Option<u64>,
    pub(super) mode: Option<u32>,
    pub(super) flags: Option<u32>,
    handle: Option<u64>,
    to_handle: Option<u64>,
    to_offset: Option<u64>,
}

impl Asked {
    /// It is about a name of the inode, not the inode.
    pub(super) fn name(&mut self, name: &OsStr) {
        self.name = Some(name.to_owned());
    }

    /// Where a name is to be made, too.
    pub(super) fn new_name(&mut self, parent: INodeNo, name: &OsStr) {
        self.new_parent = Some(parent.0);
        self.word = Some(name.to_owned());
    }

    /// A target, or the name of an extended attribute.
    pub(super) fn word(&mut self, word: &OsStr) {
        self.word = Some(word.to_owned());
    }

    /// Bytes from there on.
    pub(super) fn range(&mut self, offset: u64, size: u64) {
        (self.offset, self.size) = (Some(offset), Some(size));
    }

    /// It is about an open file.
    pub(super) fn by(&mut self, handle: FileHandle) {
        self.handle = Some(handle.0);
    }

    /// Another open file, and where in it bytes are to go.
    pub(super) fn to(&mut self, node: INodeNo, handle: FileHandle, offset: u64) {
        self.to = Some(node.0);
        (self.to_handle, self.to_offset) = (Some(handle.0), Some(offset));
    }

    /// The mode of what is to be made, as the kernel makes it: the mount is told the mask apart. Where
    /// a default ACL takes the mask's place, that stands in no log.
    pub(super) fn made(&mut self, mode: u32, umask: u32) {
        self.mode = Some(mode & !umask);
    }
}

/// One operation that is noted.
#[derive(Debug)]
struct Operation {
    oplog: Arc<OpLog>,
    op: Op,
    began: Instant,
    asked: Asked,
}

/// What is to be told of an operation, if it was noted: once, by whoever answers it, and before.
#[derive(Clone, Debug, Default)]
pub(super) struct Line {
    of: Option<Arc<Operation>>,
    end: End,
}

/// What an operation ended with, as far as is known.
#[derive(Clone, Copy, Debug, Default)]
struct End {
    /// 0 when it went well.
    errno: i32,
    /// What an open gave.
    handle: Option<u64>,
    bytes: Option<u64>,
}

impl End {
    const NONE: Self = Self {
        errno: 0,
        handle: None,
        bytes: None,
    };
}

impl Line {
    const NONE: Self = Self {
        of: None,
        end: End::NONE,
    };

    pub(super) fn tell(self) {
        if let Some(operation) = &self.of
            && operation.oplog.is_read()
        {
            operation.oplog.push(&operation.line(self.end));
        }
    }

    /// An open file was had, which is known by that number from now on.
    pub(super) fn opened(mut self, handle: u64) -> Self {
        self.end.handle = Some(handle);
        self
    }

    /// Tells that it ended so, whatever the work ended with.
    pub(super) fn tell_as(self, errno: Errno) {
        let end = End {
            errno: errno.into(),
            ..End::NONE
        };
        Self { end, ..self }.tell();
    }
}

thread_local! {
    /// Of the operation that this thread works on.
    static LINE: RefCell<Line> = const { RefCell::new(Line::NONE) };
}

/// Until it goes, this thread works on an operation that is noted.
#[derive(Debug)]
pub(super) struct Noted(());

impl Drop for Noted {
    fn drop(&mut self) {
        LINE.take();
    }
}

/// The line of what this thread works on, for somebody else who may answer it first.
pub(super) fn noted() -> Line {
    LINE.with_borrow(Line::clone)
}

/// Takes the line of what this thread works on, which is answered, or will be by somebody else.
pub(super) fn take_noted() -> Line {
    LINE.take()
}

/// Takes along what this thread works on, for another thread that will end it.
pub(super) fn carried<T>(job: impl FnOnce() -> T) -> impl FnOnce() -> T {
    let line = LINE.take();
    move || {
        let _noted = line.of.is_some().then(|| {
            LINE.set(line);
            Noted(())
        });
        job()
    }
}

impl Shared {
    /// Notes what is asked for, while somebody reads the log; `more` adds to who and on what.
    /// Control files are not told of: the log would tell of its own readers.
    #[inline]
    pub(super) fn note(
        &self,
        op: Op,
        request: &Request,
        node: INodeNo,
        more: impl FnOnce(&mut Asked),
    ) -> Option<Noted> {
        if !self.oplog.is_read() || InodeTable::is_virtual(node.0) {
            return None;
        }
        // Of a name of a control file nobody knows yet that it is one: `ControlFiles::is_ours`.
        let mut asked = Asked {
            uid: request.uid(),
            pid: request.pid(),
            ..Asked::default()
        };
        more(&mut asked);
        if asked.to.is_some_and(InodeTable::is_virtual) {
            return None;
        }
        asked.path = path(&self.mirror, node.0, asked.name.as_deref());
        asked.other = match (asked.new_parent, asked.to, &asked.word) {
            (Some(parent), _, Some(name)) => path(&self.mirror, parent, Some(name)),
            (_, Some(to), _) => path(&self.mirror, to, None),
            (_, _, word) => word.as_ref().map(|word| word.as_bytes().to_vec()),
        };
        let operation = Operation {
            oplog: self.oplog.clone(),
            op,
            began: Instant::now(),
            asked,
        };
        LINE.set(Line {
            of: Some(Arc::new(operation)),
            end: End::NONE,
        });
        Some(Noted(()))
    }

    /// The work of this thread has ended so, and is to be answered.
    #[inline]
    pub(super) fn ended(&self, errno: i32) {
        if self.oplog.is_read() {
            LINE.with_borrow_mut(|line| line.end.errno = errno);
        }
    }

    /// The work of this thread has moved so many bytes, and is to be answered.
    #[inline]
    pub(super) fn moved(&self, bytes: u64) {
        if self.oplog.is_read() {
            LINE.with_borrow_mut(|line| line.end.bytes = Some(bytes));
        }
    }
}

impl Operation {
    fn line(&self, end: End) -> String {
        let (asked, took) = (&self.asked, self.began.elapsed());
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let entry = Entry {
            time: now.unwrap_or_default().saturating_sub(took),
            op: self.op,
            path: asked.path.clone(),
            other: asked.other.clone(),
            offset: asked.offset,
            size: asked.size,
            mode: asked.mode,
            flags: asked.flags,
            errno: end.errno,
            took,
            uid: asked.uid,
            pid: asked.pid,
            handle: asked.handle.or(end.handle),
            bytes: end.bytes,
            to_handle: asked.to_handle,
            to_offset: asked.to_offset,
        };
        entry.line()
    }
}

/// Where an inode, or a name in it, was last seen, from the root of the mount; None when it has lost
/// its last name there, which may be another's by now.
fn path(mirror: &Mirror, mut node: NodeId, name: Option<&OsStr>) -> Option<Vec<u8>> {
    let mut names: Vec<OsString> = name.map(OsStr::to_owned).into_iter().collect();
    while node != ROOT {
        let (parent, name) = mirror.table().name_of(node)?;
        names.push(name);
        node = parent;
        if names.len() > DEEPEST {
            return None;
        }
    }
    names.reverse();
    let parts: Vec<&[u8]> = names.iter().map(|name| name.as_bytes()).collect();
    Some(parts.join(&b'/'))
}

// ---------------------------------------------------------------------------------------------
// Those who read

/// The readers of the log, and what they wait for.
#[derive(Debug, Default)]
pub(super) struct OpLog {
    read: AtomicBool,
    /// A leaf.
    table: Mutex<Table>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Table {
    readers: HashMap<u64, Reader>,
    /// The mount is to go: nobody waits any more.
    ended: bool,
    /// There is a thread that answers.
    served: bool,
}

#[derive(Debug, Default)]
struct Reader {
    stream: Stream,
    waiting: Option<Waiting>,
    patient: bool,
}

#[derive(Debug)]
struct Waiting {
    reply: ReplyData,
    most: usize,
    watch: CallerWatch,
}

impl OpLog {
    /// Whether anybody reads.
    #[inline]
    fn is_read(&self) -> bool {
        self.read.load(Ordering::Relaxed)
    }

    /// A new reader, by the number of its handle.
    ///
    /// # Errors
    /// EBUSY when there are too many; EAGAIN when no thread is to be had.
    pub(super) fn open(self: &Arc<Self>, handle: u64, flags: i32) -> sys::Result<()> {
        let mut table = self.table.lock();
        if table.readers.len() >= MOST_READERS {
            return Err(Fail::new(sys::Errno::BUSY, "open the log of operations"));
        }
        if !table.served {
            let own = self.clone();
            std::thread::Builder::new()
                .name("oplog".into())
                .stack_size(256 << 10)
                .spawn(move || own.serve())
                .map_err(|_| Fail::new(sys::Errno::AGAIN, "start a thread for the log"))?;
            table.served = true;
        }
        let reader = Reader {
            patient: flags & libc::O_NONBLOCK == 0,
            ..Reader::default()
        };
        table.readers.insert(handle, reader);
        self.read.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Answers a read, now or later; never by waiting.
    pub(super) fn read(&self, request: &Request, handle: u64, most: usize, reply: ReplyData) {
        let watch = CallerWatch::new(request.pid());
        let mut table = self.table.lock();
        let ended = table.ended;
        let Some(reader) = table.readers.get_mut(&handle) else {
            drop(table);
            return reply.error(Errno::EBADF);
        };
        if !reader.stream.is_empty() || ended {
            let text = reader.stream.take(most);
            drop(table);
            return reply.data(&text);
        }
        if reader.waiting.is_some() || !reader.patient {
            // One reader waits once; whoever shares its descriptor may ask again.
            drop(table);
            return reply.error(Errno::EAGAIN);
        }
        reader.waiting = Some(Waiting { reply, most, watch });
    }

    /// A reader has gone.
    pub(super) fn release(&self, handle: u64) {
        let mut table = self.table.lock();
        if table.readers.remove(&handle).is_some() {
            self.read
                .store(!table.readers.is_empty(), Ordering::Relaxed);
            self.changed.notify_one();
        }
    }

    /// From now on readers find the end where they would wait.
    pub(super) fn end(&self) {
        self.table.lock().ended = true;
        self.changed.notify_one();
    }

    fn push(&self, line: &str) {
        let mut table = self.table.lock();
        let mut awaited = false;
        for reader in table.readers.values_mut() {
            reader.stream.push(line);
            awaited |= reader.waiting.is_some();
        }
        if awaited {
            self.changed.notify_one();
        }
    }

    /// The thread that answers those who wait, as long as there are readers.
    fn serve(&self) {
        let mut table = self.table.lock();
        let mut looked = Instant::now();
        while !table.readers.is_empty() {
            self.changed.wait_for(&mut table, LOOK);
            let look = looked.elapsed() >= LOOK;
            if look {
                looked = Instant::now();
            }
            let due = table.due(look);
            // The kernel copies the answer, and a look into /proc may wait: not under the lock.
            MutexGuard::unlocked(&mut table, || {
                for (waiting, text) in due {
                    match text {
                        Some(text) => waiting.reply.data(&text),
                        None => waiting.reply.error(Errno::EINTR),
                    }
                }
            });
        }
        table.served = false;
    }
}

impl Table {
    /// Those who are to be answered, with the text that they get; without any, they were told to
    /// stop.
    fn due(&mut self, look: bool) -> Vec<(Waiting, Option<Vec<u8>>)> {
        let ended = self.ended;
        let mut due = Vec::new();
        for reader in self.readers.values_mut() {
            let text = !reader.stream.is_empty() || ended;
            let told =
                |waiting: &mut Waiting| text || look && waiting.watch.interrupted().is_some();
            if let Some(waiting) = reader.waiting.take_if(told) {
                let text = text.then(|| reader.stream.take(waiting.most));
                due.push((waiting, text));
            }
        }
        due
    }
}
