//! Signals that wait in a descriptor, for a process that has one loop over everything.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::handle::last_error;
use super::{Errno, OrFail, Result};

/// Signals held back from this thread, and from those it starts, until [`Held::release`].
///
/// A program that is started gets its signals: the standard library clears the mask.
pub struct Held {
    these: libc::sigset_t,
    before: libc::sigset_t,
}

impl Held {
    /// Holds these signals back: they wait for the process.
    ///
    /// # Errors
    /// EINVAL for a number that is no signal.
    pub fn back(signals: &[i32]) -> Result<Self> {
        // SAFETY: a sigset_t is plain numbers, for which zeros are valid; sigemptyset and sigaddset
        // write to it alone, pthread_sigmask reads the one and writes the other.
        unsafe {
            let mut these: libc::sigset_t = std::mem::zeroed();
            let mut before: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut these);
            for &signal in signals {
                if libc::sigaddset(&raw mut these, signal) != 0 {
                    return Err(last_error("sigaddset"));
                }
            }
            match libc::pthread_sigmask(libc::SIG_BLOCK, &raw const these, &raw mut before) {
                0 => Ok(Self { these, before }),
                errno => Err(Errno::from_raw_os_error(errno)).or_fail("pthread_sigmask"),
            }
        }
    }

    /// Lets them come again, those that have waited first.
    ///
    /// # Errors
    /// None that the kernel documents.
    pub fn release(self) -> Result<()> {
        // SAFETY: reads a valid set, writes nothing.
        let done = unsafe {
            libc::pthread_sigmask(
                libc::SIG_SETMASK,
                &raw const self.before,
                std::ptr::null_mut(),
            )
        };
        match done {
            0 => Ok(()),
            errno => Err(Errno::from_raw_os_error(errno)).or_fail("pthread_sigmask"),
        }
    }

    /// A descriptor that is readable while one of them waits.
    ///
    /// # Errors
    /// EMFILE, ENFILE, ENOMEM.
    pub fn descriptor(&self) -> Result<SignalFd> {
        // SAFETY: reads a valid set; -1 asks for a new descriptor.
        let fd = unsafe {
            libc::signalfd(
                -1,
                &raw const self.these,
                libc::SFD_CLOEXEC | libc::SFD_NONBLOCK,
            )
        };
        if fd < 0 {
            return Err(last_error("signalfd"));
        }
        // SAFETY: the kernel just gave us this descriptor; nobody else owns it.
        Ok(SignalFd(unsafe { OwnedFd::from_raw_fd(fd) }))
    }
}

/// Whether this process ignores a signal, as one under nohup(1) does SIGHUP.
pub fn is_ignored(signal: i32) -> bool {
    // SAFETY: sigaction without a new action writes to `action` alone, for which zeros are valid.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &raw mut action) == 0
            && action.sa_sigaction == libc::SIG_IGN
    }
}

/// Where held signals are read.
#[derive(Debug)]
pub struct SignalFd(OwnedFd);

impl SignalFd {
    /// The next signal that waits; `None` when there is none.
    ///
    /// # Errors
    /// None that the kernel documents.
    pub fn next(&self) -> Result<Option<i32>> {
        // SAFETY: the structure is plain numbers, for which zeros are valid.
        let mut info: libc::signalfd_siginfo = unsafe { std::mem::zeroed() };
        let length = size_of::<libc::signalfd_siginfo>();
        // SAFETY: the buffer has the length that is given.
        let read = unsafe { libc::read(self.0.as_raw_fd(), (&raw mut info).cast(), length) };
        if read == length.cast_signed() {
            return Ok(Some(info.ssi_signo.cast_signed()));
        }
        let fail = last_error("read signalfd");
        match fail.errno {
            Errno::AGAIN | Errno::INTR => Ok(None),
            _ => Err(fail),
        }
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ignored_is_known() {
        // The standard library has programs ignore it, which nobody changes here.
        assert!(is_ignored(libc::SIGPIPE));
        assert!(!is_ignored(libc::SIGALRM));
        assert!(!is_ignored(-1));
    }

    #[test]
    fn a_held_signal_waits_in_the_descriptor() {
        // In a thread of its own: the mask is the thread's, and so is the signal.
        let told = std::thread::spawn(|| {
            let held = Held::back(&[libc::SIGUSR2]).unwrap();
            let descriptor = held.descriptor().unwrap();
            assert_eq!(descriptor.next().unwrap(), None);
            // SAFETY: pthread_self is this living thread.
            let sent = unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGUSR2) };
            assert_eq!(sent, 0);
            let told = (descriptor.next().unwrap(), descriptor.next().unwrap());
            held.release().unwrap();
            told
        });
        assert_eq!(told.join().unwrap(), (Some(libc::SIGUSR2), None));
    }
}
