//! The words of `corfs bench` and `corfs replay`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::OsStringValueParser;
use clap::{Arg, ArgAction, ArgMatches, Command as Clap, value_parser};

use super::Command;
use super::size::bytes;
use crate::bench::{Experiment, Files, Measure, Request, replay::Replay};
use crate::copy::language::quote;

/// An experiment's own sizes, and what it is about.
struct Kind {
    experiment: Experiment,
    about: &'static str,
    size: &'static str,
    lists: &'static [(&'static str, &'static str, &'static str)],
}

const KINDS: &[Kind] = &[
    Kind {
        experiment: Experiment::Copy,
        about: "Copies: every method, by size, chunk and workers, against cp",
        size: "256M",
        lists: &[
            ("sizes", "64K,1M,16M", "Sizes of files below --size"),
            ("chunks", "64K,1M,8M,64M", "Bytes mapped at a time"),
            ("workers", "1,2", "Threads that copy one file"),
        ],
    },
    Kind {
        experiment: Experiment::Read,
        about: "Reading through mounts: patterns, readers, window sizes and budgets",
        size: "256M",
        lists: &[
            ("readers", "1,4", "Readers at once"),
            (
                "windows",
                "256K,1M,4M,16M",
                "Windows to sweep; none for an empty list",
            ),
            (
                "budgets",
                "4M,16M,64M,256M",
                "Window budgets to sweep; none for an empty list",
            ),
        ],
    },
    Kind {
        experiment: Experiment::Meta,
        about: "Names and attributes: stat, open, readdir, create, rename, unlink, walk, grep",
        size: "",
        lists: &[],
    },
    Kind {
        experiment: Experiment::Fault,
        about: "Pages of mappings: populating, touching, reusing, mapping each time",
        size: "256M",
        lists: &[("windows", "64K,1M,4M,64M", "Bytes of a mapping")],
    },
];

pub(super) fn bench() -> Clap {
    let draw = Clap::new("draw")
        .about("Show a saved run again")
        .arg(file("RUN", "A file of --json"))
        .arg(option("html", "FILE", "Write a page with plots"));
    let compare = Clap::new("compare")
        .about("Compare two saved runs")
        .arg(file("BEFORE", "A file of --json"))
        .arg(file("AFTER", "Another"));
    let probe = Clap::new("probe").hide(true);
    Clap::new("bench")
        .about("Measure directories, mounts and their peers")
        .subcommand_required(true)
        .disable_help_subcommand(true)
        .subcommands(KINDS.iter().map(experiment))
        .subcommands([compare, draw, probe])
}

fn experiment(kind: &Kind) -> Clap {
    let mut clap = Clap::new(kind.experiment.name())
        .about(kind.about)
        .after_help(AFTER)
        .args([
            option(
                "dir",
                "[NAME=]DIR",
                "Where to measure; the first is what others are compared with",
            )
            .required(true)
            .action(ArgAction::Append),
            number("rounds", "5", "Rounds that count"),
            number("warmup", "1", "Rounds before"),
            Arg::new("seed")
                .long("seed")
                .value_name("N")
                .value_parser(value_parser!(u64))
                .help("Of the order [default: by the clock]"),
            option("only", "WORD", "Only works with this word in their name")
                .action(ArgAction::Append),
            flag(
                "no-look",
                "No runs of their own to sample memory and count system calls",
            ),
            number(
                "limit",
                "600",
                "Seconds that a work may take, and each process that prepares it; then it is given up, \
                 with a mount that hangs",
            ),
            option("json", "FILE", "Save the run, after each round"),
            option("csv", "FILE", "Save the samples, after each round"),
            option("html", "FILE", "Write a page with plots at the end"),
        ]);
    if kind.experiment != Experiment::Fault {
        clap = clap.args([
            option(
                "corfs",
                "NAME=OPTIONS",
                "A corfs mount with these words for -o, in place of the usual ones; {CACHE} is a \
                 folder for its cache",
            )
            .action(ArgAction::Append),
            flag("no-corfs", "No mount of corfs"),
            option(
                "peer",
                "NAME=COMMAND",
                "Another file system: a command with {SRC} and {MNT}",
            )
            .action(ArgAction::Append),
        ]);
    }
    if !kind.size.is_empty() {
        clap = clap.arg(option("size", "SIZE", "Bytes of the large file").default_value(kind.size));
    }
    if matches!(kind.experiment, Experiment::Read | Experiment::Meta) {
        clap = clap.arg(number("files", "1000", "Small files"));
    }
    if kind.experiment != Experiment::Fault {
        clap = clap.arg(flag(
            "cold",
            "Cold caches, too: root only, and it disturbs everybody on the machine",
        ));
    }
    clap.args(
        kind.lists
            .iter()
            .map(|&(name, default, help)| option(name, "LIST", help).default_value(default)),
    )
}

