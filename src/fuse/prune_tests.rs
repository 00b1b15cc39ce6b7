//! The way of older kernels, which a newer one takes too, on a mount of this very process.

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use fuser::{Config, Session};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags};

use super::*;
use crate::fuse::adapter::{Adapter, Serving};
use crate::mirror::{Coherence, Control, EventQueue, Io, Options, Passthrough, Reach};
use crate::sys::{procfd, testing::skip};

/// Unmounts, also when the test panics.
struct Unmount<'a>(&'a Path);

impl Drop for Unmount<'_> {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0, UnmountFlags::DETACH);
    }
}

fn options(inode_limit: usize) -> Options {
    Options {
        offline: false,
        source_idle: None,
        may_hang: false,
        read_only: false,
        noatime: false,
        io: Io::Mmap,
        passthrough: Passthrough::Never,
        writeback: false,
        validate: crate::mirror::Validate::Open,
        prefetch: 0,
        coherence: Coherence::Ttl,
        watch_timeout: Duration::ZERO,
        watch_limit: None,
        ids: None,
        window: 1 << 20,
        window_budget: 8 << 20,
        inode_limit: Some(inode_limit),
        reach: Reach::HandleFirst,
        attr_timeout: Duration::from_secs(60),
        entry_timeout: Duration::from_secs(60),
        negative_timeout: None,
        control: Control::Off,
        control_name: ".copy".into(),
        default_permissions: false,
        allow_other: false,
    }
}

/// Mounts `source` on `point`; `None`, and a word about it, where we may not.
fn mount(point: &Path) -> Option<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let device = rustix::fs::open("/dev/fuse", flags, Mode::empty()).ok()?;
    let data = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0",
        device.as_raw_fd()
    );
    let data = std::ffi::CString::new(data).ok()?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount("corfs-unit", point, "fuse.corfs", flags, data.as_c_str()).ok()?;
    Some(device)
}

fn path_of(fd: impl AsFd) -> std::path::PathBuf {
    fs::read_link(procfd::path(fd.as_fd())).unwrap()
}

#[test]
fn an_older_kernel_forgets_files_by_name_and_keeps_what_is_in_use() {
    const LIMIT: usize = 100;
    let [source, point] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let Some(device) = mount(point.path()) else {
        skip("no right to mount");
        return;
    };
    let unmount = Unmount(point.path());
    fs::create_dir_all(source.path().join("dir/empty")).unwrap();
    for n in 0..500 {
        fs::write(source.path().join(format!("dir/{n}")), n.to_string()).unwrap();
    }
    let root = rustix::fs::open(source.path(), OFlags::PATH, Mode::empty()).unwrap();
    let metrics = Arc::new(Metrics::new());
    let adapter = Adapter::new(
        root,
        vec![],
        64,
        options(LIMIT),
        String::new(),
        EventQueue::default(),
        None,
        Serving::default(),
        metrics.clone(),
    );
    let adapter = adapter.unwrap();
    let shared = adapter.shared();
    let copy = rustix::io::fcntl_dupfd_cloexec(&device, 0).unwrap();
    let acl = fuser::SessionACL::All;
    let session = Session::from_fd(adapter, device, acl, Config::default()).unwrap();
    let notifier = Notifier::new(copy);
    let mut pruner = Pruner::new(&notifier);
    pruner.way = Way::Names;
    let serving = std::thread::spawn(move || session.run());

    let at = point.path().join("dir");
    let only_name = OFlags::PATH | OFlags::CLOEXEC;
    let empty = rustix::fs::open(at.join("empty"), only_name, Mode::empty()).unwrap();
    let held = File::open(at.join("7")).unwrap();
    for n in 0..500 {
        fs::symlink_metadata(at.join(n.to_string())).unwrap();
    }
    let table = shared.table();
    std::thread::scope(|scope| {
        scope.spawn(|| pruner.run(table, &metrics));
        let deadline = Instant::now() + Duration::from_secs(60);
        while table.count() > LIMIT && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        shared.stop_pruning();
    });
    assert!(table.count() <= LIMIT, "{} inodes", table.count());
    assert_eq!(path_of(&empty), at.join("empty"));
    assert_eq!(path_of(&held), at.join("7"));
    assert_eq!(fs::read_to_string(at.join("8")).unwrap(), "8");
    drop((empty, held));
    drop(unmount);
    serving.join().unwrap().unwrap();
}
