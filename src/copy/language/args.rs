//! The options of a copy, once for a `.copy` line and for `corfs copy`: cp's own words where cp has
//! them (GNU coreutils 9), and ours.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::num::{NonZeroU16, NonZeroU64};
use std::os::unix::ffi::OsStrExt;

use clap::builder::{PossibleValuesParser, ValueParser};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use crate::copy::options::{Backup, CopyOptions, Method, Preserve, Priority, Reflink, Sparse};
use crate::copy::tree::exclude::Exclude;

const LEAST_CHUNK: u64 = 64 << 10;
const MOST_CHUNK: u64 = 1 << 30;
const CHUNK_UNIT: u64 = 4096;
/// Threads of one job: more than any machine gains from, and few enough for any machine.
const MOST_WORKERS: u16 = 64;
/// What a backup's name ends with unless told otherwise, as cp's.
const SUFFIX: &str = "~";

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// How to copy.
    pub options: CopyOptions,
    /// What to copy, as named; at least one.
    pub sources: Vec<Vec<u8>>,
    /// Where to, as named; with `-t`, ending in `/.`, which only a directory has.
    pub destination: Vec<u8>,
}

/// Why what was matched asks for nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Names are missing, at the end.
    Missing(&'static str),
    /// What is there is wrong.
    Wrong(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(what) => f.write_str(what),
            Self::Wrong(why) => f.write_str(why),
        }
    }
}

/// Every option of a copy, and its names (`names`), without a program's name.
pub fn arguments() -> Command {
    let names = Arg::new("names")
        .value_name("SRC... DST")
        .num_args(0..)
        .value_parser(value_parser!(OsString))
        .help("what to copy, and where to: a directory, or a new name");
    Command::new("copy")
        .args_override_self(true)
        .args(how())
        .args(what())
        .args(kept())
        .args(standing())
        .arg(names)
}

/// How bytes move.
fn how() -> [Arg; 8] {
    let methods = std::iter::once("auto").chain(Method::ALL.map(Method::name));
    [
        word("method", "METHOD", methods.collect()).help("how the bytes move"),
        long("chunk", "SIZE", ValueParser::new(chunk)).help("bytes that one worker maps at a time"),
        long("workers", "N", ValueParser::new(workers)).help("threads; auto measures"),
        flag("direct").help("past the page cache (O_DIRECT)"),
        word("reflink", "WHEN", vec!["auto", "always", "never"])
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("always")
            .help("share extents instead of copying bytes"),
        word("sparse", "WHEN", vec!["auto", "always", "never"]).help("what becomes of holes"),
        long("limit", "SIZE", ValueParser::new(limit)).help("bytes a second at most"),
        word("priority", "HOW", vec!["normal", "idle"])
            .help("idle: only when nobody else wants the disk or a processor"),
    ]
}

/// What is copied.
fn what() -> [Arg; 4] {
    [
        flag("recursive")
            .short('r')
            .visible_short_alias('R')
            .help("directories with what is in them"),
        flag("archive").short('a').help("as -r --preserve=all"),
        flag("one-file-system")
            .short('x')
            .help("not into other file systems"),
        long("exclude", "GLOB", ValueParser::new(glob))
            .action(ArgAction::Append)
            .help("leave out names (with a slash: paths within SRC)"),
    ]
}

/// What the copy has of its source.
fn kept() -> [Arg; 6] {
    let list = || ValueParser::new(attributes);
    [
        Arg::new("p")
            .short('p')
            .action(ArgAction::SetTrue)
            .help("as --preserve=mode,ownership,timestamps"),
        long("preserve", "LIST", list())
            .action(ArgAction::Append)
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("mode,ownership,timestamps")
            .help("attributes to keep: mode, ownership, timestamps, links, xattr, all"),
        long("no-preserve", "LIST", list())
            .action(ArgAction::Append)
            .help("attributes not to keep"),
        flag("sync").help("on disk before it is called done"),
        flag("verify").help("read the copy again from storage, and compare"),
        flag("resume").help("go on from what an interrupted copy left"),
    ]
}

