//! The threads of a store: two that store blocks, one that keeps house, one that looks through
//! what is suspect when nobody else has work.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use crate::sys::{OrFail, Result, priority};

use super::entry::{Entry, Ready};
use super::ledger::usable;
use super::options::Verify;
use super::shelf::Found;
use super::store::Store;

const STORERS: usize = 2;
/// How often the house is looked after.
const ROUND: Duration = Duration::from_secs(1);
/// How often what was stored is written to disk.
const SYNC: Duration = Duration::from_secs(30);
/// A folder is counted again when more than this part of the limit may be wrong.
const DRIFT: u64 = 4096;

/// Starts them.
pub(super) fn start(store: &Arc<Store>) -> Result<Vec<JoinHandle<()>>> {
    let mut threads = Vec::new();
    let mut spawn = |name: &str, work: fn(&Arc<Store>)| -> Result<()> {
        let store = Arc::clone(store);
        let builder = Builder::new().name(name.to_owned());
        threads.push(builder.spawn(move || work(&store)).or_fail("spawn")?);
        Ok(())
    };
    if store.budget.is_some() {
        for _ in 0..STORERS {
            spawn("corfs-store", |store| store.queue.work())?;
        }
        let blocks = store.options.buffers / u64::from(store.options.block);
        store
            .queue
            .open(usize::try_from(blocks / 2).unwrap_or(2).max(2));
        spawn("corfs-cache", |store| keep_house(store))?;
        if store.state().has_suspects() && store.options.verify == Verify::Unclean {
            spawn("corfs-check", |store| {
                // Where that is refused, it competes.
                let _ = priority::idle();
                if let Err(fail) = check_suspects(store) {
                    store.trouble(&fail);
                }
            })?;
        }
    }
    Ok(threads)
}

fn keep_house(store: &Store) {
    let mut synced = Instant::now();
    loop {
        if let Err(fail) = keep_once(store) {
            store.trouble(&fail);
        }
        if synced.elapsed() >= SYNC {
            synced = Instant::now();
            if store.take_dirty()
                && let Err(fail) = store.sync()
            {
                store.trouble(&fail);
            }
        }
        if store.rest(ROUND) {
            return;
        }
    }
}

/// One round of housekeeping.
pub(super) fn keep_once(store: &Store) -> Result<()> {
    let Some(budget) = &store.budget else {
        return Ok(());
    };
    if store.orphans.swap(false, Ordering::Relaxed) && store.shelf.sweep(budget)? > 0 {
        store.orphans.store(true, Ordering::Relaxed);
    }
    if budget.must_count()? && budget.may_count_all() {
        let done = budget.count_all(|| !store.is_closed());
        budget.counted_all(matches!(done, Ok(true)));
        done?;
    }
    let limit = usable(budget.ledger()?.limit());
    if let Some(folder) = budget.most_drifted(limit / DRIFT) {
        budget.count(folder)?;
    }
    budget.tell()
}

/// Holds every suspect block against its checksum, and ends the suspicion when all of them were
/// looked at.
pub(super) fn check_suspects(store: &Arc<Store>) -> Result<()> {
    let suspect_to = store.state().suspect_to;
    for fan in store.shelf.fans()? {
        for name in store.shelf.names(fan)? {
            let Some(header) = store.shelf.header(name)? else {
                continue;
            };
            let Found::Entry(files) = store.shelf.open_entry(name, &header.path)? else {
                continue;
            };
            let entry = Entry::new(Arc::clone(store), name, *files, Instant::now());
            for block in 0..entry.blocks() {
                if store.is_closed() {
                    return Ok(());
                }
                let start = block * entry.block_size();
                entry.check(start..start + 1);
                if entry.state(block) == Ready::Suspect {
                    // No memory was to be had, or the disk said no: suspicion stays.
                    return Ok(());
                }
            }
        }
    }
    store.wrote();
    store.change_state(|state, _| state.checked(suspect_to))
}
