//! Words of the command line and of `-o`, parsed into plain values. Nothing here touches a file.

mod bench;
mod caching;
mod draft;
mod ids;
mod list;
mod size;
pub mod table;
pub mod watch;

use crate::bench::Request;
use crate::bench::replay::Replay;
use crate::copy::language::args;
use crate::fuse::session::{CacheCommand, Copying, KEEPER_OPTION, Manner, Settings, Telling};
use clap::builder::OsStringValueParser;
use clap::{Arg, ArgAction, ArgMatches, Command as Clap};
use draft::{Draft, VALUED};
use list::Word;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// `corfs SOURCE MOUNTPOINT`
    Mount(Box<Settings>),
    /// `corfs SOURCE MOUNTPOINT -o remount,...`, as mount(8) asks
    Remount(Box<Settings>),
    /// `corfs umount MOUNTPOINT`
    Umount {
        /// Where.
        mountpoint: PathBuf,
        /// Whether to wait for the users.
        manner: Manner,
    },
    /// What a daemon with `auto_unmount` starts: unmount when standard input has ended.
    Keep {
        /// Where.
        mountpoint: PathBuf,
        /// Major and minor number of the mount's device: no other is touched.
        device: (u32, u32),
        /// The mount's own number, where the kernel has told one.
        mount: Option<u64>,
    },
    /// `corfs stat MOUNTPOINT`
    Stat {
        /// Somewhere in the mount.
        path: PathBuf,
        /// For programs, not for people.
        json: bool,
        /// Again and again, so often.
        watch: Option<Duration>,
    },
    /// `corfs copy SRC... DST`
    Copy(Box<Copying>),
    /// `corfs bench ...`
    Bench(Request),
    /// `corfs replay FILE DIR`
    Replay(Replay),
    /// `corfs cache ...`
    Cache(Box<CacheCommand>),
    /// `--help`, `--version`: words for standard output.
    Print(String),
}

/// Parses a command line, the program's name first.
///
/// # Errors
/// Words for standard error; the exit code is 1.
pub fn parse(line: impl IntoIterator<Item = OsString>) -> Result<Command, String> {
    let line: Vec<OsString> = line.into_iter().collect();
    let matches = match clap().try_get_matches_from(&line) {
        Ok(matches) => matches,
        Err(error) if error.use_stderr() => {
            let text = error.render().to_string();
            return Err(text
                .strip_prefix("error: ")
                .unwrap_or(&text)
                .trim_end()
                .to_owned());
        }
        Err(error) => return Ok(Command::Print(error.render().to_string())),
    };
    match matches.subcommand() {
        Some(("umount", words)) => umount(words),
        Some(("stat", words)) => stat(words),
        Some(("copy", words)) => copy(words),
        Some(("bench", words)) => bench::asked(words, &line),
        Some(("replay", words)) => Ok(bench::replayed(words)),
        Some(("cache", words)) => {
            caching::parse(words).map(|asked| Command::Cache(Box::new(asked)))
        }
        Some((_, words)) => mount(words),
        None => mount(&matches),
    }
}

fn copy(matches: &ArgMatches) -> Result<Command, String> {
    let asked = args::asked(matches)
        .map_err(|refusal| format!("copy: {refusal}; corfs copy --help tells more"))?;
    let telling = match (matches.get_flag("json"), matches.get_flag("quiet")) {
        (true, _) => Telling::Json,
        (false, true) => Telling::Nothing,
        (false, false) => Telling::Bar,
    };
    Ok(Command::Copy(Box::new(Copying { asked, telling })))
}

fn stat(matches: &ArgMatches) -> Result<Command, String> {
    let asked = matches.get_one::<String>("interval").map(String::as_str);
    let interval = size::seconds(asked.unwrap_or("1"))
        .filter(|time| !time.is_zero())
        .ok_or("stat: --interval takes seconds, more than 0")?;
    Ok(Command::Stat {
        path: path(matches, "MOUNTPOINT"),
        json: matches.get_flag("json"),
        watch: matches.get_flag("watch").then_some(interval),
    })
}

