//! Who copies.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::stage::Stage;

/// The word by which this program runs [`mcopy2`] in a process of its own.
pub(crate) const HISTORIC: &str = "--mcopy2";
/// The chunk of APUE's `mcopy2`.
const GIB: u64 = 1 << 30;
/// Bytes that stay in the processor's cache, and enough for a call to cost nothing beside them.
const HOT: usize = 256 << 10;

/// A program and its words.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    name: PathBuf,
    words: Vec<OsString>,
}

impl Program {
    /// By name: also from the folder of peers that the script has built.
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: find(name).unwrap_or_else(|| name.into()),
            words: Vec::new(),
        }
    }

    /// More words.
    pub(crate) fn words<const N: usize>(mut self, words: [&str; N]) -> Self {
        self.words.extend(words.map(OsString::from));
        self
    }

    /// Ready to be started in `folder`.
    pub(crate) fn command(&self, folder: &Path) -> Command {
        let mut command = Command::new(&self.name);
        command.args(&self.words).current_dir(folder);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }
}

fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let peers = concat!(env!("CARGO_MANIFEST_DIR"), "/target/peers/bin");
    std::env::split_paths(&path)
        .chain([PathBuf::from(peers)])
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

type Words = Box<dyn Fn(&str, &str) -> Program>;

enum Way {
    /// In the source, beside the mount.
    Program(Words),
    /// In the mount.
    Within(Words),
    /// By the mount's `.copy`, with these options.
    Line(String),
    /// A loop of this program.
    Here(fn(&Path, &Path)),
}

/// One who copies `from` to `to`, both names in the stage's folder.
pub(crate) struct Competitor {
    pub(crate) name: &'static str,
    way: Way,
}

impl Competitor {
    pub(crate) fn program(
        name: &'static str,
        words: impl Fn(&str, &str) -> Program + 'static,
    ) -> Self {
        Self {
            name,
            way: Way::Program(Box::new(words)),
        }
    }