/// What stands at the destination.
fn standing() -> [Arg; 8] {
    [
        flag("inplace").help("into the file that stands there: not whole or absent"),
        flag("no-clobber")
            .short('n')
            .help("what stands there stays"),
        word("update", "WHICH", vec!["all", "none", "older"])
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("older")
            .help("what stands there and is not older stays"),
        Arg::new("u")
            .short('u')
            .action(ArgAction::SetTrue)
            .help("as --update"),
        flag("no-target-directory")
            .short('T')
            .help("DST is no directory to copy into"),
        long("target-directory", "DIR", value_parser!(OsString))
            .short('t')
            .help("the directory to copy into; all names are SRC"),
        Arg::new("backup")
            .long("backup")
            .short('b')
            .value_name("CONTROL")
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("existing")
            .value_parser(PossibleValuesParser::new([
                "none", "off", "numbered", "t", "existing", "nil", "simple", "never",
            ]))
            .help("rename what stands there"),
        Arg::new("suffix")
            .long("suffix")
            .short('S')
            .value_name("SUFFIX")
            .value_parser(value_parser!(OsString))
            .help("what a backup's name ends with (~)"),
    ]
}

fn flag(name: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue)
}

fn long(name: &'static str, value: &'static str, parser: ValueParser) -> Arg {
    // A value may begin with a dash, as it may with cp.
    Arg::new(name)
        .long(name)
        .value_name(value)
        .allow_hyphen_values(true)
        .value_parser(parser)
}

fn word(name: &'static str, value: &'static str, words: Vec<&'static str>) -> Arg {
    Arg::new(name)
        .long(name)
        .value_name(value)
        .value_parser(PossibleValuesParser::new(words))
}

/// Reads what was matched.
///
/// # Errors
/// When names are missing, or options contradict each other.
pub fn asked(matches: &ArgMatches) -> Result<Asked, Refusal> {
    let wrong = |why: &str| Err(Refusal::Wrong(why.into()));
    let options = options(matches)?;
    let named = matches.get_many::<OsString>("names").into_iter().flatten();
    let mut sources: Vec<Vec<u8>> = named.map(|name| name.as_bytes().to_vec()).collect();
    if sources.is_empty() {
        return Err(Refusal::Missing("the names are missing"));
    }
    let destination = match matches.get_one::<OsString>("target-directory") {
        Some(folder) if folder.is_empty() => return wrong("-t needs the name of a directory"),
        Some(folder) => [folder.as_bytes(), b"/."].concat(),
        None => sources.pop().unwrap_or_default(),
    };
    match sources.as_slice() {
        [] => Err(Refusal::Missing("the destination is missing")),
        [_, _, ..] if options.no_target_directory => wrong("-T takes one SRC and one DST"),
        _ => Ok(Asked {
            options,
            sources,
            destination,
        }),
    }
}

