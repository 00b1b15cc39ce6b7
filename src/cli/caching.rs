//! The words of `corfs cache`.

use super::size;
use crate::fuse::session::{Action, CacheCommand};
use clap::builder::OsStringValueParser;
use clap::{Arg, ArgAction, ArgMatches, Command as Clap};
use std::ffi::OsString;
use std::path::PathBuf;

/// The most threads that one may have read.
const MOST_WORKERS: usize = 64;

/// `corfs cache ...`, for the parser.
pub(super) fn clap() -> Clap {
    let one = |name: &'static str, about: &'static str| {
        Clap::new(name)
            .about(about)
            .args([json(), place("PLACE", false)])
    };
    let several = |name: &'static str, about: &'static str| {
        Clap::new(name).about(about).args([
            json(),
            place("PATH", true).action(ArgAction::Append).num_args(1..),
        ])
    };
    Clap::new("cache")
        .about("Look at caches, fill and empty them")
        .subcommand_required(true)
        .disable_help_subcommand(true)
        .after_help(AFTER)
        .subcommands([
            one("status", "Show what a cache holds, and of which sources"),
            one("list", "List the files that are cached"),
            several(
                "warm",
                "Read files and trees of a mount, so that they are cached",
            )
            .args([
                word("quiet", "No progress bar").short('q'),
                valued("workers", "N", "Files read at once (4)").short('j'),
                valued("limit", "SIZE", "End when so much was read"),
            ]),
            several(
                "pin",
                "Keep cached files and trees of a mount from being evicted",
            ),
            several("unpin", "Let them be evicted again"),
            one(
                "verify",
                "Compare all that is cached with its checksums; what is wrong is dropped",
            ),
            one("evict", "Remove what is neither in use nor pinned").args([
                word("pinned", "Also what is pinned"),
                valued(
                    "keep",
                    "SIZE",
                    "Stop when so much or less is left, oldest first",
                ),
            ]),
            one(
                "check",
                "Find and remove what killed processes left, and count anew",
            ),
        ])
}

/// What was asked for.
pub(super) fn parse(matches: &ArgMatches) -> Result<CacheCommand, String> {
    let Some((name, words)) = matches.subcommand() else {
        return Err("cache: status, list, warm, pin, unpin, verify, evict or check?".into());
    };
    let place = || words.get_one::<OsString>("PLACE").map(PathBuf::from);
    let paths = || {
        let paths = words.get_many::<OsString>("PATH").into_iter().flatten();
        paths.map(PathBuf::from).collect()
    };
    let action = match name {
        "status" => Action::Status(place()),
        "list" => Action::List(place()),
        "warm" => Action::Warm {
            paths: paths(),
            workers: workers(words)?,
            limit: bytes(words, "limit")?,
            quiet: words.get_flag("quiet"),
        },
        "pin" => Action::Pin(paths()),
        "unpin" => Action::Unpin(paths()),
        "verify" => Action::Verify(place()),
        "evict" => Action::Evict {
            place: place(),
            keep: bytes(words, "keep")?.unwrap_or(0),
            pinned: words.get_flag("pinned"),
        },
        _ => Action::Check(place()),
    };
    let json = words.get_flag("json");
    Ok(CacheCommand { action, json })
}

fn workers(words: &ArgMatches) -> Result<usize, String> {
    let Some(text) = words.get_one::<OsString>("workers") else {
        return Ok(4);
    };
    let number = text.to_str().and_then(|text| text.parse().ok());
    number
        .filter(|number| (1..=MOST_WORKERS).contains(number))
        .ok_or_else(|| format!("cache warm: --workers is a number from 1 to {MOST_WORKERS}"))
}

fn bytes(words: &ArgMatches, name: &str) -> Result<Option<u64>, String> {
    let Some(text) = words.get_one::<OsString>(name) else {
        return Ok(None);
    };
    let bytes = text.to_str().and_then(size::bytes);
    let wrong = || format!("cache: --{name} is a size, as 10G");
    bytes.map(Some).ok_or_else(wrong)
}

fn json() -> Arg {
    word("json", "For programs")
}

fn word(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .action(ArgAction::SetTrue)
        .help(help)
}

fn valued(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .value_name(value)
        .value_parser(OsStringValueParser::new())
        .help(help)
}

fn place(name: &'static str, required: bool) -> Arg {
    let help = if required {
        "Files and directories of a mount that has a cache"
    } else {
        "A cache directory, or a path in a mount that has one (default: your cache)"
    };
    Arg::new(name)
        .required(required)
        .value_parser(OsStringValueParser::new())
        .help(help)
}

const AFTER: &str = "\
PLACE is a cache directory, or a path in a mount that has a cache: then what lies
below that path is meant. Without one it is /var/cache/corfs for root, for others
$XDG_CACHE_HOME/corfs or ~/.cache/corfs. With --json each line is an object.
Warming again goes on where it ended: what is cached whole is not read.
Exit codes: 0 all is well, 1 something is not (or the words are wrong), 2 system.";

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &[&str]) -> Result<CacheCommand, String> {
        let matches = clap().try_get_matches_from(line);
        parse(&matches.map_err(|error| error.to_string())?)
    }

    #[test]
    fn each_command_has_its_words() {
        let warm = parsed(&["cache", "warm", "-j", "8", "--limit=1G", "a", "b"]).unwrap();
        assert_eq!(
            warm.action,
            Action::Warm {
                paths: vec!["a".into(), "b".into()],
                workers: 8,
                limit: Some(1 << 30),
                quiet: false
            }
        );
        let evict = parsed(&["cache", "evict", "--keep", "10M", "--json", "/c"]).unwrap();
        assert!(evict.json);
        assert_eq!(
            evict.action,
            Action::Evict {
                place: Some("/c".into()),
                keep: 10 << 20,
                pinned: false
            }
        );
        let status = parsed(&["cache", "status"]).unwrap();
        assert_eq!(status.action, Action::Status(None));
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert!(
            parsed(&["cache", "warm", "--limit=x", "a"])
                .unwrap_err()
                .contains("--limit")
        );
        assert!(
            parsed(&["cache", "warm", "-j0", "a"])
                .unwrap_err()
                .contains("--workers")
        );
        assert!(parsed(&["cache", "pin"]).unwrap_err().contains("PATH"));
    }
}
