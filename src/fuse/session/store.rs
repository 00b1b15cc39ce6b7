//! The cache of a mount: opened before the mount stands, so that its path is what it was.

use super::check::inside;
use super::place::Place;
use super::refusal::{Refusal, shown};
use super::settings::{Caching, Settings};
use crate::cache::{SourceKey, Store, StoreOptions};
use crate::observe::Metrics;
use crate::sys::{Errno, Fail};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

/// Opens the store that `settings` ask for.
///
/// A directory that can't be a cache is refused. One that is broken, full or of another layout is
/// no reason not to mount: the source serves, and the log says so.
pub(super) fn open(
    settings: &Settings,
    source: &Place,
    target: &Place,
    metrics: &Arc<Metrics>,
) -> Result<Option<Arc<Store>>, Refusal> {
    let Some(caching) = &settings.cache else {
        return Ok(None);
    };
    let dir = shown(&caching.dir);
    refuse_overlap(&caching.dir, source.path(), "the source")?;
    refuse_overlap(&caching.dir, target.path(), "the mountpoint")?;
    let refused = |fail: Fail| Refusal::mount(format!("cache {dir}: {fail}"));
    let key = SourceKey::of(source.as_fd(), caching.id.as_deref()).map_err(refused)?;
    let store = match Store::open(&options(caching, key), metrics.clone()) {
        Ok(store) => store,
        Err(fail) if is_no_refusal(fail.errno) => {
            log::warn!("cache {dir}: {fail}; nothing is cached");
            return Ok(None);
        }
        Err(fail) => return Err(refused(fail)),
    };
    store
        .refuse_overlap(source.as_fd(), "the source")
        .and_then(|()| store.refuse_overlap(target.as_fd(), "the mountpoint"))
        .map_err(refused)?;
    Ok(Some(store))
}

/// Opens the store of a source that is not there.
pub(super) fn open_known(
    settings: &Settings,
    key: SourceKey,
    target: &Place,
    metrics: &Arc<Metrics>,
) -> Result<Arc<Store>, Refusal> {
    let Some(caching) = &settings.cache else {
        return Err(Refusal::mount("a source that is not there needs a cache"));
    };
    let dir = shown(&caching.dir);
    // By name alone: what does not answer must not be asked. It was looked at when it was there.
    for (one, other) in [(target.path(), &*key.path), (&*key.path, target.path())] {
        if one.starts_with(other) {
            return Err(Refusal::mount(format!(
                "source {} and mountpoint {} do not go together; choose a mountpoint elsewhere",
                shown(&key.path),
                shown(target.path())
            )));
        }
    }
    refuse_overlap(&caching.dir, target.path(), "the mountpoint")?;
    let refused = |fail: Fail| Refusal::mount(format!("cache {dir}: {fail}"));
    let store = Store::open(&options(caching, key), metrics.clone()).map_err(refused)?;
    store
        .refuse_overlap(target.as_fd(), "the mountpoint")
        .map_err(refused)?;
    Ok(store)
}

/// Before anything is made: a cache that is read by way of itself, or is hidden by its own mount.
fn refuse_overlap(dir: &Path, other: &Path, what: &str) -> Result<(), Refusal> {
    // It need not be there yet; then it is made in its parent.
    let parent = dir.parent().filter(|parent| *parent != Path::new(""));
    let place = std::fs::canonicalize(dir)
        .or_else(|_| std::fs::canonicalize(parent.unwrap_or(Path::new("."))));
    let Ok(place) = place else { return Ok(()) };
    let how = match (inside(&place, other), inside(other, &place)) {
        (true, _) => "lies inside",
        // The parent of one that is not there yet may well be that of others.
        (_, true) if dir.exists() => "is around",
        _ => return Ok(()),
    };
    Err(Refusal::mount(format!(
        "cache {}: it {how} {what} {}; choose a directory elsewhere",
        shown(dir),
        shown(other)
    )))
}

fn options(caching: &Caching, source: SourceKey) -> StoreOptions {
    StoreOptions {
        size: caching.size,
        free: caching.free,
        block: caching.block,
        verify: caching.verify,
        racy: caching.racy,
        ..StoreOptions::new(caching.dir.clone(), source)
    }
}

/// The disk's trouble, and not a directory that was chosen wrongly.
fn is_no_refusal(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::NOSPC | Errno::DQUOT | Errno::IO | Errno::ROFS | Errno::PROTO | Errno::BUSY
    )
}
