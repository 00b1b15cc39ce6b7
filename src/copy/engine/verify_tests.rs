//! A difference is found, wherever it is.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::*;
use crate::copy::options::CopyOptions;
use crate::observe::Metrics;

fn checked(source: &File, copy: &File, direct: bool) -> Option<String> {
    let (progress, metrics) = (Progress::new(None), Metrics::new());
    let options = CopyOptions {
        direct,
        ..CopyOptions::default()
    };
    let order = Order {
        options: &options,
        progress: &progress,
        metrics: &metrics,
    };
    let before = fstat(source).unwrap();
    let fail = verify(source.as_fd(), copy.as_fd(), &before, &order).err()?;
    assert_eq!(fail.errno, Errno::IO);
    fail.detail.map(Into::into)
}

fn file(size: u64, data: &[(u64, &[u8])]) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(size).unwrap();
    for (at, bytes) in data {
        file.write_all_at(bytes, *at).unwrap();
    }
    file
}

#[test]
fn equal_files_are_equal_holes_or_not() {
    let bytes = [7; 5000];
    let source = file(9 << 20, &[(3 << 20, &bytes), (8 << 20, &bytes)]);
    let zeros = vec![0; 1 << 20];
    let copy = file(
        9 << 20,
        &[(1 << 20, &zeros), (3 << 20, &bytes), (8 << 20, &bytes)],
    );
    for direct in [false, true] {
        assert_eq!(checked(&source, &copy, direct), None);
        assert_eq!(checked(&copy, &source, direct), None);
    }
    let odd = file(12_345, &[(0, &[1; 12_345])]);
    assert_eq!(
        checked(&odd, &file(12_345, &[(0, &[1; 12_345])]), false),
        None
    );
}

#[test]
fn the_first_wrong_byte_is_named() {
    let bytes = vec![7; 3 << 20];
    let source = file((5 << 20) + 77, &[(1 << 20, &bytes)]);
    // In data, in a hole, in the last byte.
    for at in [(2 << 20) + 12_345, 4096, (5 << 20) + 76] {
        let copy = file((5 << 20) + 77, &[(1 << 20, &bytes), (at, &[1])]);
        let words = Some(format!("verify failed at byte {at}"));
        for direct in [false, true] {
            assert_eq!(checked(&source, &copy, direct), words);
            assert_eq!(checked(&copy, &source, direct), words);
        }
    }
}

#[test]
fn a_copy_that_is_too_long_is_wrong() {
    let source = file(5000, &[(0, &[1; 5000])]);
    let copy = file(5001, &[(0, &[1; 5000])]);
    let words = Some("verify failed at byte 5000".into());
    assert_eq!(checked(&source, &copy, false), words);
}

#[test]
fn a_copy_that_is_too_short_is_wrong_and_one_that_ends_in_a_hole_too_many() {
    let bytes = vec![1; 3 << 20];
    let source = file(3 << 20, &[(0, &bytes)]);
    for end in [0, 1, 5000, 1 << 20, (3 << 20) - 1] {
        let copy = file(end, &[(0, &bytes[..end as usize])]);
        for direct in [false, true] {
            let words = Some(format!("verify failed at byte {end}"));
            assert_eq!(checked(&source, &copy, direct), words);
        }
    }
    // What is missing, or too much, may be a hole.
    let sparse = file(9 << 20, &[(0, &bytes)]);
    let words = Some(format!("verify failed at byte {}", 3 << 20));
    assert_eq!(checked(&sparse, &source, false), words);
    assert_eq!(checked(&source, &sparse, false), words);
}

#[test]
fn what_says_to_have_more_than_it_has_ends_where_its_copy_does() {
    let path = "/sys/kernel/mm/transparent_hugepage/enabled";
    let Ok(bytes) = std::fs::read(path) else {
        return crate::sys::testing::skip(&format!("no {path}"));
    };
    let source = File::open(path).unwrap();
    assert!(source.metadata().unwrap().len() > bytes.len() as u64);
    let copy = file(bytes.len() as u64, &[(0, &bytes)]);
    assert_eq!(checked(&source, &copy, false), None);
    copy.set_len(3).unwrap();
    let words = Some("verify failed at byte 3".into());
    assert_eq!(checked(&source, &copy, false), words);
}

#[test]
fn what_has_no_size_is_held_against_what_was_written() {
    let source = File::open("/proc/uptime").unwrap();
    assert_eq!(checked(&source, &file(3, &[(0, b"1.0")]), false), None);
}
