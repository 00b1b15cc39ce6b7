//! The SIGBUS guard: for code that must touch mapped bytes itself.
//!
//! A page behind the end of a truncated file, on a failed device or in a hole that a full disk has
//! no block for raises SIGBUS in whoever touches it. [`Map::copy_to`] and [`Map::copy_out`] note
//! what they are about to touch in thread-locals; the handler looks there. For an address in such a
//! range it marks the mapping as poisoned, puts anonymous memory in the place of the file's pages
//! and returns, so that the copy runs to its end; the copy then finds the mark and fails. An
//! address anywhere else is not ours: the handler puts back what it found installed and returns,
//! and the access faults again, into that.

use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering, compiler_fence};

use rustix::mm::{MapFlags, ProtFlags};

use super::map::{Access, RawMap};
use crate::sys::{Errno, Fail, OrFail, Result};

/// A private mapping for the copy engine, outside of the cache and its budget.
///
/// After a fault under the guard it is poisoned: anonymous pages stand where the file's were, so
/// every later use, in any thread, fails with EFAULT.
#[derive(Debug)]
pub struct Map {
    raw: RawMap,
    poisoned: AtomicBool,
}

impl Map {
    /// Maps `len` bytes of a file from `offset` on, shared, to read. They may reach behind the
    /// file's end.
    ///
    /// # Errors
    ///
    /// EINVAL for no bytes, or an offset that is no multiple of the page; EOVERFLOW; what mmap(2)
    /// says.
    pub fn read(fd: BorrowedFd<'_>, offset: u64, len: usize) -> Result<Self> {
        Self::new(fd, offset, len, Access::Read)
    }

    /// Maps `len` bytes of a file that is open for reading and writing, shared, to read and write.
    ///
    /// # Errors
    ///
    /// As [`Map::read`]; EACCES for a descriptor that does not allow it.
    pub fn write(fd: BorrowedFd<'_>, offset: u64, len: usize) -> Result<Self> {
        Self::new(fd, offset, len, Access::Write)
    }

    fn new(fd: BorrowedFd<'_>, offset: u64, len: usize, access: Access) -> Result<Self> {
        let raw = RawMap::new(fd, offset, len, access).or_fail("mmap")?;
        Ok(Self {
            raw,
            poisoned: AtomicBool::new(false),
        })
    }

    /// The length in bytes.
    #[allow(clippy::len_without_is_empty)] // A mapping of no bytes cannot be made.
    pub fn len(&self) -> usize {
        self.raw.len()
    }

    /// Makes the pages of the range present for reading.
    ///
    /// # Errors
    ///
    /// EFAULT behind the end of the file or on an I/O error, EHWPOISON, ENOMEM; EINVAL for a range
    /// outside of the mapping.
    pub fn populate_read(&self, range: Range<usize>) -> Result<()> {
        self.populate(&range, Access::Read)
    }

    /// Makes the pages of the range present for writing, with blocks on disk for holes.
    ///
    /// # Errors
    ///
    /// As [`Map::populate_read`]; EFAULT also for a full disk.
    pub fn populate_write(&self, range: Range<usize>) -> Result<()> {
        if self.raw.access() != Access::Write {
            return Err(Fail::new(Errno::ACCESS, "populate").because("mapped to read only"));
        }
        self.populate(&range, Access::Write)
    }

    fn populate(&self, range: &Range<usize>, access: Access) -> Result<()> {
        self.sound("populate")?;
        self.raw.populate(range, access).or_fail("populate")?;
        self.sound("populate")
    }

    /// Starts the I/O for the range and returns at once. A hint: it cannot fail.
    pub fn will_need(&self, range: Range<usize>) {
        self.raw.will_need(&range);
    }

    /// Takes the pages of the range out of this mapping: they no longer count as memory of this
    /// process, and come again when asked for. A hint: it cannot fail.
    pub fn release(&self, range: Range<usize>) {
        self.raw.release(&range);
    }

    /// pwrite(2) straight from the mapping, once: the kernel copies.
    ///
    /// Returns the bytes written, which may be fewer than asked for.
    ///
    /// # Errors
    ///
    /// What pwrite(2) says, EFAULT for a lost page at the start of the range.
    pub fn pwrite_to(&self, range: Range<usize>, fd: BorrowedFd<'_>, offset: u64) -> Result<usize> {
        self.sound("pwrite")?;
        self.raw.check(&range).or_fail("pwrite")?;
        let written = self
            .raw
            .lend(range, |bytes| rustix::io::pwrite(fd, bytes, offset));
        // Another thread may have poisoned the mapping meanwhile: what was written may be zeros.
        self.sound("pwrite")?;
        written.or_fail("pwrite")
    }

