//! What goes when there is no room: whole entries, those first that were not used for long and
//! were not used often.
//!
//! No list of entries is kept anywhere: a few are drawn at random, their use is read from their
//! indexes, and the worst of all that were seen and are still there goes (the way of Redis'
//! `maxmemory-samples`). So it costs no memory, begins at once after a restart, and sees what
//! other processes use.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::sys::Result;

use super::budget::Budget;
use super::count;
use super::layout::{Name, Use};
use super::shelf::{Shelf, Taken};

/// Uses that follow one another within so many seconds are one.
const CORRELATED: u64 = 10;
/// After so many seconds without use half of the uses are forgotten.
const HALF_LIFE: u64 = 7 * 86_400;
/// More uses than this are not told apart: what was used very much must not stay for ever when
/// nobody wants it any more (`tests::policy` has the figures).
const MOST_USES: u32 = 4;

/// Entries drawn from a folder at a time, and candidates remembered.
const DRAWN: usize = 8;
const REMEMBERED: usize = 32;
/// Draws in a row that free nothing, after which every entry is looked at.
const TRIES: usize = 16;
/// How long after looking at every entry in vain before it is done again.
const IN_VAIN: Duration = Duration::from_secs(1);

impl Use {
    /// The use of an entry that is used once more, at `now` (seconds since 1970).
    pub(super) fn again(self, now: u64) -> Self {
        let idle = now.saturating_sub(self.last);
        let uses = match idle {
            0..CORRELATED if self.uses > 0 => self.uses,
            _ => (self.remembered(now) + 1).min(MOST_USES),
        };
        Self { last: now, uses }
    }

    fn remembered(self, now: u64) -> u32 {
        let half_lives = now.saturating_sub(self.last) / HALF_LIFE;
        let halved = self
            .uses
            .min(MOST_USES)
            .checked_shr(half_lives.min(99) as u32);
        halved.unwrap_or(0)
    }

    /// How little an entry is worth: the idle time, divided by the square of its uses. An entry
    /// used once, as by a scan, goes before one used three times that is idle nine times as long.
    pub(super) fn score(self, now: u64) -> u64 {
        let idle = now.saturating_sub(self.last) + 1;
        let uses = u64::from(self.remembered(now).max(1));
        // A fraction of a second still tells two much used entries apart.
        idle.saturating_mul(1 << 16) / (uses * uses)
    }
}

/// An entry that may go.
#[derive(Debug)]
struct Candidate {
    shelf: Arc<Shelf>,
    name: Name,
    used: Use,
}

/// The candidates that were seen, of all stores of the directory.
#[derive(Debug, Default)]
struct Pool {
    shelves: Vec<Arc<Shelf>>,
    candidates: Vec<Candidate>,
    draws: usize,
    in_vain: Option<Instant>,
}

/// Takes entries away.
#[derive(Debug, Default)]
pub(super) struct Evictor {
    /// A leaf: taken out while it is worked with.
    pool: Mutex<Option<Pool>>,
}

impl Evictor {
    /// Frees at least `wanted` bytes: what it freed, and how many entries that took. Less when
    /// nothing more can go.
    pub(super) fn free(
        &self,
        own: &Arc<Shelf>,
        own_name: &str,
        budget: &Budget,
        top: std::os::fd::BorrowedFd<'_>,
        wanted: u64,
    ) -> Result<(u64, u64)> {
        // Two threads that evict at once each draw for themselves; one pool is kept.
        let mut pool = self.pool.lock().take().unwrap_or_default();
        let done = pool.free(own, own_name, budget, top, wanted);
        *self.pool.lock() = Some(pool);
        done
    }
}

impl Pool {
    fn free(
        &mut self,
        own: &Arc<Shelf>,
        own_name: &str,
        budget: &Budget,
        top: std::os::fd::BorrowedFd<'_>,
        wanted: u64,
    ) -> Result<(u64, u64)> {
        let (mut freed, mut entries, mut tries) = (0, 0, 0);
        while freed < wanted && tries < TRIES {
            if self.shelves.is_empty() || self.draws.is_multiple_of(256) {
                self.shelves = shelves(own, own_name, top)?;
            }
            self.draw()?;
            match self.take_worst(budget)? {
                0 => tries += 1,
                bytes => {
                    freed += bytes;
                    entries += 1;
                    tries = 0;
                }
            }
        }
        let rested = self.in_vain.is_none_or(|at| at.elapsed() > IN_VAIN);
        if freed < wanted && rested {
            let (more, of) = self.sweep(budget, wanted - freed)?;
            freed += more;
            entries += of;
            self.in_vain = (freed < wanted).then(Instant::now);
        }
        Ok((freed, entries))
    }

    /// Looks at a few entries of one folder.
    fn draw(&mut self) -> Result<()> {
        self.draws += 1;
        let Some(shelf) = pick(&self.shelves).cloned() else {
            return Ok(());
        };
        let Some(&fan) = pick(&shelf.fans()?) else {
            return Ok(());
        };
        let names = shelf.names(fan)?;
        for _ in 0..DRAWN.min(names.len()) {
            if let Some(&name) = pick(&names)
                && !self
                    .candidates
                    .iter()
                    .any(|candidate| candidate.name == name)
                && let Some(header) = shelf.header(name)?.filter(|header| !header.pinned)
            {
                self.candidates.push(Candidate {
                    shelf: Arc::clone(&shelf),
                    name,
                    used: header.used,
                });
            }
        }
        let now = super::store::now();
        self.candidates
            .sort_by_key(|candidate| candidate.used.score(now));
        let too_many = self.candidates.len().saturating_sub(REMEMBERED);
        self.candidates.drain(..too_many);
        Ok(())
    }

    /// Takes the worst candidate away that is still as it was; the bytes that it freed.
    fn take_worst(&mut self, budget: &Budget) -> Result<u64> {
        while let Some(worst) = self.candidates.pop() {
            let now = worst.shelf.header(worst.name)?.map(|header| header.used);
            // Used since: it will be drawn again with what it is worth now.
            if now != Some(worst.used) {
                continue;
            }
            let how = (false, false, false);
            if let Taken::Freed(bytes) = worst.shelf.take_away(worst.name, budget, how)? {
                return Ok(bytes.max(1));
            }
        }
        Ok(0)
    }

    /// Looks at every entry, until enough is free.
    fn sweep(&mut self, budget: &Budget, wanted: u64) -> Result<(u64, u64)> {
        let (mut freed, mut entries) = (0, 0);
        for shelf in &self.shelves {
            for fan in shelf.fans()? {
                for name in shelf.names(fan)? {
                    if freed >= wanted {
                        return Ok((freed, entries));
                    }
                    let how = (false, false, false);
                    if let Taken::Freed(bytes) = shelf.take_away(name, budget, how)? {
                        freed += bytes.max(1);
                        entries += 1;
                    }
                }
            }
        }
        Ok((freed, entries))
    }
}

/// All stores of the directory; those of others as far as they can be opened.
fn shelves(
    own: &Arc<Shelf>,
    own_name: &str,
    top: std::os::fd::BorrowedFd<'_>,
) -> Result<Vec<Arc<Shelf>>> {
    let mut shelves = vec![Arc::clone(own)];
    for name in count::stores(top.as_fd())? {
        if name != own_name
            && let Ok((shelf, _)) = Shelf::open(top, &name, false)
        {
            shelves.push(Arc::new(shelf));
        }
    }
    Ok(shelves)
}

fn pick<T>(of: &[T]) -> Option<&T> {
    (!of.is_empty())
        .then(|| fastrand::usize(..of.len()))
        .and_then(|at| of.get(at))
}