pub(super) fn replay() -> Clap {
    Clap::new("replay")
        .about("Play a log of operations (.corfs/oplog) back against a directory")
        .after_help(
            "Nothing outside of DIR is touched, and no symbolic link is followed. Written bytes are \
             zeros: the log has none. It tells how long each kind of operation took, then and now, \
             and which ended otherwise.",
        )
        .arg(flag("timed", "At the pace of the log, not as fast as it goes"))
        .arg(file("FILE", "The log; - for standard input"))
        .arg(file("DIR", "A directory, best a copy of what the log was taken of"))
}

fn file(name: &'static str, help: &'static str) -> Arg {
    super::positional(name, help)
}

fn option(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .value_name(value)
        .value_parser(OsStringValueParser::new())
        .help(help)
}

fn number(name: &'static str, default: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .value_name("N")
        .default_value(default)
        .value_parser(value_parser!(u64).range(..=1_000_000_000))
        .help(help)
}

fn flag(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .action(ArgAction::SetTrue)
        .help(help)
}

/// What `corfs bench ...` asks for; `line` are all words of the command.
pub(super) fn asked(matches: &ArgMatches, line: &[OsString]) -> Result<Command, String> {
    let path = |words: &ArgMatches, id: &str| words.get_one::<OsString>(id).map(PathBuf::from);
    let needed = |words: &ArgMatches, id: &str| path(words, id).unwrap_or_default();
    let request = match matches.subcommand() {
        Some(("draw", words)) => Request::Draw {
            run: needed(words, "RUN"),
            html: path(words, "html"),
        },
        Some(("compare", words)) => Request::Compare {
            before: needed(words, "BEFORE"),
            after: needed(words, "AFTER"),
        },
        Some(("probe", _)) => Request::Probe,
        Some((name, words)) => {
            let kind = KINDS.iter().find(|kind| kind.experiment.name() == name);
            let kind = kind.ok_or_else(|| format!("bench {name}: no such experiment"))?;
            let measure = measure(kind, words, line);
            Request::Measure(Box::new(
                measure.map_err(|why| format!("bench {name}: {why}"))?,
            ))
        }
        None => return Err("bench: copy, read, meta, fault, compare or draw?".into()),
    };
    Ok(Command::Bench(request))
}

/// What `corfs replay ...` asks for.
pub(super) fn replayed(matches: &ArgMatches) -> Command {
    let path = |id: &str| {
        matches
            .get_one::<OsString>(id)
            .map(PathBuf::from)
            .unwrap_or_default()
    };
    Command::Replay(Replay {
        log: path("FILE"),
        directory: path("DIR"),
        timed: matches.get_flag("timed"),
    })
}

