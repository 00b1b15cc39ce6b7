//! The life of a mount: how it begins, what it outlives, how it ends.

mod faults;

/// How long what must happen may take; no test waits so long when all is well.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);
