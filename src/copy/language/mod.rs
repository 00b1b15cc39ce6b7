//! What a line written into a `.copy` means: `[options] SRC... DST [&]`, or a word to a job.
//!
//! Options and names are cp's, see [`args`]; words are quoted as for a shell, see `words`. An
//! unquoted `&` as last word sends the copy to the background.

pub mod args;
pub mod wording;
mod words;

use clap::builder::ValueParser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches, Command};

use self::args::{Asked, Refusal, argument, arguments, asked};
pub use self::words::quote;
use self::words::{Word, refuse, split};
use super::options::CopyOptions;
use crate::sys::Result;

/// What a line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// A copy.
    Copy(Box<CopyRequest>),
    /// `--cancel N|all`
    Cancel(Which),
    /// `--wait N`: the write is answered as that job ends.
    Wait(u64),
    /// `--pause N`
    Pause(u64),
    /// `--resume-job N`
    ResumeJob(u64),
}

/// One copy, as asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyRequest {
    /// How to copy.
    pub options: CopyOptions,
    /// What to copy, as named; at least one.
    pub sources: Vec<Vec<u8>>,
    /// Where to, as named.
    pub destination: Vec<u8>,
    /// The write is answered at once.
    pub background: bool,
}

/// Whose copies are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The job of this number.
    One(u64),
    /// All of the one who asks; of root, all.
    All,
}

/// Words to jobs: each stands alone on its line.
const TO_JOBS: [&str; 4] = ["cancel", "wait", "pause", "resume-job"];

/// Reads one line (without its newline). An empty one, or a comment, is `None`.
///
/// # Errors
/// EINVAL, with the column and what is wrong there.
pub fn parse(line: &[u8]) -> Result<Option<Request>> {
    let mut words = split(line)?;
    let ampersand = take_ampersand(&mut words)?;
    let end = ampersand.unwrap_or(line.len() + 1);
    if words.is_empty() {
        return match ampersand {
            Some(column) => Err(refuse(column, "the names are missing")),
            None => Ok(None),
        };
    }
    match interpret(&words) {
        Ok(Request::Copy(copy)) => Ok(Some(Request::Copy(Box::new(CopyRequest {
            background: ampersand.is_some(),
            ..*copy
        })))),
        Ok(_) if ampersand.is_some() => Err(refuse(end, "only a copy goes to the background:")),
        Ok(request) => Ok(Some(request)),
        Err(Refusal::Missing(what)) => Err(refuse(end, what)),
        Err(Refusal::Wrong(why)) => Err(refuse(at_fault(&words, &why), &why)),
    }
}

/// Takes an `&` off the end, and answers its column.
///
/// # Errors
/// EINVAL for one that stands elsewhere, and for one that is glued to the last word: a shell takes
/// it for its own there, a name may end so.
fn take_ampersand(words: &mut Vec<Word>) -> Result<Option<usize>> {
    // Not with empty quotes before it, which are a word.
    let lone = |word: &Word| word.raw == 1 && word.bytes == b"&";
    let last = words.pop_if(|word| lone(word)).map(|word| word.column);
    if let Some(early) = words.iter().find(|word| lone(word)) {
        return Err(early.refuse("the end of a line is the place of an unquoted"));
    }
    match words.last() {
        Some(word) if word.ends_plain && word.bytes.ends_with(b"&") => {
            let column = word.column + word.raw - 1;
            let why = "a space belongs before this & (or quotes around a name that ends so)";
            Err(refuse(column, why))
        }
        _ => Ok(last),
    }
}

/// The column of the first word with which the line is wrong as it is wrong in all.
fn at_fault(words: &[Word], why: &str) -> usize {
    let same =
        |words: &[Word]| matches!(interpret(words), Err(Refusal::Wrong(other)) if other == why);
    // What is wrong at one word stays wrong with all that follow, so few of them need be tried.
    let (mut fine, mut wrong) = (0, words.len());
    while fine + 1 < wrong {
        let middle = fine.midpoint(wrong);
        if same(&words[..middle]) {
            wrong = middle;
        } else {
            fine = middle;
        }
    }
    words.get(fine).map_or(1, |word| word.column)
}

