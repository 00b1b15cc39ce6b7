//! One error type for all floors: an errno for the caller, words for the log.

use std::fmt;

/// An error number of the kernel.
pub use rustix::io::Errno;

/// Why an operation failed: the errno its caller gets, and what was tried on what, for the log.
#[derive(Clone, Debug)]
pub struct Fail {
    /// The number that the caller of the operation receives.
    pub errno: Errno,
    /// What was tried, in the field's term (`openat`, `renameat2`, `populate`).
    pub operation: &'static str,
    /// On what, or why, where that helps a reader of the log.
    pub detail: Option<Box<str>>,
}

/// The result of everything below the command line.
pub type Result<T> = std::result::Result<T, Fail>;

impl Fail {
    /// An error without detail.
    pub const fn new(errno: Errno, operation: &'static str) -> Self {
        Self {
            errno,
            operation,
            detail: None,
        }
    }

    /// The same error with words for the reader.
    #[must_use]
    pub fn because(mut self, detail: impl Into<Box<str>>) -> Self {
        self.detail = Some(detail.into());
        self
    }
}

impl fmt::Display for Fail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.operation)?;
        if let Some(detail) = &self.detail {
            write!(f, "{detail}: ")?;
        }
        write!(
            f,
            "{}",
            std::io::Error::from_raw_os_error(self.errno.raw_os_error())
        )
    }
}

impl std::error::Error for Fail {}

/// Names the operation that a bare errno came from.
pub trait OrFail<T> {
    /// Turns the errno of a failed system call into a [`Fail`] of that operation.
    fn or_fail(self, operation: &'static str) -> Result<T>;
}

impl<T> OrFail<T> for std::result::Result<T, Errno> {
    fn or_fail(self, operation: &'static str) -> Result<T> {
        self.map_err(|errno| Fail::new(errno, operation))
    }
}

impl<T> OrFail<T> for std::io::Result<T> {
    /// An error that carries no number of the system (`UnexpectedEof`, …) counts as EIO.
    fn or_fail(self, operation: &'static str) -> Result<T> {
        self.map_err(|error| {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
            Fail::new(errno, operation)
        })
    }
}