fn umount(matches: &ArgMatches) -> Result<Command, String> {
    let mountpoint = path(matches, "MOUNTPOINT");
    if let Some(device) = matches.get_one::<String>(KEEPER_OPTION) {
        let (device, mount) = mount_numbers(device).ok_or("a mount is MAJOR:MINOR:ID")?;
        return Ok(Command::Keep {
            mountpoint,
            device,
            mount,
        });
    }
    let manner = match (matches.get_flag("force"), matches.get_flag("lazy")) {
        (true, _) => Manner::Force,
        (false, true) => Manner::Lazy,
        (false, false) => Manner::Plain,
    };
    Ok(Command::Umount { mountpoint, manner })
}

/// `MAJOR:MINOR:ID`; an id of 0 is none.
fn mount_numbers(text: &str) -> Option<((u32, u32), Option<u64>)> {
    let (major, rest) = text.split_once(':')?;
    let (minor, id) = rest.split_once(':')?;
    let id: u64 = id.parse().ok()?;
    let device = (major.parse().ok()?, minor.parse().ok()?);
    Some((device, (id != 0).then_some(id)))
}

fn mount(matches: &ArgMatches) -> Result<Command, String> {
    let mut draft = Draft::default();
    for word in words_in_order(matches) {
        draft.apply(&word)?;
    }
    let remount = draft.remount;
    let settings = draft.settle(path(matches, "SOURCE"), path(matches, "MOUNTPOINT"))?;
    Ok(if remount {
        Command::Remount(Box::new(settings))
    } else {
        Command::Mount(Box::new(settings))
    })
}

/// Every option, long ones and words of `-o` alike, in the order they were given: the last word
/// counts, whichever form it has.
fn words_in_order(matches: &ArgMatches) -> Vec<Word> {
    let mut found: Vec<(usize, Word)> = Vec::new();
    let mut take = |id: &str, words: fn(&str, &OsString) -> Vec<Word>| {
        let values = matches.get_many::<OsString>(id).into_iter().flatten();
        for (index, value) in matches.indices_of(id).into_iter().flatten().zip(values) {
            found.extend(words(id, value).into_iter().map(|word| (index, word)));
        }
    };
    take("o", |_, list| list::words(list));
    for option in VALUED {
        take(option.name, |name, value| {
            vec![Word {
                name: name.into(),
                value: Some(value.clone()),
            }]
        });
    }
    for flag in ["foreground", "debug"] {
        if matches.get_flag(flag) {
            found.push((
                0,
                Word {
                    name: flag.into(),
                    value: None,
                },
            ));
        }
    }
    found.sort_by_key(|(index, _)| *index);
    found.into_iter().map(|(_, word)| word).collect()
}

fn path(matches: &ArgMatches, id: &str) -> PathBuf {
    matches
        .get_one::<OsString>(id)
        .map(PathBuf::from)
        .unwrap_or_default()
}

