//! One mount from its making to its end: checks, the mount, the background, signals, the unmount.
//!
//! Mounting and unmounting are done here and not by fuser: its own way turns commas of a source
//! into options, and after somebody else's unmount may take away another file system.

mod absent;
mod attend;
mod caching;
mod check;
mod copying;
mod daemon;
mod fusermount;
mod guardian;
mod keeper;
mod line;
mod logging;
mod mount;
mod overdue;
mod parting;
mod place;
mod readahead;
mod refusal;
mod remote;
mod remount;
mod sandbox;
mod settings;
mod stats;
mod store;
mod unmount;

pub use caching::{Action, CacheCommand, run as cache};
pub use copying::{Copying, Telling, run as copy};
pub use keeper::{OPTION as KEEPER_OPTION, keep};
pub use refusal::{Code, Refusal};
pub use remount::command as remount;
pub use settings::{
    Access, Caching, Flags, MAX_BUSY_POLL, MAX_THREADS, Sandbox, Settings, SourceWorkers,
};
pub use stats::{Watched, read as read_stats};
pub use unmount::{Manner, command as umount};

use crate::cache::Store;
use crate::fuse::adapter::{Adapter, Shared};
use crate::mirror::{EventQueue, Reach};
use crate::observe::Metrics;
use crate::sys::sandbox::InForce;
use crate::sys::{memory, mountinfo, process};
use attend::{Attendants, Ender, Ending};
use check::Prepared;
use daemon::{Child, Half};
use fuser::{Config, Session, SessionACL};
use keeper::Keeper;
use line::{Told, Upwards};
use logging::Sink;
use mount::{Mounted, Site};
use place::Place;
use refusal::{said, shown};
use rustix::fs::{Mode, OFlags};
use signal_hook::iterator::Signals;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

