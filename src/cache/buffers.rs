//! The memory that blocks on their way are in: bounded, and used again.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use crate::sys::Aligned;

#[derive(Debug, Default)]
struct Stock {
    /// Bytes of all buffers that are out.
    out: u64,
    /// Some that came back.
    spare: Vec<Aligned>,
}

/// Buffers of at most so many bytes together.
#[derive(Debug)]
pub(super) struct Buffers {
    limit: u64,
    /// A leaf.
    stock: Mutex<Stock>,
    back: Condvar,
}

/// A buffer whose first byte is on a page of memory. It goes back when it is dropped.
#[derive(Debug)]
pub(super) struct Buffer {
    home: Arc<Buffers>,
    memory: Aligned,
    len: usize,
}

impl Buffers {
    /// `limit` bytes; one buffer can always be had.
    pub(super) fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self {
            limit,
            stock: Mutex::default(),
            back: Condvar::new(),
        })
    }

    /// A buffer of `len` bytes of no particular value; None when none could be had by `deadline`.
    pub(super) fn get(self: &Arc<Self>, len: usize, deadline: Instant) -> Option<Buffer> {
        let mut stock = self.stock.lock();
        while stock.out > 0 && stock.out.saturating_add(len as u64) > self.limit {
            if self.back.wait_until(&mut stock, deadline).timed_out() {
                return None;
            }
        }
        stock.out += len as u64;
        let fits = |spare: &Aligned| spare.len() >= len;
        let found = stock.spare.iter().position(fits);
        let memory = found.map(|at| stock.spare.swap_remove(at));
        drop(stock);
        // It is given back when it is dropped, also where there is no memory for it.
        let mut buffer = Buffer {
            home: Arc::clone(self),
            memory: memory.unwrap_or_default(),
            len,
        };
        buffer.memory.room(len).ok()?;
        Some(buffer)
    }
}

impl Buffer {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.memory.held()[..self.len]
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        self.memory.held_mut(self.len)
    }
}

impl Drop for Buffer {
    /// Takes a leaf's lock, and fails never.
    fn drop(&mut self) {
        let mut stock = self.home.stock.lock();
        stock.out -= self.len as u64;
        let kept: usize = stock.spare.iter().map(Aligned::len).sum();
        // A quarter is kept between bursts; nothing of what there was no memory for.
        if !self.memory.is_empty() && ((kept + self.memory.len()) as u64) <= self.home.limit / 4 {
            stock.spare.push(std::mem::take(&mut self.memory));
        }
        drop(stock);
        self.home.back.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::sys::aligned::ALIGN;

    #[test]
    fn buffers_are_aligned_bounded_and_come_back() {
        let buffers = Buffers::new(1 << 20);
        let now = Instant::now();
        let mut held: Vec<_> = (0..4).filter_map(|_| buffers.get(256 << 10, now)).collect();
        assert_eq!(held.len(), 4);
        for buffer in &mut held {
            assert_eq!(buffer.bytes_mut().len(), 256 << 10);
            assert_eq!(buffer.bytes().as_ptr() as usize % ALIGN, 0);
        }
        assert!(buffers.get(1, now).is_none());
        let one = held.pop();
        let waiting = std::thread::spawn({
            let buffers = Arc::clone(&buffers);
            move || {
                buffers
                    .get(256 << 10, now + Duration::from_secs(60))
                    .is_some()
            }
        });
        drop(one);
        assert!(waiting.join().unwrap());
        drop(held);
        assert_eq!(buffers.stock.lock().out, 0);
    }

    #[test]
    fn one_buffer_larger_than_all_can_be_had() {
        let buffers = Buffers::new(10);
        let now = Instant::now();
        let large = buffers.get(100, now).unwrap();
        assert!(buffers.get(1, now).is_none());
        drop(large);
        assert!(buffers.get(1, now).is_some());
    }
}