    /// Copies bytes of this mapping to another (or to another place in this one), under the guard.
    ///
    /// # Errors
    ///
    /// EFAULT if a page of either side could not be had; the side is then poisoned and the bytes
    /// copied mean nothing. EINVAL for a range outside of a mapping, EACCES for a destination
    /// mapped to read.
    pub fn copy_to(&self, src: Range<usize>, dst: &Map, dst_at: usize) -> Result<()> {
        let end = dst_at.saturating_add(src.len());
        let dst_range = dst_at..end;
        self.raw.check(&src).or_fail("copy")?;
        dst.raw.check(&dst_range).or_fail("copy")?;
        if dst.raw.access() != Access::Write {
            return Err(Fail::new(Errno::ACCESS, "copy").because("mapped to read only"));
        }
        let (from, to, len) = (self.at(src.start), dst.at(dst_at), src.len());
        guarded([Some((self, src)), Some((dst, dst_range))], || {
            // SAFETY: both ranges lie within their mappings (checked above), `to` within a
            // writable one; `copy` allows them to overlap. The bytes may change under the copy,
            // as those of any shared mapping, which makes the outcome arbitrary bytes but nothing
            // else. Pages that vanish are the guard's business.
            unsafe { copy(from, to, len) }
        })
    }

    /// Copies bytes of this mapping to ordinary memory of the same length, under the guard.
    ///
    /// # Errors
    ///
    /// EFAULT if a page could not be had; this mapping is then poisoned and `buf` holds anything.
    /// EINVAL for a range outside of the mapping, or of another length than `buf`.
    pub fn copy_out(&self, range: Range<usize>, buf: &mut [u8]) -> Result<()> {
        self.raw.check(&range).or_fail("copy")?;
        if range.len() != buf.len() {
            return Err(Fail::new(Errno::INVAL, "copy").because("the lengths differ"));
        }
        let (from, to, len) = (self.at(range.start), buf.as_mut_ptr(), buf.len());
        guarded([Some((self, range)), None], || {
            // SAFETY: the range lies within the mapping, `buf` is exclusively ours and of the same
            // length. What may happen to the mapped bytes is said in `copy_to`.
            unsafe { copy(from, to, len) }
        })
    }

    /// For tests that die of it.
    #[cfg(test)]
    pub(super) fn raw_start(&self) -> *const u8 {
        self.at(0)
    }

    fn at(&self, offset: usize) -> *mut u8 {
        self.raw.start().wrapping_add(offset)
    }

    /// EFAULT if the mapping is poisoned.
    fn sound(&self, operation: &'static str) -> Result<()> {
        if self.poisoned.load(Ordering::SeqCst) {
            return Err(Fail::new(Errno::FAULT, operation).because(
                "a page could not be had: the file shrank, its device failed or is full",
            ));
        }
        Ok(())
    }

    fn protection(&self) -> ProtFlags {
        match self.raw.access() {
            Access::Read => ProtFlags::READ,
            Access::Write => ProtFlags::READ.union(ProtFlags::WRITE),
        }
    }
}

/// memmove, not inlined, so that nothing is assumed about the bytes around the call.
///
/// # Safety
///
/// `len` bytes at `from` are mapped readable and as many at `to` writable.
#[inline(never)]
unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: the caller's promise.
    unsafe { std::ptr::copy(from, to, len) }
}

/// What a guarded copy of this thread may touch of one mapping. Atomics are used not against other
/// threads but against the handler, which interrupts this one: they need no lock, no allocation and
/// no destructor, hence are safe to read there.
struct Guarded {
    /// First address; whole pages.
    start: AtomicUsize,
    /// The address behind the last; equal to `start` where nothing is guarded.
    end: AtomicUsize,
    /// The bits of the mapping's `ProtFlags`.
    protection: AtomicUsize,
    /// The mapping's mark, valid while `start < end`.
    poisoned: AtomicPtr<AtomicBool>,
}

impl Guarded {
    const fn nothing() -> Self {
        Self {
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            protection: AtomicUsize::new(0),
            poisoned: AtomicPtr::new(std::ptr::null_mut()),
        }
    }

    fn arm(&self, map: &Map, range: &Range<usize>) {
        let page = rustix::param::page_size();
        let start = map.at(range.start).addr();
        let end = map.at(range.end).addr().next_multiple_of(page);
        let mark = std::ptr::from_ref(&map.poisoned).cast_mut();
        self.poisoned.store(mark, Ordering::Relaxed);
        let protection = map.protection().bits() as usize;
        self.protection.store(protection, Ordering::Relaxed);
        self.start.store(start - start % page, Ordering::Relaxed);
        self.end.store(end, Ordering::Relaxed);
    }

    fn disarm(&self) {
        self.end.store(0, Ordering::Relaxed);
    }