/// Reads the options that were matched.
///
/// # Errors
/// When options contradict each other.
pub fn options(matches: &ArgMatches) -> Result<CopyOptions, Refusal> {
    let is = |id: &str| matches.get_flag(id);
    let text = |id: &str| matches.get_one::<String>(id).map(String::as_str);
    let update = if is("u") {
        Some("older")
    } else {
        text("update")
    };
    let options = CopyOptions {
        method: Method::ALL
            .into_iter()
            .find(|method| text("method") == Some(method.name())),
        reflink: match text("reflink") {
            Some("always") => Reflink::Always,
            Some("never") => Reflink::Never,
            _ => Reflink::Auto,
        },
        chunk: matches
            .get_one("chunk")
            .copied()
            .unwrap_or(CopyOptions::default().chunk),
        workers: matches
            .get_one::<Option<NonZeroU16>>("workers")
            .copied()
            .flatten(),
        direct: is("direct"),
        sparse: match text("sparse") {
            Some("always") => Sparse::Always,
            Some("never") => Sparse::Never,
            _ => Sparse::Auto,
        },
        sync: is("sync"),
        inplace: is("inplace"),
        verify: is("verify"),
        resume: is("resume"),
        recursive: is("recursive") || is("archive"),
        preserve: preserve(matches),
        one_file_system: is("one-file-system"),
        no_clobber: is("no-clobber") || update == Some("none"),
        update: update == Some("older"),
        no_target_directory: is("no-target-directory"),
        backup: backup(matches)?,
        exclude: excluded(matches),
        limit: matches.get_one("limit").copied(),
        priority: match text("priority") {
            Some("idle") => Priority::Idle,
            _ => Priority::Normal,
        },
    };
    match contradiction(&options, matches.contains_id("target-directory")) {
        Some(why) => Err(Refusal::Wrong(why.into())),
        None => Ok(options),
    }
}

/// What cannot be had at once, and why.
fn contradiction(options: &CopyOptions, into_folder: bool) -> Option<&'static str> {
    let shares = options.reflink == Reflink::Always || options.method == Some(Method::Reflink);
    let refusals = [
        (
            options.reflink == Reflink::Never && options.method == Some(Method::Reflink),
            "--method=reflink shares extents, --reflink=never forbids it",
        ),
        (
            options.reflink == Reflink::Always
                && !matches!(options.method, None | Some(Method::Reflink)),
            "--reflink=always leaves no bytes to move by another --method",
        ),
        (
            shares && options.sparse != Sparse::Auto,
            "shared extents have the source's holes: only --sparse=auto goes with them",
        ),
        (
            shares && options.direct,
            "shared extents move no bytes that could go --direct",
        ),
        (
            options.direct && !matches!(options.method, None | Some(Method::ReadWrite)),
            "--direct goes past the page cache, which this --method copies through; read-write or \
             auto does",
        ),
        (
            options.inplace && options.resume,
            "--resume goes on from a part that stands beside the file, --inplace makes none",
        ),
        (
            options.inplace && options.sparse == Sparse::Always,
            "--sparse=always leaves out zeros, which --inplace must write over what is there",
        ),
        (
            options.inplace && options.backup != Backup::None,
            "--backup renames the file that --inplace writes into",
        ),
        (
            options.no_clobber && options.backup != Backup::None,
            "-n replaces nothing that --backup could keep",
        ),
        (
            into_folder && options.no_target_directory,
            "-t names a directory to copy into, -T forbids one",
        ),
    ];
    refusals.into_iter().find(|(is, _)| *is).map(|(_, why)| why)
}

/// Options of attributes count in the order in which they stand, as with cp.
fn preserve(matches: &ArgMatches) -> Preserve {
    let mut steps: Vec<(usize, Preserve, bool)> = Vec::new();
    let usual = Preserve {
        ownership: true,
        ..Preserve::DEFAULT
    };
    for (id, what) in [("archive", Preserve::ALL), ("p", usual)] {
        if matches.value_source(id) == Some(ValueSource::CommandLine) {
            let at = matches.index_of(id).unwrap_or(0);
            steps.push((at, what, true));
        }
    }
    for (id, keep) in [("preserve", true), ("no-preserve", false)] {
        let lists = matches.get_many::<Preserve>(id).into_iter().flatten();
        let places = matches.indices_of(id).into_iter().flatten();
        steps.extend(places.zip(lists).map(|(at, list)| (at, *list, keep)));
    }
    steps.sort_by_key(|(at, ..)| *at);
    steps
        .into_iter()
        .fold(Preserve::DEFAULT, |so_far, (_, list, keep)| {
            changed(so_far, list, keep)
        })
}