fn measure(kind: &Kind, words: &ArgMatches, line: &[OsString]) -> Result<Measure, String> {
    let given = |id: &str| has(words, id);
    let all = |id: &'static str| {
        let values = given(id).then(|| words.get_many::<OsString>(id)).flatten();
        values.into_iter().flatten()
    };
    let number = |id: &str| {
        given(id)
            .then(|| words.get_one::<u64>(id).copied())
            .flatten()
    };
    let set = |id: &str| given(id) && words.get_flag(id);
    let path = |id: &'static str| all(id).next().map(PathBuf::from);
    let list = |id: &'static str| list(id, all(id).next());
    let rounds = number("rounds").unwrap_or(1);
    if rounds == 0 {
        return Err("--rounds takes 1 or more".into());
    }
    let files = number("files");
    if files == Some(0) {
        return Err("--files takes 1 or more".into());
    }
    let limit = number("limit").unwrap_or(0);
    if limit == 0 {
        return Err("--limit takes 1 or more seconds".into());
    }
    if set("no-corfs") && given("corfs") && all("corfs").next().is_some() {
        return Err("--no-corfs leaves out what --corfs names; give one of them".into());
    }
    let size = match all("size").next() {
        Some(word) => size(word)
            .filter(|size| *size >= 1 << 20)
            .ok_or("--size takes a SIZE of 1M or more")?,
        None => 0,
    };
    Ok(Measure {
        experiment: kind.experiment,
        directories: all("dir").map(|word| directory(word)).collect(),
        corfs: all("corfs")
            .map(|word| named("corfs", "OPTIONS", word).and_then(mountable))
            .collect::<Result<_, _>>()?,
        no_corfs: set("no-corfs"),
        peers: all("peer")
            .map(|word| peer(word))
            .collect::<Result<_, _>>()?,
        rounds: rounds as usize,
        warmups: number("warmup").unwrap_or(0) as usize,
        seed: number("seed"),
        size,
        sizes: list("sizes")?,
        files: files.unwrap_or(1),
        readers: list("readers")?.into_iter().map(|n| n as usize).collect(),
        windows: list("windows")?,
        budgets: list("budgets")?,
        chunks: list("chunks")?,
        workers: list("workers")?,
        cold: set("cold"),
        only: all("only")
            .map(|word| word.to_string_lossy().into_owned())
            .collect(),
        no_look: set("no-look"),
        limit: Duration::from_secs(limit),
        files_out: Files {
            json: path("json"),
            csv: path("csv"),
            html: path("html"),
        },
        command: line
            .iter()
            .map(|word| quote(word.as_bytes()))
            .collect::<Vec<_>>()
            .join(" "),
    })
}

/// A mount whose words `corfs` would take: who mistypes one is not to find out after the last round.
fn mountable((name, options): (String, String)) -> Result<(String, String), String> {
    let filled = options.replace("{CACHE}", "/cache");
    let mut line: Vec<OsString> = ["corfs", "/source", "/mountpoint"]
        .map(OsString::from)
        .into();
    if !filled.is_empty() {
        line.extend(["-o".into(), filled.into()]);
    }
    match super::parse(line) {
        Ok(_) => Ok((name, options)),
        Err(why) => Err(format!("--corfs {name}: {why}")),
    }
}

/// Whether this experiment has such an option at all, and a value for it.
fn has(words: &ArgMatches, id: &str) -> bool {
    words.try_contains_id(id).unwrap_or(false)
}

fn size(word: &OsStr) -> Option<u64> {
    word.to_str().and_then(bytes)
}

/// Sizes or numbers between commas, none of them 0 and none twice: each gives its work a name.
fn list(name: &str, words: Option<&OsString>) -> Result<Vec<u64>, String> {
    let text = words.map(|word| word.to_string_lossy()).unwrap_or_default();
    let numbers: Vec<u64> = text
        .split(',')
        .filter(|word| !word.is_empty())
        .map(|word| bytes(word).filter(|&number| number > 0))
        .collect::<Option<_>>()
        .ok_or_else(|| format!("--{name} takes sizes with commas between, like 64K,1M"))?;
    let twice = |at: &usize| numbers[..*at].contains(&numbers[*at]);
    match (0..numbers.len()).any(|at| twice(&at)) {
        true => Err(format!("--{name}={text} has a number twice")),
        false => Ok(numbers),
    }
}

/// `NAME=DIR`, or a directory whose name is no matter.
fn directory(word: &OsStr) -> (Option<String>, PathBuf) {
    let bytes = word.as_bytes();
    if let Some(at) = bytes.iter().position(|&byte| byte == b'=')
        && at > 0
        && !bytes[..at].contains(&b'/')
    {
        let name = String::from_utf8_lossy(&bytes[..at]).into_owned();
        return (Some(name), OsStr::from_bytes(&bytes[at + 1..]).into());
    }
    (None, word.into())
}

fn named(option: &str, value: &str, word: &OsStr) -> Result<(String, String), String> {
    match word.to_str().and_then(|text| text.split_once('=')) {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        None if word.to_str().is_none() => Err(format!(
            "--{option} {}: it is not UTF-8, as what stands in the file of a run must be",
            word.display()
        )),
        _ => Err(format!("--{option} takes NAME={value}")),
    }
}

fn peer(word: &OsStr) -> Result<(String, String), String> {
    let (name, command) = named("peer", "COMMAND", word)?;
    if !command.contains("{SRC}") || !command.contains("{MNT}") {
        return Err(format!(
            "--peer {name}: the command needs {{SRC}} and {{MNT}} in it"
        ));
    }
    Ok((name, command))
}

