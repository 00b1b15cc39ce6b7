//! The list of jobs for people.

use std::fmt::Write as _;
use std::sync::LazyLock;

use super::view::View;
use crate::copy::language::args::arguments;
use crate::copy::language::quote;
use crate::copy::options::Method;

/// Files of a tree whose errors are shown; JSON has more.
const MOST_ERRORS: usize = 5;
/// Powers of 1000, as disks are sold and rates are told.
const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];

/// What stands above the list.
pub(super) static HEAD: LazyLock<String> = LazyLock::new(|| {
    let mut head = String::from(
        "# a line: [options] SRC... DST [&]\n\
         # or: --wait N, --cancel N|all, --pause N, --resume-job N\n",
    );
    let mut line = String::from("# options:");
    for option in options() {
        if line.len() + option.len() > 98 {
            head.push_str(&line);
            head.push('\n');
            line = String::from("#  ");
        }
        // Writing to a String does not fail.
        let _ = write!(line, " {option}");
    }
    head + &line + "\n# no.  state      bytes  files  rate now, mean  left  method  names\n"
});

/// Every option as it is written: `-r`, `--chunk=SIZE`, `--backup[=CONTROL]`.
fn options() -> Vec<String> {
    let command = arguments();
    let mut all = Vec::new();
    for option in command
        .get_arguments()
        .filter(|option| !option.is_positional())
    {
        let short = option.get_short().map(|short| format!("-{short}"));
        let value = option.get_value_names().unwrap_or_default().first();
        let long = option.get_long().map(|long| match value {
            Some(value) if option.is_require_equals_set() => format!("--{long}[={value}]"),
            Some(value) if option.get_action().takes_values() => format!("--{long}={value}"),
            _ => format!("--{long}"),
        });
        let both: Vec<String> = short.into_iter().chain(long).collect();
        all.push(both.join("|"));
    }
    all
}

impl View {
    /// One line for people, and more below it where there were errors.
    pub(super) fn describe(&self, text: &mut String) {
        // Writing to a String does not fail.
        let _ = write!(
            text,
            "{:>5}  {:<9}  {}",
            self.number,
            self.state.name(),
            self.bytes()
        );
        if self.files_total > 1 {
            let more = if self.totals_known { "" } else { "+" };
            let _ = write!(
                text,
                "  {}/{}{more} files",
                self.files_done, self.files_total
            );
        }
        if self.rate_now > 0 {
            let _ = write!(text, "  {}/s now", amount(self.rate_now));
        }
        if self.seconds > 0.0 {
            let _ = write!(text, "  {}/s", amount(self.rate_mean));
        }
        if let Some(left) = self.seconds_left {
            let _ = write!(text, "  {} left", duration(left));
        }
        let _ = write!(text, "  {}", self.method.map_or("-", Method::name));
        if self.workers > 1 {
            let _ = write!(text, " x{}", self.workers);
        }
        let _ = writeln!(text, "  {}", self.title);
        self.describe_errors(text);
    }

    fn describe_errors(&self, text: &mut String) {
        for failure in self.errors.iter().take(MOST_ERRORS) {
            let path = quote(&failure.bytes);
            let _ = writeln!(text, "       {path}: {}", failure.error);
        }
        let more = self.failed.saturating_sub(MOST_ERRORS as u64);
        if more > 0 {
            let _ = writeln!(text, "       and {more} more files that failed");
        }
        if let Some(error) = &self.error {
            let _ = writeln!(text, "       {error}");
        }
    }

    fn bytes(&self) -> String {
        let (done, total) = (self.bytes_done, self.bytes_total);
        // Small numbers are told to the byte.
        let largest = total.max(done);
        let unit = if largest < 10_000_000 {
            0
        } else {
            unit(largest)
        };
        let mut text = format!(
            "{}/{} {}",
            in_unit(done, unit),
            in_unit(total, unit),
            UNITS[unit]
        );
        if total > 0 {
            let _ = write!(text, " ({} %)", u128::from(done) * 100 / u128::from(total));
        }
        text
    }
}

/// The largest unit in which a number has at least two digits before its decimal.
fn unit(bytes: u64) -> usize {
    (1..UNITS.len())
        .take_while(|power| bytes / 1000_u64.pow(*power as u32) >= 10)
        .count()
}

/// One decimal, by whole numbers.
fn in_unit(bytes: u64, unit: usize) -> String {
    let Some(tenth) = 1000_u64
        .pow(unit as u32)
        .checked_div(10)
        .filter(|tenth| *tenth > 0)
    else {
        return bytes.to_string();
    };
    let tenths = bytes / tenth;
    format!("{}.{}", tenths / 10, tenths % 10)
}

fn amount(bytes: u64) -> String {
    let unit = unit(bytes);
    format!("{} {}", in_unit(bytes, unit), UNITS[unit])
}

fn duration(seconds: u64) -> String {
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match hours {
        0 => format!("{minutes}:{seconds:02}"),
        _ => format!("{hours}:{minutes:02}:{seconds:02}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::view::{FileError, State};
    use super::*;

    fn view() -> View {
        View {
            number: 7,
            owner: 0,
            state: State::Running,
            title: "a -> b".into(),
            method: Some(Method::MapWrite),
            workers: 2,
            bytes_done: 5_000_000_000,
            bytes_total: 20_000_000_000,
            files_done: 1,
            files_total: 3,
            totals_known: false,
            rate_now: 1_550_000_000,
            rate_mean: 950_000,
            seconds: 3.5,
            seconds_left: Some(3_661),
            failed: 0,
            errors: vec![],
            errno: None,
            error: None,
        }
    }

    fn described(view: &View) -> String {
        let mut text = String::new();
        view.describe(&mut text);
        text
    }

    #[test]
    fn a_line_tells_how_far_it_is() {
        assert_eq!(
            described(&view()),
            "    7  running    5.0/20.0 GB (25 %)  1/3+ files  1550.0 MB/s now  950.0 kB/s  \
             1:01:01 left  map-write x2  a -> b\n"
        );
    }

    #[test]
    fn errors_stand_below_and_are_few() {
        let error = |number: u32| FileError {
            path: String::new(),
            bytes: [b"d/\n\xff", number.to_string().as_bytes()].concat(),
            errno: 5,
            error: "open: no".into(),
        };
        let mut view = view();
        view.failed = 250;
        view.errors = (0..100).map(error).collect();
        view.error = Some("copy: 250 files failed".into());
        let text = described(&view);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 1 + MOST_ERRORS + 2);
        assert_eq!(lines[1].trim(), r"$'d/\n\3770': open: no");
        assert_eq!(lines[6].trim(), "and 245 more files that failed");
        assert_eq!(lines[7].trim(), "copy: 250 files failed");
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(amount(0), "0 B");
        assert_eq!(amount(9_999), "9999 B");
        assert_eq!(amount(10_000), "10.0 kB");
        assert_eq!(amount(u64::MAX), "18446.7 PB");
        assert_eq!(duration(59), "0:59");
        assert_eq!(duration(3_600), "1:00:00");
    }

    #[test]
    fn the_head_names_every_option() {
        assert!(
            HEAD.lines()
                .all(|line| line.starts_with('#') && line.len() <= 100)
        );
        for option in [
            "-r|--recursive",
            "-a|--archive",
            "-p",
            "--chunk=SIZE",
            "-b|--backup[=CONTROL]",
            "--resume",
        ] {
            assert!(HEAD.contains(option), "{option}: {}", *HEAD);
        }
    }
}