/// `so_far`, with what is in `list` set to `keep`.
fn changed(so_far: Preserve, list: Preserve, keep: bool) -> Preserve {
    let with = |old: bool, named: bool| if named { keep } else { old };
    Preserve {
        mode: with(so_far.mode, list.mode),
        ownership: with(so_far.ownership, list.ownership),
        timestamps: with(so_far.timestamps, list.timestamps),
        links: with(so_far.links, list.links),
        xattr: with(so_far.xattr, list.xattr),
    }
}

/// A list of attributes.
fn attributes(list: &str) -> Result<Preserve, String> {
    list.split(',').try_fold(Preserve::NONE, |so_far, word| {
        let named = match word {
            "mode" => Preserve {
                mode: true,
                ..Preserve::NONE
            },
            "ownership" => Preserve {
                ownership: true,
                ..Preserve::NONE
            },
            "timestamps" => Preserve {
                timestamps: true,
                ..Preserve::NONE
            },
            "links" => Preserve {
                links: true,
                ..Preserve::NONE
            },
            "xattr" => Preserve {
                xattr: true,
                ..Preserve::NONE
            },
            "all" => Preserve::ALL,
            _ => return Err("mode, ownership, timestamps, links, xattr, all, with commas".into()),
        };
        Ok(changed(so_far, named, true))
    })
}

fn backup(matches: &ArgMatches) -> Result<Backup, Refusal> {
    let given = matches.get_one::<OsString>("suffix");
    if given.is_some_and(|suffix| suffix.is_empty() || suffix.as_bytes().contains(&b'/')) {
        return Err(Refusal::Wrong(
            "a suffix is part of a name: not empty, and without a slash".into(),
        ));
    }
    let suffix = given.map_or_else(|| SUFFIX.into(), Clone::clone);
    let control = matches.get_one::<String>("backup").map(String::as_str);
    // As with cp, a suffix alone asks for a backup.
    Ok(match control.or(given.map(|_| "existing")) {
        Some("numbered" | "t") => Backup::Numbered,
        Some("existing" | "nil") => Backup::Existing(suffix),
        Some("simple" | "never") => Backup::Simple(suffix),
        _ => Backup::None,
    })
}

fn excluded(matches: &ArgMatches) -> Vec<Vec<u8>> {
    let globs = matches.get_many::<String>("exclude").into_iter().flatten();
    globs.map(|glob| glob.clone().into_bytes()).collect()
}

fn glob(text: &str) -> Result<String, String> {
    Exclude::check(text)
        .map(|()| text.to_owned())
        .map_err(|why| {
            // It may name characters of the glob.
            let why: String = why.chars().filter(|c| !c.is_control()).collect();
            format!("--exclude takes a glob ({why})")
        })
}

fn chunk(text: &str) -> Result<u64, String> {
    bytes(text)
        .filter(|bytes| (LEAST_CHUNK..=MOST_CHUNK).contains(bytes) && bytes % CHUNK_UNIT == 0)
        .ok_or_else(|| "a chunk is 64K to 1G, a multiple of 4096".into())
}

fn limit(text: &str) -> Result<NonZeroU64, String> {
    bytes(text)
        .and_then(NonZeroU64::new)
        .ok_or_else(|| "bytes a second are a number above 0, as 500K, 100M or 1G".into())
}

fn workers(text: &str) -> Result<Option<NonZeroU16>, String> {
    if text == "auto" {
        return Ok(None);
    }
    let number = text.parse().ok().and_then(NonZeroU16::new);
    number
        .filter(|number| number.get() <= MOST_WORKERS)
        .map(Some)
        .ok_or_else(|| format!("workers are auto, or 1 to {MOST_WORKERS}"))
}

/// Bytes: digits, then nothing, K, M, G or T (also KiB, …), powers of 1024.
pub fn bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        _ => return None,
    };
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    plain
        .then(|| digits.parse::<u64>().ok())??
        .checked_mul(1 << shift)
}

/// A word of a line as an argument.
pub(super) fn argument(word: &[u8]) -> &OsStr {
    OsStr::from_bytes(word)
}
