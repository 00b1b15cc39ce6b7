//! Into a file that stands there.

use super::*;

/// Copies `from` to `to` in place, and answers how it ended.
fn copy_in_place(place: &Path, progress: &Progress) -> std::result::Result<(), Fail> {
    let folder = open(place, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
    let (source, target) = ends((&folder, "from"), (&folder, "to")).unwrap();
    let metrics = Metrics::new();
    let options = CopyOptions {
        inplace: true,
        sync: true,
        verify: true,
        ..CopyOptions::default()
    };
    let order = Order {
        options: &options,
        progress,
        metrics: &metrics,
    };
    copy(&source, &target, &order)
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