    /// In the handler: whether `address` is guarded here, and its pages could be replaced.
    fn survive(&self, address: usize) -> bool {
        let (start, end) = (
            self.start.load(Ordering::Relaxed),
            self.end.load(Ordering::Relaxed),
        );
        if !(start..end).contains(&address) {
            return false;
        }
        let mark = self.poisoned.load(Ordering::Relaxed);
        // SAFETY: `guarded` borrows the mapping, and with it its mark, for as long as the range
        // is armed.
        //
        // Marked before the pages are replaced: another thread that reads the replacement must
        // find the mark afterwards, or it would pass zeros off as the file's.
        unsafe { (*mark).store(true, Ordering::SeqCst) };
        // All pages from here to the end go at once: the copy has failed anyway, and page by page
        // a truncated chunk would cost thousands of signals.
        let address = address - address % PAGE.load(Ordering::Relaxed).max(1);
        let protection = self.protection.load(Ordering::Relaxed);
        // SAFETY: whole pages within a mapping that `guarded` borrows, replaced by memory of the
        // same protection. No reference to these bytes exists, and the mapping's own munmap
        // covers whatever stands there by then.
        let replaced = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::without_provenance_mut(address),
                end - address,
                ProtFlags::from_bits_retain(protection as u32),
                MapFlags::PRIVATE | MapFlags::FIXED,
            )
        };
        replaced.is_ok()
    }
}

thread_local! {
    /// Source and destination. Const-initialised and without destructor: reading it in the handler
    /// neither allocates nor registers anything.
    static GUARDED: [Guarded; 2] = const { [Guarded::nothing(), Guarded::nothing()] };
}

/// The size of a page, for the handler.
static PAGE: AtomicUsize = AtomicUsize::new(0);

/// What was installed for SIGBUS before us.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// Runs a copy that touches these ranges and nothing else that is mapped from a file.
fn guarded(touched: [Option<(&Map, Range<usize>)>; 2], copy: impl FnOnce()) -> Result<()> {
    install().or_fail("sigaction")?;
    for (map, _) in touched.iter().flatten() {
        map.sound("copy")?;
    }
    GUARDED.with(|slots| {
        for (slot, (map, range)) in slots.iter().zip(touched.iter().flatten()) {
            slot.arm(map, range);
        }
        // The handler runs in this thread: it is enough that the compiler keeps the order.
        compiler_fence(Ordering::SeqCst);
        copy();
        compiler_fence(Ordering::SeqCst);
        slots.iter().for_each(Guarded::disarm);
    });
    for (map, _) in touched.iter().flatten() {
        map.sound("copy")?;
    }
    Ok(())
}

/// Installs the handler, once in the life of the process.
fn install() -> std::result::Result<(), Errno> {
    static INSTALLED: OnceLock<std::result::Result<(), Errno>> = OnceLock::new();
    *INSTALLED.get_or_init(|| {
        PAGE.store(rustix::param::page_size(), Ordering::Relaxed);
        // Noted before ours is installed, so that ours always finds it.
        let previous = exchange(None)?;
        PREVIOUS.get_or_init(|| previous);
        // SAFETY: all zeros is a valid sigaction: no handler, no flags, an empty mask.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = (on_sigbus as *const ()).addr();
        // On the alternate stack where the thread has one (Rust gives each thread one), since a
        // thread's own may be nearly full. No SA_NODEFER: the handler itself touches no mapping.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        exchange(Some(&action)).map(|_| ())
    })
}

/// sigaction(2) for SIGBUS: installs the new action, if any, and returns the old one.
fn exchange(new: Option<&libc::sigaction>) -> std::result::Result<libc::sigaction, Errno> {
    let new = new.map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: all zeros is a valid sigaction.
    let mut old: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: `new` is null or a valid action, `old` is writable. A handler installed here is
    // `on_sigbus`, which is safe to run at any point of any thread, or one that was installed
    // before.
    if unsafe { libc::sigaction(libc::SIGBUS, new, &raw mut old) } == 0 {
        Ok(old)
    } else {
        Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL))
    }
}

/// Runs between any two instructions of its thread: only system calls and atomics in here.
extern "C" fn on_sigbus(
    _signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    // SAFETY: with SA_SIGINFO the kernel passes a valid siginfo.
    let code = unsafe { (*info).si_code };
    // Broken memory somewhere, not touched yet: nothing to do before it is.
    if code == libc::BUS_MCEERR_AO {
        return;
    }
    // Above zero: the kernel speaks of an access of this thread. Else somebody sent the signal.
    if code > 0 {
        // SAFETY: a SIGBUS of the kernel carries an address.
        let address = unsafe { (*info).si_addr() }.addr();
        let survived = |slots: &[Guarded; 2]| slots.iter().any(|slot| slot.survive(address));
        if GUARDED.try_with(survived).unwrap_or(false) {
            return;
        }
    }
    give_way(code);
}

/// Not ours: puts back what was installed before, into which the access faults again.
fn give_way(code: libc::c_int) {
    // SAFETY: all zeros is a valid sigaction, the default one (SIG_DFL is 0).
    let default: libc::sigaction = unsafe { std::mem::zeroed() };
    let previous = PREVIOUS.get().filter(|_| code > 0).unwrap_or(&default);
    // SAFETY: errno belongs to this thread; the interrupted code must find it as it was.
    let errno = unsafe { *libc::__errno_location() };
    if exchange(Some(previous)).is_err() || code <= 0 {
        // A signal that was sent does not come again by itself. It is blocked until the handler
        // returns, and then does what it does by default: ends the process.
        //
        // SAFETY: raise is async-signal-safe.
        unsafe { libc::raise(libc::SIGBUS) };
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}
