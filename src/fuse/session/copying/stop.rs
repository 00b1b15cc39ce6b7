//! Ctrl-C and its like: the copy is to end, and to leave nothing behind.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::{flag, low_level};

use crate::fuse::session::refusal::{Refusal, said};
use crate::sys::signals::is_ignored;
use crate::sys::watch::{CallerWatch, Signalled};

/// What stops a copy.
pub(super) const SIGNALS: [i32; 3] = [SIGINT, SIGTERM, SIGHUP];

/// Notes the signals that say stop, however many come.
#[derive(Debug)]
pub(super) struct Stop {
    /// The last that came; 0 for none.
    came: Arc<AtomicUsize>,
    /// The main thread, which may wait in a call that no signal ends, with one pending.
    main: CallerWatch,
}

impl Stop {
    /// From here on. A signal that this process was started to ignore (nohup) stays ignored.
    pub(super) fn catch() -> Result<Self, Refusal> {
        let came = Arc::new(AtomicUsize::new(0));
        for signal in SIGNALS.into_iter().filter(|signal| !is_ignored(*signal)) {
            let number = signal.unsigned_abs() as usize;
            flag::register_usize(signal, Arc::clone(&came), number)
                .map_err(|error| Refusal::system(format!("catch signals: {}", said(error))))?;
        }
        Ok(Self {
            came,
            main: CallerWatch::new(std::process::id()),
        })
    }

    /// The signal by which it was told to stop.
    pub(super) fn asked(&self) -> Option<i32> {
        let came = self.came.load(Ordering::Relaxed);
        if came != 0 {
            return i32::try_from(came).ok();
        }
        match self.main.signalled() {
            Some(Signalled::Pending(signal)) if SIGNALS.contains(&signal) => Some(signal),
            _ => None,
        }
    }

    /// Ends this process by a signal, as if it had not been caught: a shell then knows that its
    /// script is to stop, too.
    pub(super) fn end(&self, signal: i32) -> Result<(), Refusal> {
        low_level::emulate_default_handler(signal)
            .map_err(|error| Refusal::system(format!("end by a signal: {}", said(error))))
    }
}
