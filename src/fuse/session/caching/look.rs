//! What a cache holds, whether it is right, and whether all that lies there belongs there.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use serde::Serialize;

use super::place::{Target, failed, is_whole};
use super::{complain, print, say, size};
use crate::cache::{EntryInfo, Verified};
use crate::fuse::session::refusal::{Refusal, shown};

/// The whole directory, for programs.
#[derive(Serialize)]
#[serde(tag = "type", rename = "cache")]
struct Whole {
    directory: String,
    used_bytes: u64,
    reserved_bytes: u64,
    limit_bytes: Option<u64>,
    /// Whether these numbers are certain; else all is counted at the next use.
    counted: bool,
    processes: Vec<u32>,
    disk_bytes: u64,
    disk_free_bytes: u64,
}

/// One source, for programs.
#[derive(Serialize)]
#[serde(tag = "type", rename = "store")]
struct Source {
    store: String,
    source: String,
    files: u64,
    whole: u64,
    pinned: u64,
    in_use: u64,
    stored_bytes: u64,
    suspect_blocks: u64,
    allocated_bytes: u64,
}

/// One file, for programs.
#[derive(Serialize)]
#[serde(tag = "type", rename = "file")]
struct Entry<'a> {
    store: &'a str,
    path: String,
    bytes: u64,
    stored_bytes: u64,
    suspect_blocks: u64,
    allocated_bytes: u64,
    block_bytes: u32,
    whole: bool,
    pinned: bool,
    in_use: bool,
    last_used: u64,
    uses: u32,
}

impl<'a> Entry<'a> {
    fn of(store: &'a str, one: &EntryInfo) -> Self {
        Self {
            store,
            path: String::from_utf8_lossy(&one.path).into_owned(),
            bytes: one.identity.size,
            stored_bytes: stored_bytes(one),
            suspect_blocks: one.suspect,
            allocated_bytes: one.allocated,
            block_bytes: one.block,
            whole: is_whole(one),
            pinned: one.pinned,
            in_use: one.in_use,
            last_used: one.last_used,
            uses: one.uses,
        }
    }
}

/// Bytes of the file that are stored; exact when it is stored whole, else whole blocks.
fn stored_bytes(one: &EntryInfo) -> u64 {
    let blocks = one.stored.saturating_mul(u64::from(one.block));
    blocks.min(one.identity.size)
}

/// What there is in all, and of each source.
pub(super) fn status(target: &Target, json: bool) -> Result<(), Refusal> {
    let status = target.dir.status().map_err(failed)?;
    let mut sources = Vec::new();
    for (store, _) in target.stores()? {
        sources.push(Source {
            store: store.name,
            source: store.key,
            files: 0,
            whole: 0,
            pinned: 0,
            in_use: 0,
            stored_bytes: 0,
            suspect_blocks: 0,
            allocated_bytes: 0,
        });
    }
    target.each(|store, _, one| {
        let source = sources.iter_mut().find(|source| source.store == store.name);
        if let Some(source) = source {
            source.files += 1;
            source.whole += u64::from(is_whole(&one));
            source.pinned += u64::from(one.pinned);
            source.in_use += u64::from(one.in_use);
            source.stored_bytes += stored_bytes(&one);
            source.suspect_blocks += one.suspect;
            source.allocated_bytes += one.allocated;
        }
        Ok(())
    })?;
    let whole = Whole {
        directory: target.directory.to_string_lossy().into_owned(),
        used_bytes: status.used,
        reserved_bytes: status.reserved,
        limit_bytes: status.limit,
        counted: status.sure,
        processes: status.processes,
        disk_bytes: status.disk.0,
        disk_free_bytes: status.disk.1,
    };
    if json {
        print(&whole)?;
        return sources.iter().try_for_each(print);
    }
    tell_people(target, &whole, &sources)
}

