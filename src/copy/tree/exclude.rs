//! What is left out of a tree.

use std::borrow::Cow;

use globset::{Candidate, Glob, GlobBuilder, GlobSet, GlobSetBuilder};

use crate::sys::{Errno, Fail, Result};

/// Globs of names, and globs of paths within the source.
#[derive(Default)]
pub(in crate::copy) struct Exclude {
    /// For all, and for directories alone.
    names: [GlobSet; 2],
    paths: [GlobSet; 2],
}

impl Exclude {
    /// A pattern with a slash in it is of the whole path within the source (a slash before it
    /// changes nothing), one with a slash at its end is of directories. `*` and `?` stop at
    /// slashes, `**` does not. Patterns are UTF-8; names may be anything.
    ///
    /// # Errors
    /// EINVAL for what is no glob.
    pub(super) fn new(patterns: &[Vec<u8>]) -> Result<Self> {
        let mut sets = [(); 4].map(|()| GlobSetBuilder::new());
        for pattern in patterns {
            let (set, glob) = read(pattern).map_err(|why| {
                let shown = String::from_utf8_lossy(pattern);
                Fail::new(Errno::INVAL, "exclude").because(format!("{shown}: {why}"))
            })?;
            sets[set].add(glob);
        }
        let [a, b, c, d] = sets.map(|set| {
            set.build()
                .map_err(|error| Fail::new(Errno::INVAL, "exclude").because(error.to_string()))
        });
        Ok(Self {
            names: [a?, b?],
            paths: [c?, d?],
        })
    }

    /// Whether one pattern is a glob; quickly, for it is asked of each in a line.
    ///
    /// # Errors
    /// Why it is none.
    pub(in crate::copy) fn check(pattern: &str) -> std::result::Result<(), String> {
        read(pattern.as_bytes()).map(drop)
    }

    /// Whether a name is left out; `path` is asked for only where patterns need it.
    pub(super) fn leaves_out<'a>(
        &self,
        name: &[u8],
        is_directory: bool,
        path: impl FnOnce() -> Cow<'a, [u8]>,
    ) -> bool {
        let any = |sets: &[GlobSet; 2], candidate: &Candidate<'_>| {
            sets[0].is_match_candidate(candidate)
                || is_directory && sets[1].is_match_candidate(candidate)
        };
        let is_empty = |sets: &[GlobSet; 2]| sets.iter().all(GlobSet::is_empty);
        if !is_empty(&self.names) && any(&self.names, &Candidate::from_bytes(name)) {
            return true;
        }
        !is_empty(&self.paths) && any(&self.paths, &Candidate::from_bytes(&*path()))
    }
}

/// A pattern, and to which of the four sets it belongs.
fn read(pattern: &[u8]) -> std::result::Result<(usize, Glob), String> {
    let text = std::str::from_utf8(pattern).map_err(|_| "not UTF-8")?;
    let (text, directories) = match text.strip_suffix('/') {
        Some(text) => (text, true),
        None => (text, false),
    };
    let is_path = text.contains('/');
    let glob = GlobBuilder::new(text.trim_start_matches('/'))
        .literal_separator(true)
        .backslash_escape(true)
        .build()
        .map_err(|error| error.kind().to_string())?;
    Ok((usize::from(is_path) * 2 + usize::from(directories), glob))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left_out(patterns: &[&str], path: &[u8], is_directory: bool) -> bool {
        let patterns: Vec<_> = patterns.iter().map(|p| p.as_bytes().to_vec()).collect();
        let exclude = Exclude::new(&patterns).unwrap();
        let name = path.rsplit(|&b| b == b'/').next().unwrap();
        exclude.leaves_out(name, is_directory, || path.into())
    }

    #[test]
    fn names_are_matched_anywhere_and_paths_from_the_top() {
        assert!(left_out(&["*.o"], b"a/b/c.o", false));
        assert!(!left_out(&["*.o"], b"a/b/c.od", false));
        assert!(left_out(&["a/*.o"], b"a/c.o", false));
        assert!(!left_out(&["a/*.o"], b"a/b/c.o", false));
        assert!(!left_out(&["a/*.o"], b"b/a/c.o", false));
        assert!(left_out(&["a/**/*.o"], b"a/b/d/c.o", false));
        assert!(left_out(&["/top"], b"top", false));
        assert!(!left_out(&["/top"], b"a/top", false));
        assert!(left_out(&["x", "y"], b"y", false));
        assert!(!left_out(&[], b"y", false));
    }

    #[test]
    fn a_slash_at_the_end_is_for_directories() {
        assert!(left_out(&["build/"], b"a/build", true));
        assert!(!left_out(&["build/"], b"a/build", false));
        assert!(left_out(&["a/build/"], b"a/build", true));
    }

    #[test]
    fn names_are_bytes() {
        assert!(left_out(&["a*"], b"a\xff\xfe", false));
        assert!(left_out(&["a?b"], b"a\xffb", false));
        assert!(left_out(&[r"a\*"], b"a*", false));
        assert!(!left_out(&[r"a\*"], b"ab", false));
    }

    #[test]
    fn what_is_no_glob_is_refused() {
        for pattern in [&b"[a"[..], b"\xff", b"{a"] {
            let refused = Exclude::new(&[pattern.to_vec()]).err().unwrap();
            assert_eq!(refused.errno, Errno::INVAL);
        }
    }
}
