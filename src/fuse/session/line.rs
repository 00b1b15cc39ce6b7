//! What guardian and server say to each other: packets over a socket, in one direction each time.

use super::refusal::{Code, Refusal};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::sync::Arc;

const READY: u8 = b'R';
const UNMOUNT: u8 = b'U';
const FAILED: u8 = b'F';
const ENDED: u8 = b'E';
const YES: u8 = b'y';

/// The longest message, in bytes; longer words are cut.
const LONGEST: usize = 4096;

/// Both ends of a line.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let ends = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    Ok(ends)
}

/// What the server tells.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// The kernel has its answer, the event loops are about to start.
    Ready,
    /// It was asked to end, and can't unmount.
    Unmount,
    /// Why it ends.
    Failed(Refusal),
    /// It has ended, as far as it can by itself: a thread that is within a system call of a source
    /// that hangs goes when that returns, and so does the process.
    Ended,
}

/// The server's end.
#[derive(Clone, Debug)]
pub(super) struct Upwards(Arc<OwnedFd>);

impl Upwards {
    pub(super) fn new(end: OwnedFd) -> Self {
        Self(Arc::new(end))
    }

    /// Tells the guardian.
    ///
    /// # Errors
    /// EPIPE when there is none any more.
    pub(super) fn tell(&self, what: &Told) -> io::Result<()> {
        let mut message = match what {
            Told::Ready => vec![READY],
            Told::Unmount => vec![UNMOUNT],
            Told::Ended => vec![ENDED],
            Told::Failed(refusal) => {
                let mut message = vec![FAILED, refusal.code as u8];
                message.extend_from_slice(refusal.words.as_bytes());
                message
            }
        };
        message.truncate(LONGEST);
        rustix::net::send(&*self.0, &message, SendFlags::NOSIGNAL)?;
        Ok(())
    }
}

/// The guardian's end.
#[derive(Debug)]
pub(super) struct Downwards(OwnedFd);

impl Downwards {
    pub(super) fn new(end: OwnedFd) -> Self {
        Self(end)
    }

    /// What was told, the oldest first; `None` when there is nothing at the moment, or never will
    /// be.
    pub(super) fn heard(&self) -> Option<Told> {
        let mut message = [0; LONGEST];
        let flags = RecvFlags::DONTWAIT;
        let (length, _) =
            rustix::io::retry_on_intr(|| rustix::net::recv(&self.0, &mut message, flags)).ok()?;
        match message[..length] {
            [READY] => Some(Told::Ready),
            [UNMOUNT] => Some(Told::Unmount),
            [ENDED] => Some(Told::Ended),
            [FAILED, code, ref words @ ..] => Some(Told::Failed(Refusal {
                code: Code::of_number(code),
                words: String::from_utf8_lossy(words).into_owned(),
            })),
            _ => None,
        }
    }
}

impl AsFd for Downwards {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Asks over `line` for a yes or no about a thread; without an answer it is no.
///
/// Each question brings a socket for its answer: so any number of threads ask at once, and none
/// waits with a lock in its hand.
pub(super) fn ask(line: &OwnedFd, thread: u32) -> bool {
    let asked = || -> Result<bool, Errno> {
        let (answer, theirs) = pair().map_err(|error| errno(&error))?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let sockets = [theirs.as_fd()];
        control.push(SendAncillaryMessage::ScmRights(&sockets));
        let bytes = thread.to_ne_bytes();
        let flags = SendFlags::NOSIGNAL;
        rustix::io::retry_on_intr(|| {
            rustix::net::sendmsg(line, &[IoSlice::new(&bytes)], &mut control, flags)
        })?;
        // From now on the other end is the guardian's alone: its death is an answer too.
        drop(theirs);
        let mut word = [0_u8];
        let read = rustix::io::retry_on_intr(|| {
            rustix::net::recv(&answer, &mut word, RecvFlags::empty())
        })?;
        Ok(read.0 == 1 && word[0] == YES)
    };
    asked().unwrap_or_else(|error| {
        log::warn!("ask the guardian of thread {thread}: {error}; taken for a no");
        false
    })
}

/// Answers the questions that come over `line`, to its end.
pub(super) fn answer(line: &OwnedFd, of: impl Fn(u32) -> bool) {
    let mut bytes = [0_u8; 4];
    loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut data = [IoSliceMut::new(&mut bytes)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let length = match rustix::net::recvmsg(line, &mut data, &mut control, flags) {
            Ok(message) => message.bytes,
            Err(Errno::INTR) => continue,
            Err(_) => return,
        };
        let socket = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut sockets) => sockets.next(),
            _ => None,
        });
        match socket {
            None if length == 0 => return,
            Some(socket) if length == 4 => {
                let word = [if of(u32::from_ne_bytes(bytes)) {
                    YES
                } else {
                    b'n'
                }];
                // One that has died meanwhile wants no answer.
                let _ = rustix::net::send(socket, &word, SendFlags::NOSIGNAL);
            }
            _ => {}
        }
    }
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_heard_in_order() {
        let (up, down) = pair().unwrap();
        let (up, down) = (Upwards::new(up), Downwards::new(down));
        assert_eq!(down.heard(), None);
        let refusal = Refusal::mount("no\nmore");
        up.tell(&Told::Ready).unwrap();
        up.tell(&Told::Unmount).unwrap();
        up.tell(&Told::Failed(refusal.clone())).unwrap();
        drop(up);
        assert_eq!(down.heard(), Some(Told::Ready));
        assert_eq!(down.heard(), Some(Told::Unmount));
        assert_eq!(down.heard(), Some(Told::Failed(refusal)));
        assert_eq!(down.heard(), None);
    }

    #[test]
    fn many_ask_at_once_and_each_has_its_own_answer() {
        let (ours, theirs) = pair().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || answer(&theirs, |thread| thread % 2 == 1));
            let line = &ours;
            let askers: Vec<_> = (0..8)
                .map(|n| scope.spawn(move || (n..n + 200).all(|t| ask(line, t) == (t % 2 == 1))))
                .collect();
            for asker in askers {
                assert!(asker.join().unwrap());
            }
            rustix::net::shutdown(line, rustix::net::Shutdown::Both).unwrap();
        });
        assert!(!ask(&ours, 1), "nobody answers");
    }
}
