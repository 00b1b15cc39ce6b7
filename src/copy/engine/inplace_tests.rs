//! Into a file that stands there.

use super::*;

/// Copies `from` to `to` in place, and answers how it ended.
fn copy_in_place(place: &Path, progress: &Progress) -> std::result::Result<(), Fail> {
    let options = CopyOptions {
        sync: true,
        verify: true,
        ..CopyOptions::default()
    };
    copy_over((place, "from"), (place, "to"), options, progress)
}

fn copy_over(
    from: (&Path, &str),
    to: (&Path, &str),
    options: CopyOptions,
    progress: &Progress,
) -> std::result::Result<(), Fail> {
    let folder = |path| open(path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
    let (source, target) = ends((&folder(from.0), from.1), (&folder(to.0), to.1)).unwrap();
    let metrics = Metrics::new();
    let options = CopyOptions {
        inplace: true,
        ..options
    };
    let order = Order {
        options: &options,
        progress,
        metrics: &metrics,
    };
    copy(&source, &target, &order).map(drop)
}

#[test]
fn in_place_the_inode_its_names_and_its_readers_stay() {
    let (short, long) = (pattern(100_000), pattern(3 << 20));
    for (old, new) in [(&short, &long), (&long, &short), (&long, &long)] {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path();
        fs::write(place.join("from"), new).unwrap();
        fs::write(place.join("to"), old).unwrap();
        fs::hard_link(place.join("to"), place.join("other name")).unwrap();
        let before = fs::metadata(place.join("to")).unwrap();
        let mut reader = File::open(place.join("to")).unwrap();
        copy_in_place(place, &Progress::new(None)).unwrap();
        let after = fs::metadata(place.join("to")).unwrap();
        assert_eq!((before.ino(), before.nlink()), (after.ino(), after.nlink()));
        assert!(fs::read(place.join("other name")).unwrap() == *new);
        let mut seen = Vec::new();
        std::io::Read::read_to_end(&mut reader, &mut seen).unwrap();
        assert!(seen == *new);
        assert_eq!(listing(place), ["from", "other name", "to"]);
    }
}

#[test]
fn in_place_holes_of_the_source_cover_the_old_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path();
    let from = File::create(place.join("from")).unwrap();
    from.set_len(9 << 20).unwrap();
    from.write_all_at(&pattern(100_000), 4 << 20).unwrap();
    fs::write(place.join("to"), pattern(12 << 20)).unwrap();
    copy_in_place(place, &Progress::new(None)).unwrap();
    assert!(fs::read(place.join("to")).unwrap() == fs::read(place.join("from")).unwrap());
}

#[test]
fn in_place_a_cancel_says_what_it_leaves_and_cuts_nothing_off() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path();
    fs::write(place.join("from"), vec![b'n'; 48 << 20]).unwrap();
    fs::write(place.join("to"), vec![b'o'; 50 << 20]).unwrap();
    let progress = Progress::new(None);
    let fail = std::thread::scope(|scope| {
        let copying = scope.spawn(|| copy_in_place(place, &progress));
        while progress.bytes_done() == 0 && !copying.is_finished() {
            std::hint::spin_loop();
        }
        progress.cancel();
        copying.join().unwrap().unwrap_err()
    });
    assert_eq!(fail.errno, Errno::INTR);
    assert!(fail.to_string().contains("mixture"), "{fail}");
    let left = fs::read(place.join("to")).unwrap();
    // Only when the very last bytes were written is the end cut off.
    if progress.bytes_done() < 48 << 20 {
        assert_eq!(left.len(), 50 << 20);
    }
    assert!(left.iter().all(|&byte| byte == b'n' || byte == b'o'));
}

#[test]
fn in_place_nothing_is_put_behind_the_end_of_what_has_less_than_it_says() {
    let sys = Path::new("/sys/kernel/mm/transparent_hugepage");
    if !sys.join("enabled").exists() {
        crate::sys::testing::skip(&format!("no {}", sys.display()));
        return;
    }
    for verify in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("to"), "o".repeat(9000)).unwrap();
        let options = CopyOptions {
            verify,
            ..CopyOptions::default()
        };
        let (from, to) = ((sys, "enabled"), (folder.path(), "to"));
        let done = copy_over(from, to, options, &Progress::new(None));
        if !verify {
            done.unwrap();
            let expected = fs::read(sys.join("enabled")).unwrap();
            assert_eq!(fs::read(folder.path().join("to")).unwrap(), expected);
        }
    }
}

#[test]
fn in_place_the_mode_stays_unless_the_sources_is_kept() {
    for (keep, mode) in [(false, 0o600), (true, 0o644)] {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path();
        for (name, mode) in [("from", 0o644), ("to", 0o600)] {
            fs::write(place.join(name), name).unwrap();
            fs::set_permissions(place.join(name), Permissions::from_mode(mode)).unwrap();
        }
        let mut options = CopyOptions::default();
        options.preserve.mode = keep;
        copy_over(
            (place, "from"),
            (place, "to"),
            options,
            &Progress::new(None),
        )
        .unwrap();
        let found = fs::metadata(place.join("to")).unwrap();
        assert_eq!(found.permissions().mode() & 0o7777, mode);
    }
}

#[test]
fn in_place_where_nothing_stands_is_whole_or_absent() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path();
    fs::write(place.join("from"), pattern(5 << 20)).unwrap();
    let progress = Progress::new(None);
    progress.cancel();
    assert_eq!(
        copy_in_place(place, &progress).unwrap_err().errno,
        Errno::INTR
    );
    assert_eq!(listing(place), ["from"]);
    copy_in_place(place, &Progress::new(None)).unwrap();
    assert!(fs::read(place.join("to")).unwrap() == pattern(5 << 20));
}
