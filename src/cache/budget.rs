//! The budget of a cache directory: the ledger on disk, shared by processes.
//!
//! Locks, all of open file descriptions, on bytes of the ledger that hold nothing:
//!
//! - `TURN`: whoever reads and writes the numbers, for a few system calls.
//! - `SLOTS_FROM` and on: a process holds its slot's byte as long as it lives.
//! - `FOLDERS_FROM` and on: shared by those who change files of a folder, from before the first
//!   change to after the numbers tell it; alone by the one who counts it.
//! - `GATES_FROM` and on: held by the one who counts; who would change files waits at it, so that
//!   the counter is not kept out for ever.
//! - `COUNTING`: held by the one who counts everything. Two at once would both give back what the
//!   same dead had reserved; the second time it would be what others left since.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::fs::{OFlags, StatVfs};

use crate::observe::Metrics;
use crate::sys::ofd::{self, Lock};
use crate::sys::{Errno, Fail, OrFail, Result};

use super::count::{count_fan, count_other};
use super::ledger::{FANS, LEN, Ledger, OTHER, SLOTS, Slot, UNCOUNTED};
use super::options::Share;
use super::place;

pub(super) const TURN: u64 = 1 << 40;
const SLOTS_FROM: u64 = TURN + 16;
const FOLDERS_FROM: u64 = TURN + 1024;
const GATES_FROM: u64 = TURN + 2048;
const COUNTING: u64 = TURN + 4096;

/// How long to wait for numbers or a folder that another process holds: it is at work, or was
/// stopped, and then nothing is stored until it goes on.
const PATIENCE: Duration = Duration::from_secs(2);

/// Rounds of housekeeping that pass at most between two counts of everything that fail.
const IN_VAIN: u32 = 60;

/// Counts of everything that failed one after another.
#[derive(Debug, Default)]
struct Vain {
    /// Rounds to pass before the next one, and how many there were before this one.
    left: u32,
    pause: u32,
}

/// One byte locked.
pub(super) fn byte(kind: i32, at: u64) -> Lock {
    Lock {
        kind,
        start: at,
        end: at,
        pid: 0,
    }
}

/// What became of a wish for room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// The bytes are reserved.
    Reserved,
    /// So many bytes must go first; at least one.
    Short(u64),
    /// The ledger can't be believed until everything was counted.
    Unsure,
}

/// A process's share in the ledger.
#[derive(Debug)]
pub(super) struct Budget {
    root: OwnedFd,
    top: OwnedFd,
    file: OwnedFd,
    /// Another description of the same file, whose locks exclude those of `file`: for counting.
    counter: Mutex<OwnedFd>,
    /// A third one, for who counts everything. Taken first.
    counting: Mutex<OwnedFd>,
    slot: usize,
    free: Share,
    /// Held while this process has its turn: OFD locks do not exclude threads of one description.
    /// Taken last; the ledger is one page of the page cache.
    turn: Mutex<()>,
    /// How many threads change files of a folder; a leaf.
    inside: Box<[Mutex<u32>]>,
    /// Bytes committed and removed since the folder was last counted: what it may be wrong by.
    drift: Box<[AtomicU64]>,
    /// A leaf.
    vain: Mutex<Vain>,
    /// The folder that could not be counted last.
    passed: AtomicUsize,
    /// Reservations of which the ledger could not be told what became of them, by folder: given
    /// back when that one was counted. A leaf.
    owed: Mutex<Vec<(usize, u64)>>,
    metrics: Arc<Metrics>,
}

/// A folder whose files this thread changes.
#[derive(Debug)]
pub(super) struct Inside<'a> {
    budget: &'a Budget,
    folder: usize,
}

impl Drop for Inside<'_> {
    /// Dropping a lock neither fails nor waits.
    fn drop(&mut self) {
        self.budget.leave(self.folder);
    }
}

