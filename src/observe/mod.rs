//! Counters, gauges and latency histograms, as OpenMetrics text, and the lines of the operation log.
//! Every floor counts here.

mod metrics;
pub mod names;
mod op;
pub mod oplog;
mod series;
pub mod text;

pub use metrics::Metrics;
pub use op::{CopyEnd, Fallback, Invalidated, Op, OpenMode, PassthroughState, ReadMode, WatchedBy};