fn interpret(words: &[Word]) -> std::result::Result<Request, Refusal> {
    let matches = command()
        .try_get_matches_from(words.iter().map(|word| argument(&word.bytes)))
        .map_err(|error| Refusal::Wrong(explain(&error)))?;
    if let Some(request) = to_a_job(&matches)? {
        return Ok(request);
    }
    let Asked {
        options,
        sources,
        destination,
    } = asked(&matches)?;
    Ok(Request::Copy(Box::new(CopyRequest {
        options,
        sources,
        destination,
        background: false,
    })))
}

fn command() -> Command {
    let number = |name: &'static str| {
        Arg::new(name)
            .long(name)
            .value_name("N")
            .exclusive(true)
            .allow_hyphen_values(true)
            .action(ArgAction::Append)
            .value_parser(ValueParser::new(which))
    };
    arguments()
        .no_binary_name(true)
        .disable_help_flag(true)
        .args(TO_JOBS.map(number))
}

fn to_a_job(matches: &ArgMatches) -> std::result::Result<Option<Request>, Refusal> {
    let wrong = |why: String| Err(Refusal::Wrong(why));
    for name in TO_JOBS {
        let mut given = matches.get_many::<Which>(name).into_iter().flatten();
        let Some(which) = given.next() else {
            continue;
        };
        if given.next().is_some() {
            return wrong(format!("--{name} takes one job a line"));
        }
        let one = match (name, *which) {
            ("cancel", which) => return Ok(Some(Request::Cancel(which))),
            (_, Which::All) => return wrong(format!("--{name} needs the number of a job")),
            (_, Which::One(number)) => number,
        };
        return Ok(Some(match name {
            "wait" => Request::Wait(one),
            "pause" => Request::Pause(one),
            _ => Request::ResumeJob(one),
        }));
    }
    Ok(None)
}

fn which(text: &str) -> std::result::Result<Which, String> {
    if text == "all" {
        return Ok(Which::All);
    }
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse().ok().filter(|_| digits);
    number
        .map(Which::One)
        .ok_or_else(|| "a job has a number, as `cat .copy` shows it (or `all` to cancel)".into())
}

/// What clap says, on one line and without a byte that could upset a terminal.
fn explain(error: &clap::Error) -> String {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.as_str(),
        _ => "",
    };
    let (given, value) = (
        text(ContextKind::InvalidArg),
        text(ContextKind::InvalidValue),
    );
    // `--chunk <SIZE>`, `--backup[=<CONTROL>]`: the name is enough.
    let name = given.split([' ', '[', '=']).next().unwrap_or_default();
    match error.kind() {
        ErrorKind::UnknownArgument => unknown(error, given),
        ErrorKind::InvalidValue if value.is_empty() => format!("no value for {name}"),
        ErrorKind::InvalidValue => format!("{name} is {}; not {}", known(error), quoted(value)),
        ErrorKind::ValueValidation => {
            let why =
                std::error::Error::source(error).map_or_else(String::new, ToString::to_string);
            format!("{why}; not {}", quoted(value))
        }
        ErrorKind::TooManyValues => format!("{name} takes no value"),
        ErrorKind::ArgumentConflict => format!("{name} stands alone on its line"),
        ErrorKind::InvalidUtf8 => "a value that is no UTF-8".into(),
        _ => one_line(&error.to_string()),
    }
}

fn unknown(error: &clap::Error, given: &str) -> String {
    let name = quoted(given);
    match error.get(ContextKind::SuggestedArg) {
        _ if matches!(given, "-h" | "--help") => "`cat .copy` tells what a line may say".into(),
        Some(ContextValue::String(other)) => {
            format!("unknown option {name}; perhaps {}?", quoted(other))
        }
        _ => format!("unknown option {name}"),
    }
}

fn known(error: &clap::Error) -> String {
    match error.get(ContextKind::ValidValue) {
        Some(ContextValue::Strings(words)) => words.join(", "),
        _ => "something else".into(),
    }
}

fn quoted(text: &str) -> String {
    quote(text.as_bytes())
}

fn one_line(text: &str) -> String {
    let first = text.lines().next().unwrap_or_default();
    first.chars().filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests;
