//! How a copy is told of: a bar for people, lines for programs, or not at all.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::{Failed, Outcome, Standing, Telling};
use crate::fuse::session::refusal::{Refusal, said};

/// A bar that would be gone at once is not shown.
const MOMENT: Duration = Duration::from_millis(300);
/// How often a program is told.
const SECOND: Duration = Duration::from_secs(1);
/// The totals are known.
const BAR: &str =
    "{wide_bar} {percent:>3} %  {bytes} of {total_bytes}  {bytes_per_sec}  {eta} left{msg}";
/// More may be found.
const COUNT: &str = "{spinner} {bytes} of {total_bytes} so far  {bytes_per_sec}{msg}";

/// Where the copy is told of.
pub(super) struct View {
    started: Instant,
    how: How,
}

enum How {
    Bar {
        /// Made when it is first shown.
        bar: Option<ProgressBar>,
        known: bool,
        stopping: bool,
    },
    Json {
        last: Instant,
    },
    Nothing,
}

/// One line of `--json`.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Line<'a> {
    Progress {
        #[serde(flatten)]
        standing: &'a Standing,
        seconds: f64,
    },
    Failed(&'a Failed),
    Result {
        state: &'static str,
        #[serde(flatten)]
        standing: &'a Standing,
        seconds: f64,
        errno: Option<i32>,
        error: Option<&'a str>,
    },
}

impl View {
    pub(super) fn new(telling: Telling) -> Self {
        let started = Instant::now();
        let how = match telling {
            Telling::Bar if std::io::stderr().is_terminal() => How::Bar {
                bar: None,
                known: false,
                stopping: false,
            },
            Telling::Json => How::Json { last: started },
            Telling::Bar | Telling::Nothing => How::Nothing,
        };
        Self { started, how }
    }

    /// So far it is now.
    pub(super) fn show(&mut self, standing: &Standing) {
        let seconds = self.started.elapsed();
        match &mut self.how {
            How::Bar {
                bar,
                known,
                stopping,
            } if seconds >= MOMENT => {
                let bar = bar.get_or_insert_with(|| new_bar(self.started));
                if standing.totals_known != *known {
                    *known = standing.totals_known;
                    bar.set_style(style(*known));
                }
                bar.set_length(standing.bytes_total);
                bar.set_position(standing.bytes_done);
                bar.set_message(message(standing, *stopping));
            }
            How::Json { last } if last.elapsed() >= SECOND => {
                *last = Instant::now();
                // A reader that has gone away is told of when the result can't be written.
                let _ = print(&Line::Progress {
                    standing,
                    seconds: seconds.as_secs_f64(),
                });
            }
            _ => {}
        }
    }

    /// It was told to stop.
    pub(super) fn stopping(&mut self) {
        if let How::Bar { stopping, .. } = &mut self.how {
            *stopping = true;
        }
    }

    /// Gives the terminal's line back.
    pub(super) fn clear(&mut self) {
        if let How::Bar { bar: Some(bar), .. } = &self.how {
            bar.finish_and_clear();
        }
    }

    /// It has ended. What took a moment only leaves no bar behind, nor does what failed.
    pub(super) fn end(&mut self, outcome: &Outcome) -> Result<(), Refusal> {
        let standing = &outcome.standing;
        match (&self.how, &outcome.end) {
            (How::Bar { bar: Some(bar), .. }, Ok(())) => {
                bar.set_style(style(true));
                bar.set_length(standing.bytes_total);
                bar.set_position(standing.bytes_done);
                bar.set_message(message(standing, false));
                bar.finish();
            }
            (How::Bar { .. }, _) => self.clear(),
            (How::Json { .. }, _) => {
                let seconds = self.started.elapsed().as_secs_f64();
                return lines(outcome, seconds).map_err(|error| {
                    Refusal::system(format!("write to standard output: {}", said(error)))
                });
            }
            (How::Nothing, _) => {}
        }
        Ok(())
    }
}

fn new_bar(started: Instant) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.set_style(style(false));
    bar.with_elapsed(started.elapsed())
}

fn style(known: bool) -> ProgressStyle {
    let template = if known { BAR } else { COUNT };
    // The templates are constants, and a test draws with both.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// What no bar shows: files, if there are several, and what is wrong.
fn message(standing: &Standing, stopping: bool) -> String {
    let mut message = String::new();
    if standing.files_total > 1 {
        message = format!("  {}/{} files", standing.files_done, standing.files_total);
    }
    if standing.failed > 0 {
        message += &format!("  {} failed", standing.failed);
    }
    if stopping {
        message += "  stopping";
    }
    message
}

fn lines(outcome: &Outcome, seconds: f64) -> std::io::Result<()> {
    for failed in &outcome.failed {
        print(&Line::Failed(failed))?;
    }
    let why = outcome.end.as_ref().err();
    let state = match why {
        None => "done",
        Some(why) if why.is_cancel() => "cancelled",
        Some(_) => "failed",
    };
    print(&Line::Result {
        state,
        standing: &outcome.standing,
        seconds,
        errno: why.map(|why| why.errno.raw_os_error()),
        error: why.map(|why| why.words.as_str()),
    })
}

fn print(line: &Line<'_>) -> std::io::Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    std::io::stdout().write_all(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_the_bar_can_be_drawn() {
        for template in [BAR, COUNT] {
            ProgressStyle::with_template(template).unwrap();
        }
    }

    #[test]
    fn a_line_says_what_it_is() {
        let standing = Standing {
            bytes_done: 7,
            ..Standing::default()
        };
        let line = Line::Result {
            state: "done",
            standing: &standing,
            seconds: 0.5,
            errno: None,
            error: None,
        };
        let read: serde_json::Value = serde_json::to_value(&line).unwrap();
        assert_eq!(read["type"], "result");
        assert_eq!(read["bytes_done"], 7);
        assert!(read["error"].is_null());
    }

    #[test]
    fn the_words_beside_the_bar_say_only_what_there_is() {
        let mut standing = Standing::default();
        assert_eq!(message(&standing, false), "");
        (standing.files_done, standing.files_total) = (3, 10);
        standing.failed = 2;
        assert_eq!(message(&standing, true), "  3/10 files  2 failed  stopping");
    }
}
