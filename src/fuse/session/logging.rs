//! Where the log goes: standard error, a file, or syslog.

use super::refusal::{Refusal, said, shown};
use env_logger::{Builder, Env, Target, WriteStyle};
use log::{Level, LevelFilter};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::path::Path;

/// The socket of syslogd and of the journal.
const SYSLOG: &str = "/dev/log";

/// `LOG_DAEMON` of syslog(3), shifted into its place.
const FACILITY: u8 = 3 << 3;

/// Where the log goes.
#[derive(Debug)]
pub(super) enum Sink {
    /// Standard error, with colours on a terminal.
    Stderr,
    /// A file, at its end.
    File(File),
    /// The system's log; where there is none, nowhere.
    Syslog,
}

impl Sink {
    /// The file if one is named, else by whether this process stays in the foreground.
    pub(super) fn open(file: Option<&Path>, foreground: bool) -> Result<Self, Refusal> {
        match file {
            Some(path) => OpenOptions::new()
                .append(true)
                .create(true)
                .open(path)
                .map(Self::File)
                .map_err(|e| Refusal::system(format!("log file {}: {}", shown(path), said(e)))),
            None if foreground => Ok(Self::Stderr),
            None => Ok(Self::Syslog),
        }
    }

    /// Sends the log of this process there from now on, panics included.
    ///
    /// `RUST_LOG` decides what is logged; without it everything from `debug` or `info` up.
    pub(super) fn install(self, debug: bool) {
        // fuser::reply calls it an error when nobody waits for a reply any more, as after every
        // signal to a caller; what failed for a caller is logged by the adapter.
        self.install_from(if debug {
            "debug"
        } else {
            "info,fuser::reply=off"
        });
    }

    /// The same with another word for what is logged where `RUST_LOG` says nothing.
    pub(super) fn install_from(self, level: &str) {
        let mut builder = Builder::from_env(Env::default().default_filter_or(level));
        match self {
            Self::Stderr => {}
            Self::File(file) => {
                builder.target(Target::Pipe(Box::new(file)));
                builder.write_style(WriteStyle::Never);
            }
            Self::Syslog => syslog(&mut builder),
        }
        // A second logger in one process is only refused; the first goes on.
        let _ = builder.try_init();
        std::panic::set_hook(Box::new(|panic| log::error!("{panic}")));
    }
}

/// One datagram a record, in the form of syslog(3) without the time, which the receiver adds.
fn syslog(builder: &mut Builder) {
    let Ok(socket) = Syslog::new() else {
        builder.filter_level(LevelFilter::Off);
        return;
    };
    builder
        .target(Target::Pipe(Box::new(socket)))
        .write_style(WriteStyle::Never)
        .format(|out, record| {
            let priority = FACILITY | severity(record.level());
            // Now, not at the start: guardian and server share what was made before they parted.
            let pid = std::process::id();
            writeln!(out, "<{priority}>corfs[{pid}]: {}", record.args())
        });
}

/// Severities of syslog(3).
fn severity(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// Sends each write as one datagram, and never waits nor fails: a log that is full, or away,
/// must not stop a file system.
#[derive(Debug)]
struct Syslog(UnixDatagram);

impl Syslog {
    fn new() -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Self(socket))
    }
}

impl Write for Syslog {
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        // By address each time: a restarted syslogd is found again.
        let _ = self.0.send_to(record.trim_ascii_end(), SYSLOG);
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
