//! The options of the cache.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Duration;

use super::Draft;
use crate::cache::{BLOCK, BLOCKS, Share, Verify};
use crate::cli::size;
use crate::fuse::session::Caching;
use crate::mirror::{Coherence, Passthrough, Validate};

/// How far is fetched ahead unless it is said otherwise, in bytes.
pub(super) const PREFETCH: u64 = 8 << 20;

/// How long nobody must have asked for the source unless it is said otherwise.
pub(super) const SOURCE_IDLE: Duration = Duration::from_secs(30);

/// The longest name of a source, in bytes.
const LONGEST_ID: usize = 200;

/// What has been said of the cache.
#[derive(Clone, Debug, Default)]
pub(super) struct Words {
    pub(super) dir: Option<PathBuf>,
    pub(super) id: Option<String>,
    pub(super) size: Option<Share>,
    pub(super) free: Option<Share>,
    pub(super) block: Option<u32>,
    pub(super) verify: Option<Verify>,
    pub(super) racy: Option<Duration>,
    pub(super) prefetch: Option<u64>,
    pub(super) validate: Option<Validate>,
    pub(super) offline: Option<bool>,
    pub(super) source_idle: Option<Option<Duration>>,
}

impl Words {
    /// The options that mean nothing without a cache, and whether they were given.
    fn given(&self) -> [(&'static str, bool); 10] {
        [
            ("cache_id", self.id.is_some()),
            ("cache_size", self.size.is_some()),
            ("cache_free", self.free.is_some()),
            ("block", self.block.is_some()),
            ("verify", self.verify.is_some()),
            ("racy", self.racy.is_some()),
            ("prefetch", self.prefetch.is_some()),
            ("validate", self.validate.is_some()),
            ("offline", self.offline.is_some()),
            ("source_idle", self.source_idle.is_some()),
        ]
    }
}

impl Draft {
    /// The cache, if there is to be one.
    pub(super) fn caching(&self) -> Result<Option<Caching>, String> {
        let words = &self.cache;
        let Some(dir) = &words.dir else {
            let lost = words.given().into_iter().find(|(_, given)| *given);
            return match lost {
                Some((name, _)) => Err(format!(
                    "option {name}: there is no cache; add cache=DIR, or leave it out"
                )),
                None => Ok(None),
            };
        };
        if self.coherence == Coherence::Strict {
            return Err(
                "options cache and coherence=strict: strict asks the source every time; leave out \
                 one of them"
                    .into(),
            );
        }
        if words.offline == Some(false) && words.source_idle.is_some() {
            return Err(
                "options offline=never and source_idle: only offline=auto lets go of the source; \
                 leave out one of them"
                    .into(),
            );
        }
        // The daemon changes to `/`, and whoever reads its configuration is elsewhere too.
        let absolute = std::path::absolute(dir);
        Ok(Some(Caching {
            dir: absolute.map_err(|error| format!("option cache={}: {error}", dir.display()))?,
            id: words.id.clone(),
            size: words.size.unwrap_or(Share::Percent(10)),
            free: words.free.unwrap_or(Share::Percent(5)),
            block: words.block.unwrap_or(BLOCK),
            verify: words.verify.unwrap_or_default(),
            racy: words.racy.unwrap_or(Duration::from_secs(2)),
        }))
    }

    /// Which files the kernel is to serve by itself.
    pub(super) fn passthrough(&self) -> Result<Passthrough, String> {
        match (self.passthrough, &self.cache.dir) {
            (Some(Passthrough::Always), Some(_)) => Err(
                "options cache and passthrough=always: what the kernel reads from the source by \
                 itself is not cached; use passthrough=cached"
                    .into(),
            ),
            (Some(Passthrough::Cached), None) => Err(
                "option passthrough=cached: there is no cache; add cache=DIR, or use \
                 passthrough=always"
                    .into(),
            ),
            (Some(said), _) => Ok(said),
            (None, Some(_)) => Ok(Passthrough::Cached),
            (None, None) => Ok(Passthrough::Never),
        }
    }
}

pub(super) fn id(value: &OsStr) -> Result<String, &'static str> {
    let right = "must be a name of 1 to 200 bytes of text, without line ends";
    let text = OsString::from(value).into_string().map_err(|_| right)?;
    let fits = (1..=LONGEST_ID).contains(&text.len()) && !text.contains(char::is_control);
    fits.then_some(text).ok_or(right)
}

pub(super) fn share(value: &OsStr) -> Result<Share, &'static str> {
    let right = "must be a size (K, M, G and T are powers of 1024), or 0% to 100%";
    let text = value.to_str().ok_or(right)?;
    match text.strip_suffix('%') {
        Some(number) => {
            let percent = number.parse().ok().filter(|percent| *percent <= 100);
            percent.map(Share::Percent).ok_or(right)
        }
        None => size::bytes(text).map(Share::Bytes).ok_or(right),
    }
}

pub(super) fn block(value: &OsStr) -> Result<u32, &'static str> {
    value
        .to_str()
        .and_then(size::bytes)
        .and_then(|size| u32::try_from(size).ok())
        .filter(|size| BLOCKS.contains(size) && size.is_power_of_two())
        .ok_or("must be a power of two from 64K to 16M")
}

pub(super) fn prefetch(value: &OsStr) -> Result<u64, &'static str> {
    let size = value.to_str().and_then(size::bytes);
    size.filter(|size| *size <= 1 << 30)
        .ok_or("must be a size of at most 1G")
}

pub(super) fn validate(value: &OsStr) -> Result<Validate, &'static str> {
    let right = "must be open, never, or ttl: and seconds";
    match value.to_str().ok_or(right)? {
        "open" => Ok(Validate::Open),
        "never" => Ok(Validate::Never),
        text => {
            let time = text.strip_prefix("ttl:").and_then(size::seconds);
            time.map(Validate::After).ok_or(right)
        }
    }
}
