//! One mount from its making to its end: checks, the mount, the background, signals, the unmount.
//!
//! Mounting and unmounting are done here and not by fuser: its own way turns commas of a source
//! into options, and after somebody else's unmount may take away another file system.

mod attend;
mod check;
mod daemon;
mod fusermount;
mod keeper;
mod logging;
mod mount;
mod mountinfo;
mod place;
mod refusal;
mod settings;
mod stats;
mod unmount;

pub use keeper::{OPTION as KEEPER_OPTION, keep};
pub use refusal::{Code, Refusal};
pub use settings::{Access, Flags, MAX_THREADS, Settings};
pub use stats::read as read_stats;
pub use unmount::{Manner, command as umount};

use crate::fuse::adapter::{Adapter, Shared};
use crate::observe::Metrics;
use crate::sys::{memory, process};
use attend::Attendants;
use check::Prepared;
use daemon::{Child, Half};
use fuser::{Config, Session, SessionACL};
use keeper::Keeper;
use logging::Sink;
use mount::{Mounted, Site};
use refusal::{said, shown};
use rustix::fs::{Mode, OFlags};
use signal_hook::iterator::Signals;
use std::sync::Arc;

/// `corfs SOURCE MOUNTPOINT`: mounts, and serves until the mount is gone.
///
/// In the background both processes return from here: the parent when the mount answers or has
/// failed, the daemon at its end. To be called while the process has one thread.
pub fn run(settings: &Settings) -> Result<(), Refusal> {
    let settings = &with_the_kernel_as_judge(settings);
    let prepared = check::check(settings)?;
    let sink = Sink::open(settings.log_file.as_deref(), settings.foreground)?;
    if settings.foreground {
        sink.install(settings.debug);
        return serve(settings, prepared, None);
    }
    match daemon::split()? {
        Half::Parent(parent) => {
            let path = prepared.target.path().to_owned();
            // The child's copies are the ones that count: these would keep the source busy.
            drop((prepared, sink));
            parent.wait(&path)
        }
        Half::Child(mut child) => {
            sink.install(settings.debug);
            let end = serve(settings, prepared, Some(&mut child));
            if let Err(refusal) = &end {
                log::error!("{refusal}");
                child.failed(refusal);
            }
            end
        }
    }
}

/// What root's daemon may do, not every process of root's user id may, which it serves in any
/// case: one in a container or a confined service has fewer capabilities, or none.
fn with_the_kernel_as_judge(settings: &Settings) -> Settings {
    let mut settings = settings.clone();
    settings.options.default_permissions |= rustix::process::geteuid().is_root();
    settings
}

/// Mounts, tells whoever waits, and runs the event loops to their end.
fn serve(
    settings: &Settings,
    prepared: Prepared,
    waiting: Option<&mut Child>,
) -> Result<(), Refusal> {
    // Modes of new files are the callers' affair.
    rustix::process::umask(Mode::empty());
    memory::keep_little();
    let limit = process::raise_descriptor_limit();
    log::debug!("descriptors: {limit}");
    let signals = attend::catch_signals()?;
    let source = prepared.source.path().to_owned();
    let target = prepared.target.path().to_owned();
    let fsname = settings.fsname(&source);
    let adapter = Adapter::new(
        prepared.source.into_fd(),
        vec![prepared.given, target.clone()],
        inode_descriptors(limit),
        settings.options.clone(),
        settings.config_text(&source, &target),
        Arc::new(Metrics::new()),
    )
    .map_err(|fail| Refusal::system(format!("open source {}: {fail}", shown(&source))))?;
    let shared = adapter.shared();
    drop(prepared.target);
    let mounted = mount::mount(settings, fsname, &target, prepared.device)?;
    log::info!("mirroring {} on {}", shown(&source), shown(&target));
    let site = mounted.site.clone();
    let end = start_keeper(settings, &site).and_then(|keeper| {
        let end = run_session(settings, adapter, &shared, mounted, signals, waiting);
        drop(keeper);
        end
    });
    let left = unmount::sweep(&site);
    shared.shutdown();
    end?;
    if left {
        return Err(Refusal::system(format!(
            "the connection of {} was aborted; what was left of the mount is taken away",
            shown(&site.path)
        )));
    }
    log::info!("ended");
    Ok(())
}

/// How many descriptors may hold inodes: half of what this process may have, the rest is for open
/// files. Each also keeps an inode of the source in the kernel's memory, hence a ceiling.
fn inode_descriptors(limit: u64) -> usize {
    const MOST: u64 = 32 << 10;
    (limit / 2).min(MOST) as usize
}

fn start_keeper(settings: &Settings, site: &Site) -> Result<Option<Keeper>, Refusal> {
    if !settings.auto_unmount {
        return Ok(None);
    }
    Keeper::start(site).map(Some)
}

/// Runs the event loops, and what stands beside them.
fn run_session(
    settings: &Settings,
    adapter: Adapter,
    shared: &Arc<Shared>,
    mounted: Mounted,
    signals: Signals,
    waiting: Option<&mut Child>,
) -> Result<(), Refusal> {
    let Mounted { device, site } = mounted;
    let failed = |what: &str, error: std::io::Error| {
        Refusal::mount(format!("{what} for {}: {}", shown(&site.path), said(error)))
    };
    let to_prune = rustix::io::fcntl_dupfd_cloexec(&device, 0)
        .map_err(|error| failed("copy the descriptor", error.into()))?;
    let session = Session::from_fd(adapter, device, acl(settings), config(settings))
        .map_err(|error| failed("handshake with the kernel", error))?;
    shared.attach(session.notifier());
    tell_ready(&site, waiting).map_err(|error| failed("tell of the mount", error))?;
    let attendants = Attendants::start(signals, &site, shared, to_prune)
        .map_err(|error| failed("start threads", error))?;
    let end = session.run();
    attendants.finish();
    end.map_err(|error| {
        Refusal::system(format!(
            "event loops of {}: {}",
            shown(&site.path),
            said(error)
        ))
    })
}

fn tell_ready(site: &Site, waiting: Option<&mut Child>) -> std::io::Result<()> {
    match waiting {
        Some(child) => child.ready(site),
        None => attend::announce(site.clone()),
    }
}

/// The kernel keeps others out by itself unless it was told allow_other; only "the owner and
/// root" is beyond it.
fn acl(settings: &Settings) -> SessionACL {
    match settings.access {
        Access::Owner | Access::All => SessionACL::All,
        Access::OwnerAndRoot => SessionACL::RootAndOwner,
    }
}

fn config(settings: &Settings) -> Config {
    let mut config = Config::default();
    config.n_threads = Some(settings.threads());
    // Each clone opens /dev/fuse anew, which a user may be kept from after fusermount3 opened
    // the first.
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    config.clone_fd =
        settings.clone_fd && rustix::fs::open("/dev/fuse", flags, Mode::empty()).is_ok();
    config.acl = acl(settings);
    config
}
