//! Straight to the engine, in this process.

use super::stop::Stop;
use super::view::View;
use super::watched::{Work, watched};
use super::{Failed, Outcome, Standing, Why, method_name};
use crate::copy::language::args::Asked;
use crate::copy::options::Priority;
use crate::copy::progress::Progress;
use crate::copy::{Local, Order, tree};
use crate::fuse::session::refusal::Refusal;
use crate::observe::Metrics;
use crate::sys::{priority, process};

pub(super) fn copy(asked: &Asked, stop: &Stop, view: &mut View) -> Result<Outcome, Refusal> {
    // Several workers hold several files each.
    if asked.options.recursive {
        process::raise_descriptor_limit();
    }
    let names = Local::of_this_process();
    let progress = Progress::new(asked.options.limit);
    let order = Order {
        options: &asked.options,
        progress: &progress,
        metrics: &Metrics::new(),
    };
    let end = watched(&progress, stop, view, || {
        if asked.options.priority == Priority::Idle {
            // Also those whom this thread starts.
            priority::idle()?;
        }
        tree::copy_all(&asked.sources, &asked.destination, &names, &order)
    })?;
    let (_, failures) = progress.failures();
    let failed = failures.into_iter().map(|failure| Failed {
        path: String::from_utf8_lossy(&failure.path).into_owned(),
        errno: failure.fail.errno.raw_os_error(),
        error: failure.fail.to_string(),
    });
    Ok(Outcome {
        standing: standing(&progress),
        failed: failed.collect(),
        end: end.map_err(|fail| Why {
            errno: fail.errno,
            words: fail.to_string(),
        }),
    })
}

fn standing(progress: &Progress) -> Standing {
    let (files_done, files_total) = progress.files();
    Standing {
        method: progress.method().map(method_name),
        workers: progress.workers(),
        bytes_done: progress.bytes_done(),
        bytes_total: progress.bytes_total(),
        files_done,
        files_total,
        totals_known: progress.totals_known(),
        failed: progress.failures().0,
    }
}

impl Work for Progress {
    fn standing(&self) -> Option<Standing> {
        Some(standing(self))
    }

    fn cancel(&self, _: i32) {
        Progress::cancel(self);
    }
}
