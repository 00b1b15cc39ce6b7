//! Memory of this process as the system sees it.

use rustix::param::page_size;

/// What each of the allocator's arenas may keep at its end, in bytes.
#[cfg(target_env = "gnu")]
const KEPT: i32 = 1 << 20;

/// Lets no arena keep more than a mebibyte at its end: left alone, the allocator raises that to
/// twice the largest block that was ever freed (mallopt(3)), and [`trim`] passes over the ends of
/// all arenas but the first.
pub fn keep_little() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes two numbers, and the allocator's own locks.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
    }
}

/// Gives memory that was freed back to the system: the allocator keeps it, in the hope of more
/// use (malloc_trim(3)). Takes some milliseconds a million blocks.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes a number, and the allocator's own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Resident memory of this process in bytes, heap and mapped files together (proc_pid_statm(5)).
/// `None` where procfs does not tell.
pub fn resident() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
    Some(pages * page_size() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_touched_is_resident() {
        let block = std::hint::black_box(vec![1u8; 16 << 20]);
        assert!(resident().unwrap() > block.len() as u64);
        drop(block);
        trim();
    }
}
