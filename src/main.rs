//! argv to command to exit code.

use corfs::cli::{self, Command, table};
use corfs::fuse::session::{self, Code, Refusal};
use std::io::Write;
use std::process::ExitCode;

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
        Ok(Command::Stat { path, json }) => session::read_stats(&path).and_then(|text| {
            print(&if json {
                table::json(&text) + "\n"
            } else {
                table::table(&text)
            })
        }),
        Ok(Command::Copy(copying)) => session::copy(&copying),
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

/// Like `println!`, but a reader that has gone away is no panic.
fn print(words: &str) -> Result<(), Refusal> {
    std::io::stdout()
        .write_all(words.as_bytes())
        .map_err(|error| Refusal {
            code: Code::System,
            words: format!("write to standard output: {error}"),
        })
}
