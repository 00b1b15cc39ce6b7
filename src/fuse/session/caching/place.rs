//! Which cache is meant: by its directory, or by a path in a mount that has one.

use std::fs::Metadata;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::cache::{CacheDir, EntryInfo, Stamp, StoreInfo, StoreView};
use crate::fuse::session::place::Place;
use crate::fuse::session::refusal::{Refusal, said, shown};
use crate::fuse::session::stats;
use crate::sys::mountinfo::unescape;

/// What a command is about: a cache directory, or what lies below a path of one source.
pub(super) struct Target {
    pub(super) directory: PathBuf,
    pub(super) dir: CacheDir,
    below: Option<Below>,
}

/// A path of one source.
struct Below {
    store: String,
    /// Within the source, without a slash at either end; empty for the root.
    path: Vec<u8>,
    /// Where the source's root is seen.
    root: PathBuf,
}

impl Target {
    /// What `place` means; the user's own cache without one.
    pub(super) fn of(place: Option<&Path>) -> Result<Self, Refusal> {
        let Some(place) = place else {
            return Self::open(&default_directory()?, None);
        };
        let opened = Place::of_any(place).map_err(|error| refused(place, error))?;
        let mount = opened.mount().map_err(|error| refused(place, error))?;
        if mount.is_corfs() {
            return Self::within(place);
        }
        Self::open(place, None)
    }

    /// The cache of the mount that `path` lies in, and the path within its source.
    pub(super) fn within(path: &Path) -> Result<Self, Refusal> {
        let failed = |error| refused(path, error);
        let place = Place::of_any(path).map_err(failed)?;
        let mount = place.mount().map_err(failed)?;
        if !mount.is_corfs() {
            let words = format!("cache {}: not in a corfs mount", shown(path));
            return Err(Refusal::usage(words));
        }
        // A bind mount shows what lies below `mount.root`.
        let below = place
            .path()
            .strip_prefix(&mount.mountpoint)
            .unwrap_or(Path::new(""));
        let inner = mount.root.strip_prefix("/").unwrap_or(Path::new(""));
        let mut inside = inner.to_owned();
        inside.extend(below.components());
        let root = stats::root(mount).map_err(failed)?;
        let config = root.join(".corfs/config");
        let text = std::fs::read(&config).map_err(|error| refused(&config, error))?;
        let (directory, store) = cache_of(&text).ok_or_else(|| {
            Refusal::usage(format!("cache {}: the mount has no cache", shown(path)))
        })?;
        let path = inside.into_os_string().into_vec();
        Self::open(&directory, Some(Below { store, path, root }))
    }

    fn open(directory: &Path, below: Option<Below>) -> Result<Self, Refusal> {
        let dir = CacheDir::open(directory)
            .map_err(|fail| Refusal::usage(format!("cache {}: {fail}", shown(directory))))?;
        Ok(Self {
            directory: directory.to_owned(),
            dir,
            below,
        })
    }

    /// The stores that it is about.
    pub(super) fn stores(&self) -> Result<Vec<(StoreInfo, StoreView<'_>)>, Refusal> {
        let mut stores = self.dir.stores().map_err(failed)?;
        stores.sort_by(|a, b| a.name.cmp(&b.name));
        stores
            .into_iter()
            .filter(|store| {
                let below = self.below.as_ref();
                below.is_none_or(|below| below.store == store.name)
            })
            .map(|store| {
                let view = self.dir.store(&store.name).map_err(failed)?;
                Ok((store, view))
            })
            .collect()
    }

    /// Whether it is about that path of a store.
    pub(super) fn holds(&self, path: &[u8]) -> bool {
        self.below.as_ref().is_none_or(|below| {
            let rest = path.strip_prefix(below.path.as_slice());
            below.path.is_empty() || rest.is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
        })
    }

    /// Calls `each` for every entry that it is about.
    pub(super) fn each(
        &self,
        mut each: impl FnMut(&StoreInfo, &StoreView<'_>, EntryInfo) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        for (store, view) in self.stores()? {
            let mut done = Ok(());
            view.entries(|entry| {
                if self.holds(&entry.path) {
                    done = each(&store, &view, entry);
                }
                done.is_ok()
            })
            .map_err(failed)?;
            done?;
        }
        Ok(())
    }

    /// Whether a file of the mount is stored whole, as it is now, in that store.
    pub(super) fn is_whole(&self, store: &StoreView<'_>, path: &Path, meta: &Metadata) -> bool {
        let Some(below) = &self.below else {
            return false;
        };
        // The file itself may be a name of another: only the way to it is looked through.
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return false;
        };
        let Ok(path) = parent.canonicalize().map(|parent| parent.join(name)) else {
            return false;
        };
        let Ok(inner) = path.strip_prefix(&below.root) else {
            return false;
        };
        let entry = store.entry(inner.as_os_str().as_bytes()).ok().flatten();
        entry.is_some_and(|entry| is_whole(&entry) && is_version(&entry, meta))
    }
}

/// Whether every block is stored.
pub(super) fn is_whole(entry: &EntryInfo) -> bool {
    entry.stored == entry.blocks
}

fn is_version(entry: &EntryInfo, meta: &Metadata) -> bool {
    let stamp = |seconds: i64, nanos: i64| Stamp {
        seconds,
        nanos: u32::try_from(nanos).unwrap_or(0),
    };
    entry.identity.size == meta.size()
        && entry.identity.mtime == stamp(meta.mtime(), meta.mtime_nsec())
        && entry.identity.ctime == stamp(meta.ctime(), meta.ctime_nsec())
}

pub(super) fn failed(fail: crate::sys::Fail) -> Refusal {
    Refusal::system(format!("cache: {fail}"))
}

/// Directory and store that a mount's `.corfs/config` names.
fn cache_of(config: &[u8]) -> Option<(PathBuf, String)> {
    let value = |key: &[u8]| {
        config
            .split(|&b| b == b'\n')
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(b"="))
    };
    let directory = PathBuf::from(unescape(value(b"cache")?));
    let store = unescape(value(b"cache_store")?).into_vec();
    Some((directory, String::from_utf8(store).ok()?))
}

fn refused(path: &Path, error: std::io::Error) -> Refusal {
    Refusal::system(format!("cache {}: {}", shown(path), said(error)))
}

/// Where a cache lies by convention.
fn default_directory() -> Result<PathBuf, Refusal> {
    if rustix::process::geteuid().is_root() {
        return Ok("/var/cache/corfs".into());
    }
    let absolute = |name: &str| {
        let path = PathBuf::from(std::env::var_os(name)?);
        path.is_absolute().then_some(path)
    };
    absolute("XDG_CACHE_HOME")
        .or_else(|| Some(absolute("HOME")?.join(".cache")))
        .map(|folder| folder.join("corfs"))
        .ok_or_else(|| Refusal::usage("cache: which? Neither XDG_CACHE_HOME nor HOME is set"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_names_directory_and_store() {
        let config = b"version=1\ncache=/a\\040b\ncache_size=3\ncache_store=0af\n";
        assert_eq!(cache_of(config), Some(("/a b".into(), "0af".into())));
        assert_eq!(cache_of(b"version=1\ncache_size=3\n"), None);
    }
}
