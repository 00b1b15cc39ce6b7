//! argv to command to exit code.

use corfs::bench;
use corfs::cli::{self, Command, table, watch};
use corfs::fuse::session::{self, Code, Refusal};
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

fn main() -> ExitCode {
    let end = match cli::parse(std::env::args_os()) {
        Ok(Command::Mount(settings)) => session::run(&settings),
        Ok(Command::Remount(settings)) => session::remount(&settings),
        Ok(Command::Umount { mountpoint, manner }) => session::umount(&mountpoint, manner),
        Ok(Command::Keep {
            mountpoint,
            device,
            mount,
        }) => session::keep(mountpoint, device, mount),
        Ok(Command::Stat {
            path,
            json,
            watch: Some(interval),
        }) => watch(&path, interval, json),
        Ok(Command::Stat { path, json, .. }) => session::read_stats(&path).and_then(|text| {
            print(&if json {
                table::json(&text) + "\n"
            } else {
                table::table(&text)
            })
        }),
        Ok(Command::Copy(copying)) => session::copy(&copying),
        Ok(Command::Bench(request)) => measured(bench::run(&request)),
        Ok(Command::Replay(replay)) => measured(bench::replay::run(&replay)),
        Ok(Command::Cache(caching)) => session::cache(&caching),
        Ok(Command::Print(words)) => print(&words),
        Err(words) => Err(Refusal::usage(words)),
    };
    match end {
        Ok(()) => ExitCode::SUCCESS,
        Err(Refusal { code, words }) => {
            // Standard error may be closed; the exit code still tells.
            let _ = writeln!(std::io::stderr(), "corfs: {words}");
            ExitCode::from(code as u8)
        }
    }
}

/// Shows what happens on a mount, until it goes or nobody looks any more.
fn watch(path: &Path, interval: Duration, json: bool) -> Result<(), Refusal> {
    let title = format!("corfs on {}", path.display());
    let mount = session::Watched::new(path)?;
    let (mut old, mut looked) = (mount.read()?, Instant::now());
    loop {
        std::thread::sleep(interval);
        let new = mount.read_again()?;
        let now = Instant::now();
        print(&if json {
            table::json(&new) + "\n"
        } else {
            let frame = watch::frame(&old, &new, now.duration_since(looked).as_secs_f64());
            match screen() {
                Some(size) => frame.on_screen(&title, size),
                None => format!("{title}\n\n{frame}\n"),
            }
        })?;
        (old, looked) = (new, now);
    }
}

/// Lines and columns of the terminal that is printed to, as it is now; None where that is none, and
/// views follow each other.
fn screen() -> Option<(usize, usize)> {
    let out = std::io::stdout();
    if !out.is_terminal() {
        return None;
    }
    let size = rustix::termios::tcgetwinsize(&out).ok();
    // One that does not know how large it is (a serial line) is taken to be as they were.
    let size = size.filter(|size| size.ws_row > 0 && size.ws_col > 0);
    Some(size.map_or((24, 80), |size| (size.ws_row.into(), size.ws_col.into())))
}

/// Prints what was found, or says why there is nothing.
fn measured(found: Result<String, bench::Failure>) -> Result<(), Refusal> {
    found
        .map_err(|failure| Refusal {
            code: Code::System,
            words: failure.0,
        })
        .and_then(|words| print(&words))
}

/// Like `println!`, but a reader that has gone away is no panic.
fn print(words: &str) -> Result<(), Refusal> {
    std::io::stdout()
        .write_all(words.as_bytes())
        .map_err(|error| Refusal {
            code: Code::System,
            words: format!("write to standard output: {error}"),
        })
}
