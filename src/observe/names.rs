//! The names of all series, as they stand in the text. Prefix `corfs_`; the unit is the last word,
//! before `_total` of a counter.
//!
//! Source of the conventions: the OpenMetrics 1.0 specification.

/// The constants, and what each counts, which stands above it here and in the text.
macro_rules! names {
    ($(#[doc = $help:literal] $constant:ident = $name:literal,)*) => {
        $(#[doc = $help] pub const $constant: &str = $name;)*

        /// What a series counts.
        pub(super) fn help(name: &str) -> &'static str {
            match name {
                $($name => $help.trim_ascii(),)*
                _ => "",
            }
        }
    };
}

names! {
    /// Operations answered, by `op`.
    OPERATIONS = "corfs_operations_total",
    /// Operations answered with an error, by `op`.
    OPERATION_ERRORS = "corfs_operation_errors_total",
    /// Time from request to reply in seconds, a histogram by `op`.
    OPERATION_DURATION = "corfs_operation_duration_seconds",
    /// Opens of files, by `mode`.
    OPENS = "corfs_opens_total",
    /// 1 at the `state` of FUSE passthrough that holds.
    PASSTHROUGH = "corfs_passthrough",
    /// Bytes that reads were answered with, by `mode`.
    READ_BYTES = "corfs_read_bytes_total",
    /// Bytes of reads that should have come from a window and did not, by `reason`.
    READ_FALLBACK_BYTES = "corfs_read_fallback_bytes_total",
    /// Bytes written to the source through the mount.
    WRITTEN_BYTES = "corfs_written_bytes_total",
    /// Windows mapped now.
    WINDOWS = "corfs_windows",
    /// Bytes mapped now.
    WINDOW_MAPPED = "corfs_window_mapped_bytes",
    /// Bytes that were ever mapped at once.
    WINDOW_MAPPED_PEAK = "corfs_window_mapped_bytes_peak",
    /// Bytes that may be mapped at once.
    WINDOW_BUDGET = "corfs_window_budget_bytes",
    /// Requests answered from a window that was mapped already.
    WINDOW_HITS = "corfs_window_hits_total",
    /// Requests whose window had to be mapped first.
    WINDOW_MISSES = "corfs_window_misses_total",
    /// Windows unmapped to make room for another.
    WINDOW_EVICTIONS = "corfs_window_evictions_total",
    /// Windows mapped ahead of a sequential reader.
    WINDOWS_READIED = "corfs_windows_readied_ahead_total",
    /// Pages that could not be had (file truncated, I/O error), each survived.
    FAULTS_SURVIVED = "corfs_faults_survived_total",
    /// Copies taken, each of which waits for its turn first.
    COPIES_STARTED = "corfs_copies_started_total",
    /// Copies whose turn it is now.
    COPIES_RUNNING = "corfs_copies_running",
    /// Copies ended, by `end`.
    COPIES = "corfs_copies_total",
    /// Bytes copied inside the source.
    COPY_BYTES = "corfs_copy_bytes_total",
    /// Inodes that the kernel knows.
    INODES = "corfs_inodes",
    /// Inodes that the kernel may know before it is asked to forget some; 0 for any number.
    INODE_LIMIT = "corfs_inode_limit",
    /// Inodes that the kernel was asked to forget.
    INODES_PRUNED = "corfs_inodes_pruned_total",
    /// Files and directories that are open through the mount.
    HANDLES = "corfs_handles",
    /// Descriptors held by the inode table.
    DESCRIPTORS = "corfs_descriptors",
    /// Memory of this process in RAM, heap and mapped windows together.
    RESIDENT = "corfs_resident_bytes",
    /// Threads that wait for a source that may hang, or for something to ask it.
    SOURCE_WORKERS = "corfs_source_workers",
    /// Requests answered ETIMEDOUT because the source did not answer in time.
    SOURCE_TIMEOUTS = "corfs_source_timeouts_total",
    /// Requests that waited for the source and were ended by a signal of their caller.
    SOURCE_INTERRUPTS = "corfs_source_interrupts_total",
    /// Whether the source is not asked, as it fails, hangs or is gone: 1, else 0.
    SOURCE_OFFLINE = "corfs_source_offline",
    /// When that began, in seconds since 1970; 0 while the source is asked.
    SOURCE_OFFLINE_SINCE = "corfs_source_offline_since_seconds",
    /// How often the source was lost.
    SOURCE_OUTAGES = "corfs_source_outages_total",
    /// Requests that were answered without the source while it was not asked.
    SOURCE_APART = "corfs_source_apart_total",
    /// Names, attributes and listings that were given to the store of names.
    NAMES_NOTED = "corfs_names_noted_total",
    /// The same that were not kept, for want of room or of time.
    NAMES_DROPPED = "corfs_names_dropped_total",
    /// Whether the source is watched, by `by`: 1 or 0.
    WATCHING = "corfs_watching",
    /// File systems (fanotify) or directories (inotify) that are watched.
    WATCHES = "corfs_watches",
    /// File systems or directories that should have been watched and were not, by limit or refusal.
    UNWATCHED = "corfs_unwatched_total",
    /// Events of changes in the source, those of our own included.
    WATCH_EVENTS = "corfs_watch_events_total",
    /// Things that the kernel was told to forget, by `what`.
    INVALIDATIONS = "corfs_invalidations_total",
    /// Times that events were lost, and everything was dropped.
    WATCH_OVERFLOWS = "corfs_watch_overflows_total",
    /// Requests answered from the cache alone.
    CACHE_HITS = "corfs_cache_hits_total",
    /// Requests for which the source had to be asked.
    CACHE_MISSES = "corfs_cache_misses_total",
    /// Blocks read from the source.
    CACHE_FILLS = "corfs_cache_fills_total",
    /// Bytes read from the source for the cache.
    CACHE_FILLED_BYTES = "corfs_cache_filled_bytes_total",
    /// Bytes stored in the cache.
    CACHE_STORED_BYTES = "corfs_cache_stored_bytes_total",
    /// Requests that waited for a block that another was reading already.
    CACHE_WAITS = "corfs_cache_waits_total",
    /// Blocks served and not stored, as their file had changed too lately.
    CACHE_PROVISIONAL = "corfs_cache_provisional_total",
    /// Blocks served and not stored, as there was no room.
    CACHE_UNSTORED = "corfs_cache_unstored_total",
    /// Entries removed to make room.
    CACHE_EVICTIONS = "corfs_cache_evictions_total",
    /// Blocks whose bytes were not those that had been stored.
    CACHE_CORRUPT = "corfs_cache_corrupt_total",
    /// Errors of the cache disk.
    CACHE_ERRORS = "corfs_cache_errors_total",
    /// Bytes that the whole cache directory takes, what is reserved included.
    CACHE_USED = "corfs_cache_used_bytes",
    /// Bytes that the whole cache directory may take.
    CACHE_LIMIT = "corfs_cache_limit_bytes",
}
