//! The threads beside the event loops: signals, what is due each second, and the ceiling of
//! inodes.

use super::line::{Told, Upwards};
use super::mount::Site;
use super::refusal::Refusal;
use super::unmount;
use crate::fuse::adapter::Shared;
use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;
use sd_notify::NotifyState;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::{Handle, Signals};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

/// How often [`Shared::tick`] is called.
const TICK: Duration = Duration::from_secs(1);

/// Takes SIGINT, SIGTERM and SIGHUP away from their defaults; they wait for [`Attendants::start`].
/// A write beyond our own `ulimit -f` is EFBIG for who asked for it, and not our end (SIGXFSZ).
pub(super) fn catch_signals() -> Result<Signals, Refusal> {
    signal_hook::flag::register(SIGXFSZ, Arc::default())
        .and_then(|_| Signals::new([SIGINT, SIGTERM, SIGHUP]))
        .map_err(|error| Refusal::system(format!("catch signals: {error}")))
}

/// The running threads.
pub(super) struct Attendants {
    signals: Handle,
    stop: Arc<Stop>,
    threads: Vec<JoinHandle<()>>,
    shared: Arc<Shared>,
}

impl Attendants {
    /// Starts them. They must not be started before the process was split.
    pub(super) fn start(signals: Signals, ender: Ender, shared: &Arc<Shared>) -> io::Result<Self> {
        let mut attendants = Self {
            signals: signals.handle(),
            stop: Arc::default(),
            threads: Vec::new(),
            shared: Arc::clone(shared),
        };
        let state = Arc::clone(shared);
        attendants.spawn("signals", move || attend(signals, &ender, &state))?;
        let (stop, state) = (Arc::clone(&attendants.stop), Arc::clone(shared));
        attendants.spawn("housekeeping", move || {
            while !stop.wait(TICK) {
                state.tick();
            }
        })?;
        let state = Arc::clone(shared);
        attendants.spawn("prune", move || state.prune())?;
        let state = Arc::clone(shared);
        attendants.spawn("watching", move || state.watch())?;
        Ok(attendants)
    }

    fn spawn(&mut self, name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let thread = Builder::new().name(name.to_owned()).spawn(body)?;
        self.threads.push(thread);
        Ok(())
    }

    /// Ends them and waits for their end.
    pub(super) fn finish(self) {
        self.signals.close();
        self.stop.set();
        self.shared.stop_pruning();
        self.shared.stop_watching();
        for thread in self.threads {
            // One that panicked has been logged by the hook.
            let _ = thread.join();
        }
    }
}

/// A flag that can be waited for.
#[derive(Debug, Default)]
struct Stop {
    set: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    fn set(&self) {
        *self.set.lock() = true;
        self.changed.notify_all();
    }

    /// Waits for at most `time`; whether it is set.
    fn wait(&self, time: Duration) -> bool {
        let mut set = self.set.lock();
        if !*set {
            self.changed.wait_for(&mut set, time);
        }
        *set
    }
}

/// The signal thread. Here, and not on an event loop, because unmounting and dropping caches
/// send requests and notifications that an event loop must answer.
fn attend(mut signals: Signals, ender: &Ender, shared: &Shared) {
    for signal in signals.forever() {
        match signal {
            SIGHUP => {
                log::info!("SIGHUP: dropping windows and caches");
                shared.drop_caches();
            }
            _ => {
                // Who waits for one would keep the mount busy for as long as that takes.
                shared.wind_up();
                ender.asked();
            }
        }
    }
}

/// Who ends the mount when this process is asked to.
#[derive(Debug)]
pub(super) enum Ender {
    /// This process.
    Alone(Ending),
    /// The one above it.
    Guardian(Upwards),
}

impl Ender {
    fn asked(&self) {
        match self {
            Self::Alone(ending) => ending.asked(),
            Self::Guardian(line) => {
                if let Err(error) = line.tell(&Told::Unmount) {
                    log::error!("ask the guardian to unmount: {error}");
                }
            }
        }
    }
}

/// The end of a mount that was asked for, perhaps more than once.
#[derive(Debug)]
pub(super) struct Ending {
    site: Site,
    begun: AtomicBool,
}

impl Ending {
    pub(super) fn of(site: Site) -> Self {
        Self {
            site,
            begun: AtomicBool::new(false),
        }
    }

    pub(super) fn site(&self) -> &Site {
        &self.site
    }

    pub(super) fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Relaxed)
    }

    /// Unmounts; asked again, it tries again, or says whom it waits for.
    pub(super) fn asked(&self) {
        if self.begun.swap(true, Ordering::Relaxed) && !self.site.stands() {
            let path = self.site.path.display();
            log::warn!("still waiting for the last user of {path}");
        } else {
            tell_manager(NotifyState::Stopping);
            unmount::end(&self.site);
        }
    }
}

/// Tells systemd, if it started us with `Type=notify`.
pub(super) fn tell_manager(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        log::debug!("sd_notify: {error}");
    }
}

/// Says that the mount answers, once it does: by asking it, from a thread of its own, because
/// the event loops start after us and the source may take its time.
pub(super) fn announce(site: Site) -> io::Result<()> {
    let ask = move || match rustix::fs::stat(&site.path) {
        Ok(_) => {
            log::info!("mounted on {}", site.path.display());
            tell_manager(NotifyState::Ready);
        }
        Err(error @ (Errno::NOTCONN | Errno::CONNABORTED)) => {
            log::debug!("ended before it answered: {error}");
        }
        Err(error) => log::error!("the mount does not answer: {error}"),
    };
    Builder::new().name("announce".into()).spawn(ask)?;
    Ok(())
}
