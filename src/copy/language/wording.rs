//! Options as the words that ask for them: for one who has them as values and writes a line.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::quote;
use crate::copy::options::{Backup, CopyOptions, Preserve, Priority, Reflink, Sparse};

/// One line (without its newline) that asks for a copy. [`parse`](super::parse) reads it back.
pub fn line(options: &CopyOptions, sources: &[Vec<u8>], destination: &[u8]) -> String {
    let mut words = words(options);
    words.push("--".into());
    words.extend(sources.iter().map(|name| quote(name)));
    words.push(quote(destination));
    words.join(" ")
}

/// What a list of jobs calls that copy.
pub fn title(sources: &[Vec<u8>], destination: &[u8]) -> String {
    let sources: Vec<_> = sources.iter().map(|name| quote(name)).collect();
    format!("{} -> {}", sources.join(" "), quote(destination))
}

/// Quoted where it is needed; what is so by default is not said.
fn words(options: &CopyOptions) -> Vec<String> {
    let usual = CopyOptions::default();
    let mut words = flags(options);
    let mut say = |when: bool, word: &str| {
        if when {
            words.push(quote(word.as_bytes()));
        }
    };
    if let Some(method) = options.method {
        say(true, &format!("--method={}", method.name()));
    }
    say(
        options.chunk != usual.chunk,
        &format!("--chunk={}", options.chunk),
    );
    if let Some(workers) = options.workers {
        say(true, &format!("--workers={workers}"));
    }
    if let Some(limit) = options.limit {
        say(true, &format!("--limit={limit}"));
    }
    say(options.reflink == Reflink::Always, "--reflink=always");
    say(options.reflink == Reflink::Never, "--reflink=never");
    say(options.sparse == Sparse::Always, "--sparse=always");
    say(options.sparse == Sparse::Never, "--sparse=never");
    say(options.priority == Priority::Idle, "--priority=idle");
    words.extend(preserve(options.preserve));
    words.extend(backup(&options.backup));
    let globs = options.exclude.iter();
    words.extend(globs.map(|glob| valued("--exclude", OsStr::from_bytes(glob))));
    words
}

fn flags(options: &CopyOptions) -> Vec<String> {
    let flags = [
        (options.direct, "--direct"),
        (options.sync, "--sync"),
        (options.inplace, "--inplace"),
        (options.verify, "--verify"),
        (options.resume, "--resume"),
        (options.recursive, "--recursive"),
        (options.one_file_system, "--one-file-system"),
        (options.no_clobber, "--no-clobber"),
        (options.update, "--update"),
        (options.no_target_directory, "--no-target-directory"),
    ];
    let said = flags.into_iter().filter(|(is, _)| *is);
    said.map(|(_, word)| word.to_owned()).collect()
}

fn preserve(kept: Preserve) -> Vec<String> {
    if kept == Preserve::DEFAULT {
        return Vec::new();
    }
    let attributes = [
        (kept.mode, "mode"),
        (kept.ownership, "ownership"),
        (kept.timestamps, "timestamps"),
        (kept.links, "links"),
        (kept.xattr, "xattr"),
    ];
    let named = attributes.iter().filter(|(is, _)| *is);
    let list: Vec<&str> = named.map(|(_, word)| *word).collect();
    let mut words = vec!["--no-preserve=all".to_owned()];
    if !list.is_empty() {
        words.push(format!("--preserve={}", list.join(",")));
    }
    words
}

fn backup(backup: &Backup) -> Vec<String> {
    let with = |control: &str, suffix: &OsStr| vec![control.into(), valued("--suffix", suffix)];
    match backup {
        Backup::None => Vec::new(),
        Backup::Simple(suffix) => with("--backup=simple", suffix),
        Backup::Existing(suffix) => with("--backup=existing", suffix),
        Backup::Numbered => vec!["--backup=numbered".into()],
    }
}