/// `corfs SOURCE MOUNTPOINT`: mounts, and serves until the mount is gone.
///
/// In the background both processes return from here: the parent when the mount answers or has
/// failed, the daemon at its end. To be called while the process has one thread.
pub fn run(settings: &Settings) -> Result<(), Refusal> {
    let mut settings = settled(settings);
    let prepared = check::check(&settings)?;
    settings.source_workers = settled_workers(&settings, &prepared);
    settings.options.may_hang = settings.source_workers == SourceWorkers::Always;
    settings.absent = prepared.absent;
    let settings = &settings;
    let sink = Sink::open(settings.log_file.as_deref(), settings.foreground)?;
    if settings.foreground {
        sink.install(settings.debug);
        let end = serve(settings, prepared, None);
        // What stands on standard error belongs into the log too, where that is elsewhere.
        if let (Err(refusal), Some(_)) = (&end, &settings.log_file) {
            log::error!("{refusal}");
        }
        return end;
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
/// case: one in a container or a confined service has fewer capabilities, or none. So the kernel
/// is to judge. And what depends on this machine is found out while all of it can be seen.
fn settled(settings: &Settings) -> Settings {
    let mut settings = settings.clone();
    settings.options.default_permissions |= rustix::process::geteuid().is_root();
    settings.threads = Some(settings.threads());
    settings
}

/// Whether workers wait for the source, decided now: what is mounted where is seen from outside
/// the sandbox only.
fn settled_workers(settings: &Settings, prepared: &Prepared) -> SourceWorkers {
    match settings.source_workers {
        // Nobody knows of what kind it will be.
        SourceWorkers::Auto if prepared.absent => SourceWorkers::Always,
        SourceWorkers::Auto if remote::may_hang(&prepared.source) => SourceWorkers::Always,
        SourceWorkers::Auto => SourceWorkers::Never,
        asked => asked,
    }
}

/// Mounts, tells whoever waits, and serves to the end.
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
    if let Err(fail) = process::keep_to_quotas() {
        log::warn!("quotas of those who write do not hold for this process: {fail}");
    }
    match settings.sandbox {
        Sandbox::Auto => guardian::guard(settings, prepared, limit, waiting),
        Sandbox::Off => serve_alone(settings, prepared, limit, waiting),
    }
}

/// `sandbox=off`: one process mounts, serves and unmounts.
fn serve_alone(
    settings: &Settings,
    prepared: Prepared,
    limit: u64,
    waiting: Option<&mut Child>,
) -> Result<(), Refusal> {
    let signals = attend::catch_signals()?;
    let source = prepared.source.path().to_owned();
    let target = prepared.target.path().to_owned();
    drop(prepared.target);
    let fsname = settings.fsname(&source);
    let Mounted { device, site } = mount::mount(settings, fsname, &target, prepared.device)?;
    log::info!("mirroring {} on {}", shown(&source), shown(&target));
    let served = Served {
        source: prepared.source,
        given: prepared.given,
        site: site.clone(),
        limit,
        events: EventQueue::of(&settings.options),
        store: prepared.store,
        metrics: prepared.metrics,
    };
    let end = start_keeper(settings, &site).and_then(|keeper| {
        let above = Above::Nobody(waiting);
        let none = InForce::default();
        let end = serve_device(settings, served, device, above, signals, &none);
        drop(keeper);
        end
    });
    let left = unmount::sweep(&site);
    end?;
    if left {
        return Err(aborted(&site));
    }
    log::info!("ended");
    Ok(())
}

/// The mount was still there when nobody served it any more.
fn aborted(site: &Site) -> Refusal {
    Refusal::system(format!(
        "the connection of {} was aborted; what was left of the mount is taken away",
        shown(&site.path)
    ))
}

/// What is served, and where.
#[derive(Debug)]
struct Served {
    source: Place,
    /// The mountpoint's path as it was given.
    given: PathBuf,
    site: Site,
    /// Descriptors that this process may have.
    limit: u64,
    /// What tells of changes of the source.
    events: EventQueue,
    /// Where what is read is kept.
    store: Option<Arc<Store>>,
    metrics: Arc<Metrics>,
}

/// Who is told that the mount answers.
#[derive(Debug)]
enum Above<'a> {
    /// Nobody but the daemon's parent, if it waits.
    Nobody(Option<&'a mut Child>),
    /// The process that keeps the mount.
    Guardian(Upwards),
}

/// Answers the kernel's requests from `device`, to their end.
fn serve_device(
    settings: &Settings,
    served: Served,
    device: OwnedFd,
    above: Above<'_>,
    signals: Signals,
    in_force: &InForce,
) -> Result<(), Refusal> {
    let Served {
        source,
        given,
        site,
        limit,
        events,
        store,
        metrics,
    } = served;
    let name = shown(source.path());
    // Before the first look at the source, which may hang already.
    let guardian = match &above {
        Above::Guardian(line) => Some(line.clone()),
        Above::Nobody(_) => None,
    };
    overdue::watch(device.as_fd(), guardian)
        .map_err(|error| Refusal::system(format!("start threads for {name}: {}", said(error))))?;
    let mut config = settings.config_text(source.path(), &site.path, in_force);
    if let Some(store) = &store {
        // For `corfs cache`, which is given a path of the mount.
        config.push_str(&format!("cache_store={}\n", store.name()));
    }
    let mut options = settings.options.clone();
    if in_force.landlock {
        options.reach = Reach::NameFirst;
    }
    let adapter = Adapter::new(
        source.into_fd(),
        vec![given, site.path.clone()],
        inode_descriptors(limit),
        options,
        config,
        events,
        store,
        settings.serving(),
        metrics,
    )
    .map_err(|fail| Refusal::system(format!("open source {name}: {fail}")))?;
    let shared = adapter.shared();
    shared
        .start()
        .map_err(|fail| Refusal::system(format!("start the threads of the cache: {fail}")))?;
    let mounted = Mounted { device, site };
    let end = run_session(settings, adapter, &shared, mounted, signals, above);
    shared.shutdown();
    end
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
    above: Above<'_>,
) -> Result<(), Refusal> {
    let Mounted { device, site } = mounted;
    let failed = |what: &str, error: std::io::Error| {
        Refusal::mount(format!("{what} for {}: {}", shown(&site.path), said(error)))
    };
    let another = || {
        let copy = device.try_clone();
        copy.map_err(|error| failed("duplicate the connection", error))
    };
    let (notifies, waits) = (another()?, another()?);
    let session = Session::from_fd(adapter, device, acl(settings), config(settings))
        .map_err(|error| failed("handshake with the kernel", error))?;
    shared.attach(notifies, waits);
    readahead::set(&site, settings.readahead);
    let ender = tell_ready(&site, above).map_err(|error| failed("tell of the mount", error))?;
    let attendants = Attendants::start(signals, ender, shared)
        .map_err(|error| failed("start threads", error))?;
    // ECONNABORTED is an end too: the kernel says it to a loop that is being handed a request at
    // the moment of the unmount (fs/fuse/dev.c, fuse_dev_do_read).
    let end = session.run().or_else(|error| match error.raw_os_error() {
        Some(libc::ECONNABORTED) => Ok(()),
        _ => Err(error),
    });
    attendants.finish();
    end.map_err(|error| {
        Refusal::system(format!(
            "event loops of {}: {}",
            shown(&site.path),
            said(error)
        ))
    })
}

/// Tells of the mount, and returns who will end it.
fn tell_ready(site: &Site, above: Above<'_>) -> std::io::Result<Ender> {
    match above {
        Above::Nobody(Some(child)) => child.ready(site)?,
        Above::Nobody(None) => attend::announce(site.clone())?,
        Above::Guardian(line) => {
            line.tell(&Told::Ready)?;
            return Ok(Ender::Guardian(line));
        }
    }
    Ok(Ender::Alone(Ending::of(site.clone())))
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
