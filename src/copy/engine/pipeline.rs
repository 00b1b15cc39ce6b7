//! One thread reads ahead of another that writes, in order: what is short is a beginning.

use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread::Builder;

use crate::sys::{Aligned, Errno, OrFail, Result};

/// How far a range got, and why not to its end.
pub(super) type Moved = (u64, Option<crate::sys::Fail>);

/// Bytes of one read and one write (see `moving::mapped`).
const UNIT: u64 = 512 << 10;
/// Buffers that wait to be written.
const AHEAD: usize = 2;
/// One is being written, one being read: so one is spare whenever the reader waits for one, also after
/// the writer has kept one and given up.
const BUFFERS: usize = AHEAD + 2;
/// Bytes of the reader's stack.
const STACK: usize = 128 << 10;

/// What was read, and how many bytes of it there are.
type Filled = (Aligned, Result<usize>);

/// Reads `data` of `from`, and has `write` put it where it belongs. Less than all, without a reason,
/// is the end of the source. None, with nothing done, when there can be no thread.
pub(super) fn run(
    from: BorrowedFd<'_>,
    data: Range<u64>,
    write: impl Fn(&[u8], u64) -> Result<()>,
) -> Option<Moved> {
    let (send, filled) = sync_channel(AHEAD);
    let (give_back, spare) = channel();
    let mut at = data.start;
    std::thread::scope(|scope| {
        let reader = Builder::new().name("copy-reader".into()).stack_size(STACK);
        let read = move || read_ahead(from, data, &send, &spare);
        reader.spawn_scoped(scope, read).ok()?;
        // The reader ends when nobody is there any more to take what it reads.
        for (buffer, read) in filled {
            let written = read.and_then(|count| {
                write(&buffer.held()[..count], at)?;
                Ok(count as u64)
            });
            match written {
                Ok(0) => break,
                Ok(count) => at += count,
                Err(fail) => return Some((at, Some(fail))),
            }
            let _ = give_back.send(buffer);
        }
        Some((at, None))
    })
}

fn read_ahead(
    from: BorrowedFd<'_>,
    data: Range<u64>,
    send: &SyncSender<Filled>,
    spare: &Receiver<Aligned>,
) {
    let (mut at, mut made) = (data.start, 0);
    while at < data.end {
        let mut buffer = if made < BUFFERS {
            made += 1;
            Aligned::default()
        } else if let Ok(buffer) = spare.recv() {
            buffer
        } else {
            return;
        };
        let len = (data.end - at).min(UNIT) as usize;
        let read = buffer.room(len).and_then(|room| read_once(from, room, at));
        let count = read.as_ref().map_or(0, |count| *count as u64);
        if send.send((buffer, read)).is_err() || count == 0 {
            return;
        }
        at += count;
    }
}

fn read_once(from: BorrowedFd<'_>, room: &mut [u8], at: u64) -> Result<usize> {
    loop {
        match rustix::io::pread(from, &mut *room, at) {
            Err(Errno::INTR) => {}
            read => return read.or_fail("pread"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::io::Write;
    use std::os::fd::AsFd;

    use super::*;
    use crate::sys::Fail;

    fn source(size: usize) -> (std::fs::File, Vec<u8>) {
        let bytes: Vec<u8> = (0..size).map(|at| (at / 7 % 251) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        (file, bytes)
    }

    #[test]
    fn all_comes_in_order_and_the_end_of_the_source_is_no_error() {
        let size = 20 * UNIT as usize + 12_345;
        let (file, bytes) = source(size);
        for (range, end) in [
            (0..size as u64, size as u64),
            (777..5 * UNIT + 3, 5 * UNIT + 3),
            (3..size as u64 + UNIT, size as u64),
        ] {
            let got = RefCell::new(Vec::new());
            let write = |bytes: &[u8], at: u64| {
                assert_eq!(at, range.start + got.borrow().len() as u64);
                got.borrow_mut().extend_from_slice(bytes);
                Ok(())
            };
            let (at, fail) = run(file.as_fd(), range.clone(), write).unwrap();
            assert!(fail.is_none());
            assert_eq!(at, end);
            assert!(*got.borrow() == bytes[range.start as usize..end as usize]);
        }
    }

    #[test]
    fn what_cannot_be_written_ends_it_there() {
        let (file, _) = source(20 * UNIT as usize);
        let left = Cell::new(3);
        let write = |_: &[u8], _| match left.replace(left.get() - 1) {
            0 => Err(Fail::new(Errno::NOSPC, "pwrite")),
            _ => Ok(()),
        };
        let (at, fail) = run(file.as_fd(), 0..20 * UNIT, write).unwrap();
        assert_eq!((at, fail.unwrap().errno), (3 * UNIT, Errno::NOSPC));
    }

    #[test]
    fn what_cannot_be_read_is_told_after_what_was() {
        let folder = std::fs::File::open("/").unwrap();
        let (at, fail) = run(folder.as_fd(), 0..UNIT, |_, _| Ok(())).unwrap();
        assert_eq!((at, fail.unwrap().errno), (0, Errno::ISDIR));
    }
}