impl Budget {
    /// Opens the ledger beneath `top` (`v1`) and takes a slot, with `reserved` bytes in it for what
    /// will be made before the first [`Budget::commit`]. `stores`: whether there is anything to be
    /// counted when there is no ledger.
    pub(super) fn open(
        root: BorrowedFd<'_>,
        top: BorrowedFd<'_>,
        place: u64,
        (size, free): (Share, Share),
        (stores, reserved): (bool, u64),
        metrics: Arc<Metrics>,
    ) -> Result<Self> {
        let open = || place::open(top, "ledger", OFlags::RDWR | OFlags::CREATE);
        let mut budget = Self {
            root: root.try_clone_to_owned().or_fail("dup")?,
            top: top.try_clone_to_owned().or_fail("dup")?,
            file: open()?,
            counter: Mutex::new(open()?),
            counting: Mutex::new(open()?),
            slot: SLOTS,
            free,
            turn: Mutex::new(()),
            inside: (0..=FANS).map(|_| Mutex::new(0)).collect(),
            drift: (0..=FANS).map(|_| AtomicU64::new(0)).collect(),
            vain: Mutex::default(),
            passed: AtomicUsize::new(usize::MAX),
            owed: Mutex::default(),
            metrics,
        };
        let total = volume(&budget.statvfs()?);
        let part = Slot {
            reserved,
            limit: size.of(total).max(1),
            ..Slot::default()
        };
        budget.slot = budget.join(place, part, stores)?;
        rustix::fs::fdatasync(&budget.file).or_fail("fdatasync")?;
        Ok(budget)
    }

    fn statvfs(&self) -> Result<StatVfs> {
        rustix::fs::fstatvfs(&self.top).or_fail("fstatvfs")
    }

    /// Takes a free slot for that part, and the ledger into use.
    fn join(&self, place: u64, part: Slot, stores: bool) -> Result<usize> {
        self.have_turn(|ledger, found| {
            if !found {
                *ledger = Ledger::new(place);
                ledger.sure = !stores;
            }
            let dead: Vec<usize> = (0..SLOTS).filter(|&slot| !self.is_alive(slot)).collect();
            if dead.len() == SLOTS {
                ledger.sure &= ledger.clean || ledger.place == place;
                ledger.place = place;
            }
            ledger.clean = false;
            // What the dead had reserved stays so until everything was counted, and that must be:
            // who was killed while he took something away leaves it counted.
            ledger.inherit(&dead);
            let free = dead
                .iter()
                .find(|&&slot| !ledger.slots[slot].is_uncounted());
            let (Some(&free), 2..) = (free, dead.len()) else {
                return Err(Fail::new(Errno::USERS, "cache ledger"));
            };
            ofd::set(self.file.as_fd(), byte(libc::F_WRLCK, slot_byte(free)))?;
            ledger.joins = ledger.joins.wrapping_add(1);
            ledger.slots[free] = Slot {
                pid: std::process::id(),
                join: ledger.joins,
                ..part
            };
            Ok(free)
        })?
    }

    /// Whether a process has that slot: this one's own looks free.
    fn is_alive(&self, slot: usize) -> bool {
        let wish = byte(libc::F_WRLCK, slot_byte(slot));
        slot == self.slot || !matches!(ofd::get(self.file.as_fd(), wish), Ok(None))
    }

    /// Reads the numbers, lets `change` change them, and writes them if it did, while nobody else
    /// can. `change` is also told whether there were any.
    fn have_turn<T>(&self, change: impl FnOnce(&mut Ledger, bool) -> T) -> Result<T> {
        let _turn = self.turn.lock();
        let file = self.file.as_fd();
        let deadline = Instant::now() + PATIENCE;
        ofd::set_by(file, byte(libc::F_WRLCK, TURN), deadline)?;
        let done = Self::change(file, change);
        let unlocked = ofd::set(file, byte(libc::F_UNLCK, TURN));
        let done = done?;
        unlocked.map(|()| done)
    }

    fn change<T>(file: BorrowedFd<'_>, change: impl FnOnce(&mut Ledger, bool) -> T) -> Result<T> {
        let mut bytes = vec![0; LEN];
        let read = place::read_all(file, &mut bytes, 0)?;
        let before = bytes.get(..read).and_then(Ledger::decode);
        let found = before.is_some();
        let mut ledger = before.clone().unwrap_or_else(|| {
            let mut ledger = Ledger::new(0);
            ledger.sure = false;
            ledger
        });
        let value = change(&mut ledger, found);
        if before.as_ref() != Some(&ledger) {
            place::write_all(file, &ledger.encode(), 0)?;
        }
        Ok(value)
    }

