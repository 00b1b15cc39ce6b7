//! `sandbox=auto`: two processes. The guardian has made the mount, keeps it and takes it away; the
//! server answers the kernel, and has given up all that this does not need.
//!
//! A process in the sandbox can't unmount: Landlock forbids it even to root, and `no_new_privs`
//! takes the set-user-id bit from `fusermount3`. So the guardian is the process that others know,
//! start, signal and wait for. It holds neither the source nor the device: when it dies, however
//! it dies, the server dies with it; when the server dies, the guardian takes away its own mount.

use super::attend::{self, Ending};
use super::check::Prepared;
use super::daemon::Child;
use super::keeper::Keeper;
use super::line::{self, Downwards, Told, Upwards};
use super::mount::{self, Mounted, Site};
use super::refusal::{Code, Refusal, said, shown};
use super::settings::Settings;
use super::{Above, Served, sandbox, unmount};
use crate::mirror::EventQueue;
use crate::sys::creds;
use crate::sys::process::{self, Side};
use crate::sys::signals::{Held, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, WaitStatus};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::thread::Builder;
use std::time::{Duration, Instant};

/// So long a server that says that it has ended may take to be gone: it closes files and unmaps
/// windows, and a thread may be within a call that nothing interrupts (a request that a FUSE source
/// has taken and does not answer).
const PARTING: Duration = Duration::from_secs(3);
/// How often it is looked whether that has passed.
const LOOK: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// What both processes have at the moment of their parting.
struct Parting {
    told: (OwnedFd, OwnedFd),
    asked: (OwnedFd, OwnedFd),
    held: Held,
    guardian: Pid,
}

/// Mounts, splits this process in two, and serves until the mount is gone. The server's process
/// does not return.
pub(super) fn guard(
    settings: &Settings,
    prepared: Prepared,
    limit: u64,
    waiting: Option<&mut Child>,
) -> Result<(), Refusal> {
    let failed = |error: String| Refusal::system(format!("start the guardian: {error}"));
    // From here on a signal waits until somebody can do what it asks for.
    let held = Held::back(&[SIGINT, SIGTERM, SIGHUP]).map_err(|e| failed(e.to_string()))?;
    let signals = held.descriptor().map_err(|e| failed(e.to_string()))?;
    let parting = Parting {
        told: line::pair().map_err(|e| failed(said(e)))?,
        asked: line::pair().map_err(|e| failed(said(e)))?,
        held,
        guardian: rustix::process::getpid(),
    };
    let source = prepared.source.path().to_owned();
    let target = prepared.target.path().to_owned();
    let mounted = mount::mount(settings, settings.fsname(&source), &target, prepared.device)?;
    log::info!("mirroring {} on {}", shown(&source), shown(&target));
    let Mounted { device, site } = mounted;
    drop(prepared.target);
    let served = Served {
        source: prepared.source,
        given: prepared.given,
        site: site.clone(),
        limit,
        events: EventQueue::of(&settings.options),
        store: prepared.store,
        metrics: prepared.metrics,
    };
    match process::fork() {
        Ok(Side::Child) => {
            drop(signals);
            std::process::exit(serve_below(settings, served, device, parting, waiting));
        }
        Ok(Side::Parent(server)) => {
            drop((served, device));
            let Parting { told, asked, .. } = parting;
            answer_questions(asked.0);
            let guardian = Guardian {
                server,
                told: Downwards::new(told.0),
                signals,
                ending: Ending::of(site),
            };
            drop((told.1, asked.1));
            guardian.guard(settings, waiting)
        }
        Err(fail) => {
            unmount::sweep(&site);
            Err(failed(fail.to_string()))
        }
    }
}

/// The server's whole life; returns its exit code. The words of a failure go to the guardian.
fn serve_below(
    settings: &Settings,
    served: Served,
    device: OwnedFd,
    parting: Parting,
    waiting: Option<&mut Child>,
) -> i32 {
    let Parting {
        told,
        asked,
        held,
        guardian,
    } = parting;
    drop((told.0, asked.0));
    let upwards = Upwards::new(told.1);
    let serve = || -> Result<(), Refusal> {
        let failed = |error: String| Refusal::system(format!("start the server: {error}"));
        process::die_with(guardian).map_err(|fail| failed(fail.to_string()))?;
        waiting
            .map_or(Ok(()), Child::part)
            .map_err(|error| failed(said(error)))?;
        let signals = attend::catch_signals()?;
        held.release().map_err(|fail| failed(fail.to_string()))?;
        let in_force = sandbox::enter(settings, &served)?;
        creds::set_namespace_witness(move |thread| line::ask(&asked.1, thread));
        let above = Above::Guardian(upwards.clone());
        super::serve_device(settings, served, device, above, signals, &in_force)
    };
    let code = match serve() {
        Ok(()) => 0,
        Err(refusal) => {
            let code = refusal.code as i32;
            // Without a guardian there is nobody to tell.
            let _ = upwards.tell(&Told::Failed(refusal));
            code
        }
    };
    let _ = upwards.tell(&Told::Ended);
    code
}

/// Answers what the server can't find out itself, from a thread that never touches the mount: the
/// guardian's own may be waiting for an unmount, which waits for the server.
fn answer_questions(line: OwnedFd) {
    let answers = move || line::answer(&line, creds::shares_user_namespace);
    if let Err(error) = Builder::new().name("answers".into()).spawn(answers) {
        log::error!("start a thread: {error}; root's capabilities are taken for none");
    }
}

/// The guardian, once the server lives.
struct Guardian {
    server: Pid,
    told: Downwards,
    signals: SignalFd,
    ending: Ending,
}

