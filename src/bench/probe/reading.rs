//! Reading a file, or many, in one pattern or another.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::random;
use crate::sys::{Aligned, Errno, Fail, OrFail, Result};
use crate::window::Map;

/// Which bytes are read, and how.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(in crate::bench) enum Pattern {
    /// From one end to the other; several readers share the file.
    Sequential,
    /// Anywhere, at multiples of a request.
    Random,
    /// Every eighth request of the file, from one end to the other.
    Strided,
    /// Each file of a folder is opened, read and closed.
    SmallFiles,
    /// From one end to the other, through a mapping of the reader's.
    MappedSequential,
    /// Anywhere, through a mapping of the reader's.
    MappedRandom,
}

/// A file that is open, or the names of a folder.
#[derive(Debug)]
pub(super) struct Reading {
    pattern: Pattern,
    block: u64,
    requests: u64,
    files: Vec<PathBuf>,
    file: Option<(File, u64)>,
}

impl Reading {
    /// Finds and opens what is to be read; that is no part of the measurement.
    pub(super) fn new(
        path: &Path,
        pattern: Pattern,
        block: u64,
        direct: bool,
        requests: u64,
    ) -> Result<Self> {
        let mut reading = Self {
            pattern,
            block,
            requests,
            files: Vec::new(),
            file: None,
        };
        if pattern == Pattern::SmallFiles {
            for entry in fs::read_dir(path).or_fail("list the files")? {
                reading.files.push(entry.or_fail("list the files")?.path());
            }
            reading.files.sort();
            return Ok(reading);
        }
        let flags = if direct { libc::O_DIRECT } else { 0 };
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(path)
            .or_fail("open")?;
        let size = file.metadata().or_fail("fstat")?.len();
        if size < block {
            return Err(Fail::new(Errno::INVAL, "read").because("the file is less than a request"));
        }
        reading.file = Some((file, size));
        Ok(reading)
    }

    /// All readers at once; each reads a part of its own where there is one.
    pub(super) fn all(&self, readers: usize) -> Result<()> {
        if readers == 1 {
            return self.one(0, 1);
        }
        std::thread::scope(|scope| {
            let started: Vec<_> = (0..readers)
                .map(|reader| scope.spawn(move || self.one(reader, readers)))
                .collect();
            started.into_iter().try_for_each(|reader| {
                reader
                    .join()
                    .unwrap_or_else(|_| Err(Fail::new(Errno::IO, "read").because("a panic")))
            })
        })
    }

    fn one(&self, reader: usize, readers: usize) -> Result<()> {
        let mut memory = Aligned::default();
        let buffer = memory.room(self.block as usize)?;
        let Some((file, size)) = &self.file else {
            return self.small_files(reader, readers, buffer);
        };
        let places = self.places(*size, reader, readers);
        match self.pattern {
            Pattern::MappedSequential | Pattern::MappedRandom => {
                let length = usize::try_from(*size).or_else(|_| too_large())?;
                let map = Map::read(file.as_fd(), 0, length)?;
                places.into_iter().try_for_each(|at| {
                    let at = at as usize;
                    map.copy_out(at..at + buffer.len(), buffer)
                })
            }
            _ => places
                .into_iter()
                .try_for_each(|at| read_whole(file, buffer, at)),
        }
    }

    /// Where each request begins; a last one that would be shorter is left out.
    pub(super) fn places(&self, size: u64, reader: usize, readers: usize) -> Vec<u64> {
        let all = size / self.block;
        let (reader, readers) = (reader as u64, readers as u64);
        let whole = |step: u64| {
            let part = all.div_ceil(readers);
            let mine = part * reader..(part * (reader + 1)).min(all);
            mine.step_by(step as usize).map(|at| at * self.block)
        };
        match self.pattern {
            Pattern::Random | Pattern::MappedRandom => {
                let mut random = random();
                // Each reader goes its own way.
                (0..reader).for_each(|_| random = random.fork());
                let place = |_| random.u64(..all) * self.block;
                (0..self.requests).map(place).collect()
            }
            Pattern::Strided => whole(8).collect(),
            _ => whole(1).collect(),
        }
    }

    fn small_files(&self, reader: usize, readers: usize, buffer: &mut [u8]) -> Result<()> {
        for path in self.files.iter().skip(reader).step_by(readers) {
            let file = File::open(path).or_fail("open")?;
            let mut at = 0;
            loop {
                match file.read_at(buffer, at).or_fail("read")? {
                    0 => break,
                    count => at += count as u64,
                }
            }
        }
        Ok(())
    }
}

fn too_large() -> Result<usize> {
    Err(Fail::new(Errno::OVERFLOW, "mmap"))
}

fn read_whole(file: &File, buffer: &mut [u8], at: u64) -> Result<()> {
    // O_DIRECT takes no odd rest: what is short is asked for again from where it stands.
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], at + done as u64) {
            Ok(0) => return Err(Fail::new(Errno::IO, "read").because("the file has shrunk")),
            Ok(count) => done += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).or_fail("read"),
        }
    }
    Ok(())
}