    /// The numbers as they are.
    pub(super) fn ledger(&self) -> Result<Ledger> {
        self.have_turn(|ledger, _| ledger.clone())
    }

    /// Reserves `bytes`, and makes sure that as much and, for new files, enough inodes are free.
    pub(super) fn reserve(&self, bytes: u64, new_files: bool) -> Result<Room> {
        let disk = self.statvfs()?;
        let floor = self.free.of(volume(&disk));
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if new_files && disk.f_files > 0 && disk.f_favail < self.inode_floor(&disk) + 2 {
            return Ok(Room::Short(1));
        }
        self.have_turn(|ledger, _| {
            if !ledger.sure {
                return Room::Unsure;
            }
            let wanted = bytes
                .saturating_add(ledger.reserved())
                .saturating_add(floor);
            let short = ledger.excess(bytes).max(wanted.saturating_sub(free));
            if short > 0 {
                return Room::Short(short);
            }
            match ledger.reserve(self.slot, bytes) {
                true => Room::Reserved,
                false => Room::Short(1),
            }
        })
    }

    fn inode_floor(&self, disk: &StatVfs) -> u64 {
        match self.free {
            Share::Percent(_) => self.free.of(disk.f_files),
            Share::Bytes(_) => disk.f_files / 100,
        }
    }

    /// Gives a reservation back: later, when that cannot be done now.
    pub(super) fn release(&self, bytes: u64) -> Result<()> {
        let told = self.have_turn(|ledger, _| ledger.release(self.slot, bytes));
        told.inspect_err(|_| self.owe(OTHER, bytes))
    }

    /// Of `reserved` bytes `taken` are in a folder now, and the rest is given back. When that
    /// cannot be told now, they stay reserved until the folder was counted.
    pub(super) fn commit(&self, folder: usize, reserved: u64, taken: u64) -> Result<()> {
        self.doubt(folder, taken);
        let told = self.have_turn(|ledger, _| ledger.commit(self.slot, folder, reserved, taken));
        told.inspect_err(|_| self.owe(folder, reserved))
    }

    /// That many bytes are gone from a folder. When that cannot be told now, they stay counted
    /// until it was counted.
    pub(super) fn removed(&self, folder: usize, bytes: u64) -> Result<()> {
        self.doubt(folder, bytes);
        let told = self.have_turn(|ledger, _| ledger.removed(folder, bytes));
        told.inspect_err(|_| self.owe(folder, 0))
    }

    /// Has a folder counted before any other, and then gives back what was reserved for it.
    pub(super) fn owe(&self, folder: usize, reserved: u64) {
        self.owed.lock().push((folder, reserved));
        if let Some(drift) = self.drift.get(folder) {
            drift.fetch_max(1 << 62, Ordering::Relaxed);
        }
    }