fn clap() -> Clap {
    let mount = Clap::new("mount").about("Mount SOURCE on MOUNTPOINT, the same as without `mount`");
    let umount = Clap::new("umount")
        .about("Unmount a corfs mount, a dead one too")
        .arg(flag("lazy", 'l', "Unmount when the last user has gone"))
        .arg(flag(
            "force",
            'f',
            "Unmount now: whoever uses it gets errors (the source may hang)",
        ))
        .arg(Arg::new(KEEPER_OPTION).long(KEEPER_OPTION).hide(true))
        .arg(positional("MOUNTPOINT", "Where it is mounted"));
    let stat = Clap::new("stat")
        .about("Show the statistics of a mount")
        .arg(
            Arg::new("json")
                .long("json")
                .action(ArgAction::SetTrue)
                .help("For programs"),
        )
        .args([
            flag(
                "watch",
                'w',
                "Show what happens, again and again, until Ctrl-C",
            ),
            Arg::new("interval")
                .long("interval")
                .value_name("SECONDS")
                .requires("watch")
                .help("How often [default: 1]"),
        ])
        .arg(positional(
            "MOUNTPOINT",
            "Where it is mounted, or any path below",
        ));
    let copy = args::arguments()
        .about("Copy files and trees: as cp, and through its .copy what lies in a mount")
        .override_usage("corfs copy [OPTIONS] SRC... DST")
        .after_help(AFTER_COPY)
        .args([
            flag("quiet", 'q', "No progress bar"),
            Arg::new("json")
                .long("json")
                .action(ArgAction::SetTrue)
                .help("progress, errors and result for programs, an object a line"),
        ]);
    mount_words(Clap::new("corfs"))
        .version(env!("CARGO_PKG_VERSION"))
        .about(env!("CARGO_PKG_DESCRIPTION"))
        .override_usage(
            "corfs [OPTIONS] SOURCE MOUNTPOINT\n       corfs umount [--lazy|--force] MOUNTPOINT\n       \
             corfs stat [--watch] [--json] MOUNTPOINT\n       \
             corfs copy [OPTIONS] SRC... DST\n       \
             corfs cache COMMAND ...\n       \
             corfs bench copy|read|meta|fault|compare|draw ...\n       \
             corfs replay [--timed] FILE DIR",
        )
        .after_help(AFTER)
        .args_conflicts_with_subcommands(true)
        .subcommand_negates_reqs(true)
        .disable_help_subcommand(true)
        .subcommands([
            mount_words(mount),
            umount,
            stat,
            copy,
            caching::clap(),
            bench::bench(),
            bench::replay(),
        ])
}

/// The options and names that a mount takes.
fn mount_words(clap: Clap) -> Clap {
    let list = Arg::new("o")
        .short('o')
        .value_name("LIST")
        .action(ArgAction::Append)
        .value_parser(OsStringValueParser::new())
        .help("Mount options between commas: see below");
    let valued = VALUED.iter().map(|option| {
        Arg::new(option.name)
            .long(option.name)
            .value_name(option.value)
            .action(ArgAction::Append)
            .allow_hyphen_values(true)
            .value_parser(OsStringValueParser::new())
            .help(option.help)
    });
    clap.args([
        positional("SOURCE", "The directory to mirror"),
        positional("MOUNTPOINT", "The directory to show it at"),
        flag(
            "foreground",
            'f',
            "Stay in the foreground and log to standard error",
        ),
        flag("debug", 'd', "Log every request; implies -f"),
        list,
    ])
    .args(valued)
}

fn positional(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .required(true)
        .value_parser(OsStringValueParser::new())
        .help(help)
}

fn flag(name: &'static str, short: char, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .short(short)
        .action(ArgAction::SetTrue)
        .help(help)
}

const AFTER: &str = "\
Every long option can also be given as -o name=value. Further words for -o:
  ro rw allow_other allow_root default_permissions suid nosuid dev nodev exec
  noexec atime noatime sync async dirsync auto_unmount nonempty foreground debug
  remount (of a mount that stands: ro, suid, dev, exec, sync, dirsync, noatime)
nosuid and nodev hold unless suid or dev is given. Words of mount(8) that mean
nothing here (_netdev, nofail, noauto, user, x-..., ...) are ignored. In a value
\\, is a comma and \\\\ a backslash. SIZE takes K, M, G and T.

A SOURCE that is called mount, umount, stat, copy, cache, bench or replay is written ./umount.
Exit codes: 1 usage, 2 system, 32 the mount failed.";

const AFTER_COPY: &str = "\
Words that cp has mean what they mean to cp. A copy is whole or absent, and keeps
mode and times unless told otherwise. SIZE takes K, M, G and T.

Names that all lie in one corfs mount go through its .copy, so that no byte crosses
the mount; all others are copied by this process. A progress bar is shown on a
terminal, for what takes longer than a moment. Ctrl-C, TERM and HUP stop the copy
and take away what is not whole.

With --json each line is an object: \"type\" is progress (once a second), failed (a
file that could not be copied: path, errno, error) or, last, result.

Exit codes: 0 everything is copied, 1 something is not (or the words are wrong), 2 the
system refused something else; one who is told to stop ends by that signal, 130 for
Ctrl-C.";

#[cfg(test)]
mod tests;
