//! The end of a daemon whose source hangs: what waits for it must not keep the daemon for ever.

use super::line::{Told, Upwards};
use crate::sys::OrFail;
use crate::sys::Result as SysResult;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::thread::{self, Builder};
use std::time::Duration;

/// How long work may go on after the connection has ended. Nobody waits for its answers any more.
const GRACE: Duration = Duration::from_secs(10);
/// How often to look whether it has.
const LOOK: Duration = Duration::from_secs(1);
const AT_ONCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

/// Ends the process when it is still there [`GRACE`] after the connection of `device`
/// (`/dev/fuse`) has ended: an event loop waits for the source then, or a copy does, and neither
/// may ever come back.
///
/// A process that ends in time takes the thread with it. The guardian, if there is one, is told:
/// it would wait for a thread that not even that ends.
pub(super) fn watch(device: BorrowedFd<'_>, guardian: Option<Upwards>) -> io::Result<()> {
    let device = rustix::io::fcntl_dupfd_cloexec(device, 0)?;
    let body = move || {
        if let Err(fail) = connection_ended(&device) {
            log::warn!("a source that hangs would keep this process: {fail}");
            return;
        }
        thread::sleep(GRACE);
        log::warn!(
            "the mount is gone, and what waits for the source did not end in {} s: left undone",
            GRACE.as_secs()
        );
        if let Some(guardian) = guardian {
            // One that is gone needs no telling.
            let _ = guardian.tell(&Told::Ended);
        }
        std::process::exit(0);
    };
    Builder::new().name("overdue".into()).spawn(body)?;
    Ok(())
}

/// Waits for the end of the connection: unmounted, or aborted. The kernel shows it as an error
/// on the device (fs/fuse/dev.c, fuse_dev_poll).
///
/// It looks now and then: who sleeps in poll(2) on the device is woken by every request, beside the
/// event loop that is to serve it.
fn connection_ended(device: &OwnedFd) -> SysResult<()> {
    loop {
        let mut wanted = [PollFd::new(device, PollFlags::empty())];
        rustix::io::retry_on_intr(|| poll(&mut wanted, Some(&AT_ONCE))).or_fail("poll")?;
        if wanted[0].revents().contains(PollFlags::ERR) {
            return Ok(());
        }
        thread::sleep(LOOK);
    }
}