    /// The number of a folder may be wrong by so many bytes more.
    pub(super) fn doubt(&self, folder: usize, bytes: u64) {
        if let Some(drift) = self.drift.get(folder) {
            drift.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Begins to change files of a folder.
    ///
    /// # Errors
    /// EAGAIN when it is being counted for long.
    pub(super) fn enter(&self, folder: usize) -> Result<Inside<'_>> {
        let deadline = Instant::now() + PATIENCE;
        let file = self.file.as_fd();
        let gate = byte(libc::F_RDLCK, GATES_FROM + folder as u64);
        let shared = byte(libc::F_RDLCK, FOLDERS_FROM + folder as u64);
        let inside = self
            .inside
            .get(folder)
            .ok_or(Fail::new(Errno::INVAL, "cache folder"))?;
        loop {
            if ofd::get(file, gate)?.is_none() {
                let mut count = inside.lock();
                let locked = match *count {
                    0 => ofd::set(file, shared),
                    _ => Ok(()),
                };
                match locked {
                    Ok(()) => {
                        *count += 1;
                        return Ok(Inside {
                            budget: self,
                            folder,
                        });
                    }
                    Err(fail) if fail.errno != Errno::AGAIN => return Err(fail),
                    Err(_) => {}
                }
            }
            if Instant::now() >= deadline {
                return Err(Fail::new(Errno::AGAIN, "cache folder"));
            }
            std::thread::sleep(Duration::from_micros(300));
        }
    }

    fn leave(&self, folder: usize) {
        let Some(inside) = self.inside.get(folder) else {
            return;
        };
        let mut count = inside.lock();
        *count = count.saturating_sub(1);
        if *count == 0 {
            let lock = byte(libc::F_UNLCK, FOLDERS_FROM + folder as u64);
            // Dropping a lock that is held does not fail.
            let _ = ofd::set(self.file.as_fd(), lock);
        }
    }

    /// Counts a folder while nobody changes it, removes what makers left there who were killed,
    /// and corrects the ledger. False when somebody was at work there for long, or counts.
    pub(super) fn count(&self, folder: usize) -> Result<bool> {
        let done = self.alone(folder, || self.count_alone(folder));
        if done.is_err() {
            self.passed.store(folder, Ordering::Relaxed);
        }
        match done {
            Err(fail) if fail.errno == Errno::AGAIN => Ok(false),
            done => done.map(|()| true),
        }
    }

    /// Does something while nobody else changes files of a folder.
    ///
    /// # Errors
    /// EAGAIN when somebody was at work there for long, or is alone with it.
    pub(super) fn alone<T>(&self, folder: usize, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let counter = self.counter.lock();
        let fd = counter.as_fd();
        let gate = GATES_FROM + folder as u64;
        let whole = FOLDERS_FROM + folder as u64;
        ofd::set(fd, byte(libc::F_WRLCK, gate))?;
        let locked = ofd::set_by(fd, byte(libc::F_WRLCK, whole), Instant::now() + PATIENCE);
        let done = locked.and_then(|()| work());
        for at in [whole, gate] {
            ofd::set(fd, byte(libc::F_UNLCK, at))?;
        }
        done
    }

    fn count_alone(&self, folder: usize) -> Result<()> {
        if let Some(drift) = self.drift.get(folder) {
            drift.store(0, Ordering::Relaxed);
        }
        let of_folder = |(of, _): &mut (usize, u64)| *of == folder;
        let owed: Vec<_> = self.owed.lock().extract_if(.., of_folder).collect();
        let counted = match folder {
            OTHER => count_other(self.root.as_fd(), self.top.as_fd(), true),
            fan => count_fan(self.top.as_fd(), fan, true),
        };
        let told = counted.and_then(|bytes| {
            self.have_turn(|ledger, _| {
                ledger.committed[folder] = bytes;
                for (_, reserved) in &owed {
                    ledger.release(self.slot, *reserved);
                }
            })
        });
        // Not counted, it is as it was.
        told.inspect_err(|_| {
            self.owe(folder, owed.iter().map(|(_, reserved)| reserved).sum());
        })
    }

    /// Whether everything must be counted: the ledger is unsure, or somebody died without leaving
    /// it, with bytes reserved or something taken away of which it was not told.
    pub(super) fn must_count(&self) -> Result<bool> {
        let ledger = self.ledger()?;
        let mut slots = ledger.slots.iter().enumerate();
        Ok(!ledger.sure || slots.any(|(n, slot)| slot.is_uncounted() && !self.is_alive(n)))
    }

    /// Whether it is time to count everything: after each time in vain twice as many calls pass, up
    /// to [`IN_VAIN`].
    pub(super) fn may_count_all(&self) -> bool {
        let mut vain = self.vain.lock();
        vain.left = vain.left.saturating_sub(1);
        vain.left == 0
    }

    /// Remembers how counting everything ended.
    pub(super) fn counted_all(&self, done: bool) {
        let mut vain = self.vain.lock();
        vain.pause = match done {
            true => 0,
            false => (2 * vain.pause).clamp(1, IN_VAIN),
        };
        vain.left = vain.pause;
    }

    /// Counts everything, after which the ledger is sure and those who were dead when it began have
    /// nothing. False when it could not be done now, or `go_on` said no.
    pub(super) fn count_all(&self, go_on: impl Fn() -> bool) -> Result<bool> {
        let alone = self.counting.lock();
        let lock = byte(libc::F_WRLCK, COUNTING);
        match ofd::set_by(alone.as_fd(), lock, Instant::now() + PATIENCE) {
            Err(fail) if fail.errno == Errno::AGAIN => return Ok(false),
            locked => locked?,
        }
        let done = self.count_all_alone(go_on);
        ofd::set(alone.as_fd(), byte(libc::F_UNLCK, COUNTING))?;
        done
    }

    fn count_all_alone(&self, go_on: impl Fn() -> bool) -> Result<bool> {
        let before = self.ledger()?;
        let dead: Vec<(usize, Slot)> = (0..SLOTS)
            .filter(|&slot| !self.is_alive(slot))
            .map(|slot| (slot, before.slots[slot]))
            .collect();
        for folder in 0..=FANS {
            if !go_on() || !self.count(folder)? {
                return Ok(false);
            }
        }
        self.have_turn(|ledger, _| {
            ledger.sure = true;
            for (slot, was) in dead {
                // Somebody may have taken the slot meanwhile, moved what was in it, and died too:
                // what that one left was not there when its folder was counted.
                if !self.is_alive(slot) && ledger.slots[slot].join == was.join {
                    ledger.release(slot, was.reserved);
                    ledger.slots[slot].limit = 0;
                }
            }
        })?;
        Ok(true)
    }

    /// The folder whose number may be wrong by most, when it may be wrong by more than `bytes`. One
    /// that could not be counted lets another go first.
    pub(super) fn most_drifted(&self, bytes: u64) -> Option<usize> {
        let passed = self.passed.swap(usize::MAX, Ordering::Relaxed);
        let drifts = self.drift.iter().map(|drift| drift.load(Ordering::Relaxed));
        let drifts = drifts.enumerate().filter(|(folder, _)| *folder != passed);
        let (folder, drift) = drifts.max_by_key(|(_, drift)| *drift)?;
        (drift > bytes).then_some(folder)
    }

    /// Tells the metrics how full the directory is.
    pub(super) fn tell(&self) -> Result<()> {
        let ledger = self.ledger()?;
        self.metrics.set_cache_used(ledger.used(), ledger.limit());
        Ok(())
    }

    /// Leaves the ledger; `synced`: all that was written is on disk, also by those who left
    /// before. What it could not tell is left as the killed leave it.
    pub(super) fn close(&self, synced: bool) -> Result<()> {
        let told = self.owed.lock().is_empty();
        self.have_turn(|ledger, _| {
            let alone = (0..SLOTS).all(|slot| slot == self.slot || !self.is_alive(slot));
            let nothing_left =
                ledger.slots.iter().enumerate().all(|(n, slot)| {
                    slot.reserved == 0 && (n == self.slot || !slot.is_uncounted())
                });
            ledger.clean = synced && alone && nothing_left && told && ledger.sure;
            if let Some(slot) = ledger.slots.get_mut(self.slot) {
                slot.limit = if told { 0 } else { UNCOUNTED };
            }
        })?;
        let unlocked = byte(libc::F_UNLCK, slot_byte(self.slot));
        ofd::set(self.file.as_fd(), unlocked)?;
        rustix::fs::fdatasync(&self.file).or_fail("fdatasync")
    }
}

fn slot_byte(slot: usize) -> u64 {
    SLOTS_FROM + slot as u64
}

/// Bytes of a whole file system.
fn volume(disk: &StatVfs) -> u64 {
    disk.f_blocks.saturating_mul(disk.f_frsize)
}

/// The numbers, and the slots of those who live, without taking part.
pub(super) fn look(top: BorrowedFd<'_>) -> Result<(Ledger, Vec<Slot>)> {
    let file = place::open(top, "ledger", OFlags::RDONLY)?;
    let mut bytes = vec![0; LEN];
    let read = place::read_all(file.as_fd(), &mut bytes, 0)?;
    let ledger = bytes.get(..read).and_then(Ledger::decode);
    let ledger = ledger.ok_or(Fail::new(Errno::INVAL, "cache ledger"))?;
    let mut alive = Vec::new();
    for (slot, value) in ledger.slots.iter().enumerate() {
        let wish = byte(libc::F_WRLCK, slot_byte(slot));
        if ofd::get(file.as_fd(), wish)?.is_some() {
            alive.push(*value);
        }
    }
    Ok((ledger, alive))
}