const AFTER: &str = "\
A folder of its own is made in DIR, and removed at the end. In each round everyone
comes once, in random order; medians are compared with those of the first DIR, with a
bootstrap interval. SIZE takes K, M, G and T. Ctrl-C keeps the rounds that were saved.";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::parse;

    fn measured(words: &[&str]) -> Measure {
        match parsed(words) {
            Ok(Command::Bench(Request::Measure(measure))) => *measure,
            other => panic!("{other:?}"),
        }
    }

    fn parsed(words: &[&str]) -> Result<Command, String> {
        parse(["corfs", "bench"].iter().chain(words).map(OsString::from))
    }

    #[test]
    fn an_experiment_has_its_own_sizes() {
        let copy = measured(&["copy", "--dir", "/a b"]);
        assert_eq!(copy.directories, [(None, PathBuf::from("/a b"))]);
        assert_eq!(copy.size, 256 << 20);
        assert_eq!(copy.sizes, [64 << 10, 1 << 20, 16 << 20]);
        assert_eq!((copy.rounds, copy.warmups, copy.seed), (5, 1, None));
        assert_eq!(copy.command, "corfs bench copy --dir '/a b'");
        assert!(!copy.cold && measured(&["copy", "--dir=x", "--cold"]).cold);
        let fault = measured(&["fault", "--dir=x", "--windows", "64K,2M", "--seed=3"]);
        assert_eq!(fault.windows, [64 << 10, 2 << 20]);
        assert_eq!(fault.seed, Some(3));
        let read = measured(&["read", "--dir=x", "--budgets=", "--readers=2", "--cold"]);
        assert_eq!(
            (read.budgets, read.readers, read.cold),
            (vec![], vec![2], true)
        );
    }

    #[test]
    fn targets_have_names() {
        let read = measured(&[
            "read",
            "--dir=disk=/d",
            "--dir=/e=f",
            "--corfs=big=io=mmap,window=16M",
            "--corfs=plain=",
            "--peer=bindfs=bindfs -f {SRC} {MNT}",
        ]);
        assert_eq!(read.directories[0], (Some("disk".into()), "/d".into()));
        assert_eq!(read.directories[1], (None, "/e=f".into()));
        assert_eq!(read.corfs[0], ("big".into(), "io=mmap,window=16M".into()));
        assert_eq!(read.corfs[1], ("plain".into(), String::new()));
        assert_eq!(read.peers[0].1, "bindfs -f {SRC} {MNT}");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let wrong = |words: &[&str], why: &str| {
            let said = parsed(words).unwrap_err();
            assert!(said.contains(why), "{words:?}: {said}");
        };
        wrong(&["read"], "--dir");
        wrong(&[], "subcommand");
        wrong(&["read", "--dir=x", "--peer=x=bindfs"], "{SRC}");
        wrong(&["read", "--dir=x", "--corfs=x"], "NAME=OPTIONS");
        wrong(&["read", "--dir=x", "--corfs=x=io=none"], "--corfs x: ");
        wrong(&["read", "--dir=x", "--windows=1.5M"], "--windows");
        wrong(&["read", "--dir=x", "--size=4K"], "--size");
        wrong(&["copy", "--dir=x", "--rounds=0"], "--rounds");
        wrong(&["copy", "--dir=x", "--limit=0"], "--limit");
        wrong(&["meta", "--dir=x", "--files=0"], "--files");
        wrong(&["read", "--dir=x", "--windows=1M,1024K"], "twice");
        let both = ["read", "--dir=x", "--no-corfs", "--corfs=x=io=mmap"];
        wrong(&both, "--no-corfs leaves out");
        wrong(&["fault", "--dir=x", "--peer=x={SRC}{MNT}"], "--peer");
    }

    #[test]
    fn saved_runs_and_logs_are_named() {
        let draw = parsed(&["draw", "a.json", "--html", "b"]).unwrap();
        let html = Some("b".into());
        let run = "a.json".into();
        assert_eq!(draw, Command::Bench(Request::Draw { run, html }));
        let compare = parsed(&["compare", "a", "b"]).unwrap();
        let (before, after) = ("a".into(), "b".into());
        assert_eq!(compare, Command::Bench(Request::Compare { before, after }));
        let words = ["corfs", "replay", "--timed", "log", "dir"];
        let replay = Replay {
            log: "log".into(),
            directory: "dir".into(),
            timed: true,
        };
        assert_eq!(
            parse(words.map(OsString::from)).unwrap(),
            Command::Replay(replay)
        );
    }
}