fn tell_people(target: &Target, whole: &Whole, sources: &[Source]) -> Result<(), Refusal> {
    let limit = whole
        .limit_bytes
        .map(|limit| format!(" of {}", size(limit)));
    let doubt = if whole.counted { "" } else { ", to be counted" };
    say(&format!(
        "cache     {}\nused      {}{}{doubt}; {} free on its disk\nprocesses {}",
        shown(&target.directory),
        size(whole.used_bytes),
        limit.unwrap_or_default(),
        size(whole.disk_free_bytes),
        whole.processes.len()
    ))?;
    for source in sources {
        let suspect = match source.suspect_blocks {
            0 => String::new(),
            blocks => format!(", {blocks} blocks to be checked"),
        };
        say(&format!(
            "\nsource    {}\nfiles     {}, {} whole, {} pinned, {} in use\n\
             stored    {}, {} on disk{suspect}",
            shown(&source.source),
            source.files,
            source.whole,
            source.pinned,
            source.in_use,
            size(source.stored_bytes),
            size(source.allocated_bytes)
        ))?;
    }
    Ok(())
}

/// Every file, a line each.
pub(super) fn list(target: &Target, json: bool) -> Result<(), Refusal> {
    target.each(|store, _, one| match json {
        true => print(&Entry::of(&store.name, &one)),
        false => say(&line(&one)),
    })
}

fn line(one: &EntryInfo) -> String {
    let share = match is_whole(one) {
        true => 100,
        // Not 100 as long as something is missing.
        false => (one.stored.saturating_mul(100) / one.blocks.max(1)).min(99),
    };
    let pinned = if one.pinned { "pinned" } else { "" };
    let path = shown(OsStr::from_bytes(&one.path));
    let bytes = size(one.identity.size);
    format!("{bytes:>12} {share:>3} % {pinned:<6} {path}")
}

/// Compares everything with its checksums. What is wrong is dropped: it is fetched again.
pub(super) fn verify(target: &Target, json: bool) -> Result<(), Refusal> {
    #[derive(Default, Serialize)]
    struct Outcome {
        r#type: &'static str,
        files: u64,
        blocks: u64,
        wrong_blocks: u64,
        unreadable_files: u64,
    }
    let mut all = Outcome {
        r#type: "result",
        ..Outcome::default()
    };
    target.each(|_, view, one| {
        let path = shown(OsStr::from_bytes(&one.path));
        match view.verify(&one.path) {
            Ok(Some(Verified { right, wrong, .. })) => {
                all.files += 1;
                all.blocks += right + wrong;
                all.wrong_blocks += wrong;
                if wrong > 0 {
                    complain(&format!(
                        "cache verify {path}: {wrong} blocks were wrong, and are dropped"
                    ));
                }
            }
            // Evicted meanwhile.
            Ok(None) => {}
            Err(fail) => {
                all.unreadable_files += 1;
                complain(&format!("cache verify {path}: {fail}"));
            }
        }
        Ok(())
    })?;
    if json {
        print(&all)?;
    } else {
        say(&format!(
            "{} files, {} blocks, {} wrong",
            all.files, all.blocks, all.wrong_blocks
        ))?;
    }
    match all.wrong_blocks + all.unreadable_files {
        0 => Ok(()),
        _ => Err(Refusal::usage(format!(
            "cache verify: {} blocks were wrong, {} files could not be read",
            all.wrong_blocks, all.unreadable_files
        ))),
    }
}

/// Removes what belongs to nobody, and counts what there is.
pub(super) fn check(target: &Target, json: bool) -> Result<(), Refusal> {
    #[derive(Serialize)]
    struct Outcome {
        r#type: &'static str,
        files: u64,
        removed: u64,
        miscounted_bytes: u64,
        repaired: bool,
    }
    let report = target.dir.check(true).map_err(failed)?;
    for stranger in &report.strangers {
        complain(&format!("cache check: removed {}", shown(stranger)));
    }
    if json {
        print(&Outcome {
            r#type: "result",
            files: report.entries,
            removed: report.strangers.len() as u64,
            miscounted_bytes: report.miscounted,
            repaired: report.repaired,
        })?;
    } else {
        say(&format!(
            "{} files; removed {} that belong to none; the count was wrong by {}",
            report.entries,
            report.strangers.len(),
            size(report.miscounted)
        ))?;
    }
    match report.repaired {
        true => Ok(()),
        false => Err(Refusal::usage(
            "cache check: not all could be counted, as it is in use; try again",
        )),
    }
}
