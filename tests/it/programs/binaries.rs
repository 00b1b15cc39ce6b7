//! Programs and libraries that lie on the mount: run from there, mapped from there, and busy.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::Who;
use crate::support::{Mount, Scratch, run, sh, wait_until, write_file};

/// A program that asks a library for its number, prints it, and waits for the end of its input.
const PROGRAM: &str = "#include <stdio.h>\nint number(void);\n\
    int main(void) { printf(\"%d\\n\", number()); fflush(stdout); return getchar() != EOF; }\n";

/// Large enough that its last number is on a page of its own, far from the first.
fn library(number: u32) -> String {
    format!(
        "static const int table[100000] = {{[0] = 1, [99999] = {number}}};\n\
         int number(void) {{ return table[99999] * table[0]; }}\n"
    )
}

const BUILD: &str = "
    gcc -O0 -shared -fPIC -o libnumber.so library.c
    gcc -o program program.c -L. -lnumber -Wl,-rpath,'$ORIGIN'
";

fn build(folder: &Path, number: u32) {
    write_file(&folder.join("program.c"), PROGRAM.as_bytes());
    write_file(&folder.join("library.c"), library(number).as_bytes());
    run(&mut sh(folder, &format!("set -e; {BUILD}")));
}

/// A running program that has printed its line; ended on drop.
struct Running(Child);

impl Running {
    #[track_caller]
    fn new(program: &Path, says: &str) -> Self {
        use std::io::{BufRead, BufReader};
        let mut command = Command::new(program);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = None;
        // Of a descriptor that was just closed another test's fork may hold a copy for a moment,
        // and corfs its own until the kernel tells it.
        wait_until("the program runs", Duration::from_secs(20), || {
            match command.spawn() {
                Ok(running) => child = Some(running),
                Err(e) if e.raw_os_error() == Some(libc::ETXTBSY) => {}
                Err(error) => panic!("{}: {error}", program.display()),
            }
            child.is_some()
        });
        let mut this = Self(child.expect("a child"));
        let mut line = String::new();
        let out = this.0.stdout.as_mut().expect("piped");
        BufReader::new(out).read_line(&mut line).expect("a line");
        assert_eq!(line.trim_end(), says);
        this
    }

    /// The files that it has mapped.
    fn mapped(&self) -> String {
        fs::read_to_string(format!("/proc/{}/maps", self.0.id())).expect("maps")
    }

    /// Lets it come to its end by itself.
    #[track_caller]
    fn finish(mut self) {
        drop(self.0.stdin.take());
        assert!(self.0.wait().expect("wait").success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn open(path: &Path, flags: OFlags) -> Result<(), Errno> {
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty()).map(drop)
}

/// A mount of a new source, with the program built through it.
fn built() -> Option<(Scratch, Mount)> {
    let who = Who::Root;
    if !who.can(&["gcc"]) {
        return None;
    }
    let scratch = Scratch::new();
    let source = who.folder(&scratch, "source");
    let mount = who.mount(&source);
    build(mount.path(), 41);
    Some((scratch, mount))
}

#[test]
fn programs_and_libraries_are_mapped_from_the_mount() {
    let Some((_scratch, mount)) = built() else {
        return;
    };
    let program = mount.path().join("program");
    let running = Running::new(&program, "41");
    for name in ["program", "libnumber.so"] {
        let path = mount.path().join(name);
        let path = path.to_str().expect("a plain name");
        assert!(running.mapped().contains(path), "{}", running.mapped());
    }
    // What replaces a library by rename is for those who come later.
    run(&mut sh(mount.path(), "mkdir new"));
    build(&mount.path().join("new"), 42);
    run(&mut sh(mount.path(), "mv new/libnumber.so libnumber.so"));
    running.finish();
    Running::new(&program, "42").finish();
    // From a copy, and after the kernel has dropped all.
    run(&mut sh(mount.path(), "cp program copy"));
    mount.signal(rustix::process::Signal::HUP);
    Running::new(&mount.path().join("copy"), "42").finish();
    Running::new(&mount.source().join("copy"), "42").finish();
}

#[test]
fn a_running_program_is_busy_and_a_file_being_written_does_not_run() {
    let Some((_scratch, mount)) = built() else {
        return;
    };
    let program = mount.path().join("program");
    let running = Running::new(&program, "41");
    let before = fs::read(&program).expect("read");
    for flags in [
        OFlags::WRONLY,
        OFlags::RDWR,
        OFlags::WRONLY | OFlags::TRUNC,
        OFlags::RDWR | OFlags::APPEND,
    ] {
        assert_eq!(open(&program, flags), Err(Errno::TXTBSY), "{flags:?}");
    }
    assert!(
        fs::read(&program).expect("read") == before,
        "it was changed"
    );
    running.finish();
    wait_until("the program is free", Duration::from_secs(20), || {
        open(&program, OFlags::RDWR).is_ok()
    });

    let writer = fs::File::options()
        .write(true)
        .open(&program)
        .expect("open");
    // On the mount, and in the source: corfs has it open for writing there.
    for path in [&program, &mount.source().join("program")] {
        let refused = Command::new(path)
            .output()
            .expect_err("it is being written");
        assert_eq!(Errno::from_io_error(&refused), Some(Errno::TXTBSY));
    }
    drop(writer);
    // A process that another test forks this moment may still hold the descriptor.
    wait_until("the program runs", Duration::from_secs(20), || {
        Command::new(&program).stdin(Stdio::null()).output().is_ok()
    });
}

#[test]
fn a_program_that_runs_from_the_mount_is_not_busy_in_the_source() {
    let Some((_scratch, mount)) = built() else {
        return;
    };
    let running = Running::new(&mount.path().join("program"), "41");
    assert_eq!(open(&mount.source().join("program"), OFlags::RDWR), Ok(()));
    running.finish();
    // And the reverse: the source's own kernel object is busy, and corfs can't open it either.
    let running = Running::new(&mount.source().join("program"), "41");
    let refused = open(&mount.path().join("program"), OFlags::RDWR);
    assert_eq!(refused, Err(Errno::TXTBSY));
    running.finish();
}

/// Whom the mount's kernel lets run a program, it does not tell the file system.
#[test]
fn a_copy_in_place_is_refused_where_the_program_runs_from_the_source_alone() {
    let Some((_scratch, mount)) = built() else {
        return;
    };
    let inplace = || {
        let line = "--inplace --reflink=never library.c program\n";
        fs::write(mount.path().join(".copy"), line)
            .map_err(|error| Errno::from_io_error(&error).expect("an errno"))
    };
    let before = fs::read(mount.source().join("program")).expect("read");
    let running = Running::new(&mount.source().join("program"), "41");
    assert_eq!(inplace(), Err(Errno::TXTBSY));
    running.finish();
    let program = mount.path().join("program");
    assert!(fs::read(&program).expect("read") == before, "changed");
    let running = Running::new(&program, "41");
    assert_eq!(open(&program, OFlags::RDWR), Err(Errno::TXTBSY));
    assert_eq!(inplace(), Ok(()));
    let written = fs::read(mount.source().join("library.c")).expect("read");
    assert!(fs::read(&program).expect("read") == written);
    drop(running);
}