fn valued(name: &str, value: &OsStr) -> String {
    quote(&[name.as_bytes(), b"=", value.as_bytes()].concat())
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::num::{NonZeroU16, NonZeroU64};
    use std::os::unix::ffi::OsStringExt;

    use proptest::prelude::*;

    use super::*;
    use crate::copy::language::{Request, parse};
    use crate::copy::options::Method;

    fn name() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(1u8..=255, 1..20)
    }

    fn suffix() -> impl Strategy<Value = OsString> {
        let part = (1u8..=255).prop_filter("no slash", |byte| *byte != b'/');
        prop::collection::vec(part, 1..6).prop_map(OsString::from_vec)
    }

    fn how() -> impl Strategy<Value = CopyOptions> {
        let method = prop::sample::select(vec![
            None,
            Some(Method::MapWrite),
            Some(Method::MapMap),
            Some(Method::CopyRange),
            Some(Method::ReadWrite),
        ]);
        let reflink = prop::bool::ANY.prop_map(|never| match never {
            true => Reflink::Never,
            false => Reflink::Auto,
        });
        let sparse = prop::sample::select(vec![Sparse::Auto, Sparse::Always, Sparse::Never]);
        let numbers = (16u64..262_144, 0u16..=64, 0u64..1 << 50);
        (method, reflink, sparse, numbers).prop_map(
            |(method, reflink, sparse, (pages, workers, limit))| CopyOptions {
                method,
                reflink,
                sparse,
                chunk: pages * 4096,
                workers: NonZeroU16::new(workers),
                limit: NonZeroU64::new(limit),
                ..CopyOptions::default()
            },
        )
    }

    fn kept() -> impl Strategy<Value = Preserve> {
        any::<[bool; 5]>().prop_map(|[mode, ownership, timestamps, links, xattr]| Preserve {
            mode,
            ownership,
            timestamps,
            links,
            xattr,
        })
    }

    fn backups() -> impl Strategy<Value = Backup> {
        prop_oneof![
            Just(Backup::None),
            Just(Backup::Numbered),
            suffix().prop_map(Backup::Simple),
            suffix().prop_map(Backup::Existing),
        ]
    }

    fn all() -> impl Strategy<Value = CopyOptions> {
        let glob = "[-a-z*?/& '\"$\u{e4}]{1,9}".prop_map(String::into_bytes);
        let globs = prop::collection::vec(glob, 0..3);
        (how(), kept(), backups(), globs, any::<[bool; 8]>()).prop_map(
            |(how, preserve, backup, exclude, flags)| {
                let [sync, verify, resume, recursive, one, update, whole, idle] = flags;
                CopyOptions {
                    preserve,
                    backup,
                    exclude,
                    sync,
                    verify,
                    resume,
                    recursive,
                    one_file_system: one,
                    update,
                    no_target_directory: whole,
                    priority: match idle {
                        true => Priority::Idle,
                        false => Priority::Normal,
                    },
                    ..how
                }
            },
        )
    }

    fn read_back(line: &str) -> (CopyOptions, Vec<Vec<u8>>, Vec<u8>) {
        match parse(line.as_bytes()) {
            Ok(Some(Request::Copy(copy))) => (copy.options, copy.sources, copy.destination),
            other => panic!("{line}: {other:?}"),
        }
    }

    proptest! {
        #[test]
        fn what_was_said_is_read_back(options in all(), source in name(), destination in name()) {
            let sources = vec![source];
            let line = line(&options, &sources, &destination);
            prop_assert_eq!(read_back(&line), (options, sources, destination));
        }
    }

    #[test]
    fn what_excludes_others_is_read_back_too() {
        let direct = CopyOptions {
            direct: true,
            method: Some(Method::ReadWrite),
            ..CopyOptions::default()
        };
        let shared = CopyOptions {
            reflink: Reflink::Always,
            method: Some(Method::Reflink),
            ..CopyOptions::default()
        };
        let inplace = CopyOptions {
            inplace: true,
            no_clobber: true,
            ..CopyOptions::default()
        };
        for options in [direct, shared, inplace] {
            let line = line(&options, &[b"&".to_vec(), b"-x".to_vec()], b"a b&");
            let names = vec![b"&".to_vec(), b"-x".to_vec()];
            assert_eq!(read_back(&line), (options, names, b"a b&".to_vec()));
        }
    }

    #[test]
    fn a_plain_copy_is_a_plain_line() {
        let line = line(&CopyOptions::default(), &[b"a".to_vec()], b"b c");
        assert_eq!(line, "-- a 'b c'");
        assert_eq!(
            title(&[b"a".to_vec(), b"d e".to_vec()], b"b"),
            "a 'd e' -> b"
        );
    }
}