    /// `corfs copy`, straight to the engine.
    pub(crate) fn corfs(name: &'static str, options: &'static [&'static str]) -> Self {
        Self::program(name, |from, to| {
            let mut program = Program::new(env!("CARGO_BIN_EXE_corfs")).words(["copy"]);
            program.words.extend(options.iter().map(OsString::from));
            program.words([from, to])
        })
    }

    pub(crate) fn within(
        name: &'static str,
        words: impl Fn(&str, &str) -> Program + 'static,
    ) -> Self {
        Self {
            name,
            way: Way::Within(Box::new(words)),
        }
    }

    pub(crate) fn line(name: &'static str, options: &str) -> Self {
        Self {
            name,
            way: Way::Line(options.into()),
        }
    }

    pub(crate) fn here(name: &'static str, copy: fn(&Path, &Path)) -> Self {
        Self {
            name,
            way: Way::Here(copy),
        }
    }

    /// Whether its program is installed; says so if not.
    pub(crate) fn is_there(&self) -> bool {
        let Way::Program(words) = &self.way else {
            return true;
        };
        let there = words("", "").name.is_file();
        if !there {
            println!("{} is missing: not compared", self.name);
        }
        there
    }

    /// Copies; panics when that fails.
    pub(crate) fn run(&self, stage: &Stage, from: &str, to: &str) {
        match &self.way {
            Way::Program(words) => finish(self.name, words(from, to).command(&stage.source)),
            Way::Within(words) => finish(self.name, words(from, to).command(&stage.mount.at)),
            Way::Line(options) => tell(&stage.mount.at, &format!("{options} {from} {to}")),
            Way::Here(copy) => copy(&stage.source.join(from), &stage.source.join(to)),
        }
    }

    /// Starts copying in another process; `None` for those who have none.
    pub(crate) fn start(&self, stage: &Stage, from: &str, to: &str) -> Option<Child> {
        let mut command = match &self.way {
            Way::Program(words) => words(from, to).command(&stage.source),
            Way::Within(words) => words(from, to).command(&stage.mount.at),
            Way::Line(options) => {
                let line = format!("echo '{options} {from} {to}' > .copy");
                let shell = Program::new("sh").words(["-c", &line]);
                shell.command(&stage.mount.at)
            }
            Way::Here(_) => return None,
        };
        Some(command.stderr(Stdio::null()).spawn().expect("start"))
    }
}

fn finish(name: &str, mut command: Command) {
    let out = command.output().unwrap_or_else(|e| panic!("{name}: {e}"));
    assert!(
        out.status.success(),
        "{name} ended with {}: {}",
        out.status,
        String::from_utf8_lossy(&out.stderr)
    );
}

/// Writes a line into the `.copy` of a mount.
fn tell(mount: &Path, line: &str) {
    let mut file = OpenOptions::new()
        .write(true)
        .open(mount.join(".copy"))
        .expect("open .copy");
    file.write_all(format!("{line}\n").as_bytes())
        .unwrap_or_else(|e| panic!("{line} by .copy: {e}"));
}

fn both(from: &Path, to: &Path) -> (File, File) {
    let from = File::open(from).expect("open the source");
    let to = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(to)
        .expect("make the copy");
    (from, to)
}

/// The system call in a loop; where the file system can, it shares extents.
pub(crate) fn copy_file_range(from: &Path, to: &Path) {
    let (from, to) = both(from, to);
    let most = 1 << 30;
    while rustix::fs::copy_file_range(&from, None, &to, None, most).expect("copy_file_range") > 0 {}
}

/// What no copy by write(2) can do without: as many bytes as the source has, written from a buffer
/// that the processor's cache holds, and read from nowhere.
pub(crate) fn write_alone(from: &Path, to: &Path) {
    let (from, to) = both(from, to);
    let size = from.metadata().expect("fstat").len();
    let buffer = vec![0x5au8; HOT];
    let mut at = 0;
    while at < size {
        let length = (size - at).min(HOT as u64) as usize;
        to.write_all_at(&buffer[..length], at).expect("write");
        at += length as u64;
    }
}

/// [`mcopy2`] with its chunk, in a process of its own as cp is.
pub(crate) fn run_mcopy2(from: &Path, to: &Path) {
    finish("mcopy2", historic(from, to));
}

/// The command for it.
pub(crate) fn historic(from: &Path, to: &Path) -> Command {
    let own = std::env::current_exe().expect("the name of this program");
    let mut command = Command::new(own);
    command.arg(HISTORIC).arg(from).arg(to).arg(GIB.to_string());
    command
}

/// The program of APUE 3rd ed. 14.8: chunk by chunk both files are mapped, and memory is copied.
pub(crate) fn mcopy2(from: &Path, to: &Path, chunk: u64) {
    let (from, to) = both(from, to);
    let size = from.metadata().expect("fstat").len();
    to.set_len(size).expect("ftruncate");
    let mut at = 0;
    while at < size {
        let length = chunk.min(size - at) as usize;
        let source = map(&from, libc::PROT_READ, at, length);
        let target = map(&to, libc::PROT_READ | libc::PROT_WRITE, at, length);
        // SAFETY: both mappings are `length` bytes, do not overlap, and nobody truncates the files
        // of a bench.
        unsafe {
            std::ptr::copy_nonoverlapping(source.cast::<u8>(), target.cast::<u8>(), length);
            libc::munmap(source, length);
            libc::munmap(target, length);
        }
        at += length as u64;
    }
}

fn map(file: &File, rights: libc::c_int, offset: u64, length: usize) -> *mut libc::c_void {
    let offset = offset.cast_signed();
    // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            rights,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            offset,
        )
    };
    assert!(
        at != libc::MAP_FAILED,
        "mmap: {}",
        std::io::Error::last_os_error()
    );
    at
}