impl Guardian {
    fn site(&self) -> &Site {
        self.ending.site()
    }

    /// Keeps the mount until the server has ended, and takes away what is left of it.
    fn guard(self, settings: &Settings, waiting: Option<&mut Child>) -> Result<(), Refusal> {
        let keeper = settings.auto_unmount.then(|| Keeper::start(self.site()));
        let keeper = match keeper.transpose() {
            Ok(keeper) => keeper,
            Err(refusal) => {
                self.kill();
                let _ = self.attend(None);
                unmount::sweep(self.site());
                return Err(refusal);
            }
        };
        let end = self.attend(waiting);
        drop(keeper);
        let left = unmount::sweep(self.site());
        end?;
        if left {
            return Err(super::aborted(self.site()));
        }
        log::info!("ended");
        Ok(())
    }

    /// Waits for signals, the server's words and its end, and returns how it ended.
    fn attend(&self, mut waiting: Option<&mut Child>) -> Result<(), Refusal> {
        let failed = |errno: Errno| Refusal::system(format!("wait for the server: {errno}"));
        let process = rustix::process::pidfd_open(self.server, PidfdFlags::empty());
        let process = process.map_err(|errno| {
            self.kill();
            failed(errno)
        })?;
        let mut state = State::default();
        loop {
            let mut events = vec![
                PollFd::new(&process, PollFlags::IN),
                PollFd::new(&self.signals, PollFlags::IN),
            ];
            if !state.deaf {
                events.push(PollFd::new(&self.told, PollFlags::IN));
            }
            let patience = state.ended.map(|_| LOOK);
            match rustix::event::poll(&mut events, patience.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(failed(errno)),
            }
            let ended = !events[0].revents().is_empty();
            // A closed line is readable for ever, and a server may take its time to end after that:
            // it closes files of a source that may hang.
            state.deaf |= events
                .get(2)
                .is_some_and(|line| line.revents().contains(PollFlags::HUP));
            self.listen(&mut state, waiting.as_deref_mut());
            self.obey(&mut state);
            if ended {
                // What was said last may have come after the look at the line.
                self.listen(&mut state, None);
                return self.bury(state);
            }
            if state.ended.is_some_and(|at| at.elapsed() > PARTING) {
                log::warn!(
                    "{}: a call of the source hangs; process {} ends when that returns",
                    shown(&self.site().path),
                    self.server.as_raw_nonzero()
                );
                return state.failed.map_or(Ok(()), Err);
            }
        }
    }

    /// Takes the server's words.
    fn listen(&self, state: &mut State, mut waiting: Option<&mut Child>) {
        while let Some(told) = self.told.heard() {
            match told {
                Told::Ready => {
                    state.ready = true;
                    if let Err(error) = self.announce(waiting.as_deref_mut()) {
                        state.failed = Some(Refusal::mount(format!(
                            "tell of the mount for {}: {}",
                            shown(&self.site().path),
                            said(error)
                        )));
                        state.asked = true;
                    }
                }
                Told::Unmount => state.asked |= !self.ending.has_begun(),
                Told::Failed(refusal) => state.failed = Some(refusal),
                Told::Ended => state.ended = Some(Instant::now()),
            }
        }
        state.unmount_if_asked(&self.ending);
    }

    fn announce(&self, waiting: Option<&mut Child>) -> std::io::Result<()> {
        match waiting {
            Some(child) => child.ready(self.site()),
            None => attend::announce(self.site().clone()),
        }
    }

    /// Does what signals ask for.
    fn obey(&self, state: &mut State) {
        while let Ok(Some(signal)) = self.signals.next() {
            match signal {
                // The windows are the server's, and so is the way to the kernel's caches.
                SIGHUP => {
                    let _ = rustix::process::kill_process(self.server, Signal::HUP);
                }
                // Copies are the server's. It will ask for what is asked for already.
                _ => {
                    let _ = rustix::process::kill_process(self.server, Signal::TERM);
                    state.asked = true;
                }
            }
            state.unmount_if_asked(&self.ending);
        }
    }

    fn kill(&self) {
        let _ = rustix::process::kill_process(self.server, Signal::KILL);
    }

    /// How the server ended.
    fn bury(&self, state: State) -> Result<(), Refusal> {
        let waited = rustix::io::retry_on_intr(|| {
            rustix::process::waitpid(Some(self.server), WaitOptions::empty())
        });
        let how = match waited {
            Ok(Some((_, status))) if status.exit_status() == Some(0) => None,
            Ok(Some((_, status))) => Some(process_end(status)),
            Ok(None) | Err(_) => Some("unknown end".to_owned()),
        };
        match (state.failed, how) {
            (Some(refusal), _) => Err(refusal),
            (None, None) => Ok(()),
            (None, Some(how)) => Err(Refusal {
                code: Code::System,
                words: format!(
                    "the serving process of {} died: {how}; what was left of the mount is taken away",
                    shown(&self.site().path)
                ),
            }),
        }
    }
}

/// What the guardian has heard.
#[derive(Debug, Default)]
struct State {
    ready: bool,
    asked: bool,
    failed: Option<Refusal>,
    /// The server has closed its line.
    deaf: bool,
    /// When it said that it has ended.
    ended: Option<Instant>,
}

impl State {
    /// An end that was asked for waits for the beginning, as it does for a single process: the
    /// server is still talking to the kernel.
    fn unmount_if_asked(&mut self, ending: &Ending) {
        if self.ready && std::mem::take(&mut self.asked) {
            ending.asked();
        }
    }
}

/// How a process ended, in words.
pub(super) fn process_end(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (_, Some(signal)) => format!("killed by signal {signal}"),
        _ => "unknown end".to_owned(),
    }
}
