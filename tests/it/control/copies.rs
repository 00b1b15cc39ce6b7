//! What a line in `.copy` does.

use std::fs::{self, File};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::process::Command;

use rustix::fs::{CWD, SeekFrom};
use rustix::io::Errno;

use crate::support::{
    Need, assert_content, assert_same_bytes, content, output, read_file, require, run, set_mode,
    sh, write_content,
};

use super::*;

#[test]
fn a_line_makes_a_copy() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let (source, mount) = world("rw");
    let at = mount.path();
    copy(at, "f", "g").unwrap();
    assert_copied(&at.join("g"));
    assert_copied(&source.path().join("g"));
    assert_eq!(names(source.path()), ["d", "f", "g"]);
    let stats = mount.stats();
    assert_eq!(stats.value("corfs_copies_total", &[("end", "done")]), 1.0);
    assert!(stats.value("corfs_copy_bytes_total", &[]) >= 100_000.0);
}

#[test]
fn a_shell_sees_success_and_failure() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let (source, mount) = world("rw");
    run(&mut sh(mount.path(), "echo f g > .copy"));
    run(&mut sh(mount.path(), "cd d && echo ../f here > .copy"));
    run(&mut sh(mount.path(), "echo f h >> .copy"));
    for copied in ["g", "d/here", "h"] {
        assert_copied(&source.path().join(copied));
    }
    let shells = ["sh", "bash", "dash"];
    for shell in shells
        .into_iter()
        .filter(|s| crate::support::tool(s).is_some())
    {
        let script = "echo missing x > .copy";
        let failed = output(
            Command::new(shell)
                .args(["-c", script])
                .current_dir(mount.path()),
        );
        assert!(!failed.status.success(), "{shell} saw no failure");
        let words = String::from_utf8_lossy(&failed.stderr);
        assert!(!words.is_empty(), "{shell} said nothing");
        if shell == "bash" {
            assert!(words.contains("No such file"), "{words}");
        }
    }
    assert_eq!(names(source.path()), ["d", "f", "g", "h"]);
}

#[test]
fn both_methods_and_any_chunk_copy_alike() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let (source, mount) = world("rw");
    let sizes = [
        0,
        1,
        4095,
        4096,
        4097,
        65_536,
        200_000,
        (8 << 20) + 5,
        20_000_001,
    ];
    for (seed, size) in (10..).zip(sizes) {
        write_content(&source.path().join(format!("s{size}")), seed, size);
        for options in [
            "",
            "--method=map-write",
            "--method=map-map",
            "--method=map-map --chunk=64K",
            "--chunk=1M",
        ] {
            let line = format!("{options} s{size} t\n");
            tell(mount.path(), &line).unwrap_or_else(|e| panic!("{line}: {e}"));
            let bytes = read_file(&source.path().join("t"));
            assert_eq!(bytes.len() as u64, size, "{line}");
            assert_content(seed, 0, &bytes);
        }
    }
}

#[test]
fn words_are_quoted_as_a_shell_does() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let (source, mount) = world("rw");
    let cases: [(&[u8], &[u8]); 9] = [
        (b"'two words'", b"two words"),
        (br#""double \"quoted\" \\ $""#, br#"double "quoted" \ $"#),
        (br"escaped\ space\'\\", br"escaped space'\"),
        (br"'it'\''s'", b"it's"),
        (br"$'new\nline'", b"new\nline"),
        (br"$'\377\200'", b"\xff\x80"),
        (b"'\xfe\xff raw'", b"\xfe\xff raw"),
        (b"'#no comment'", b"#no comment"),
        (b"-- -leading", b"-leading"),
    ];
    for (quoted, name) in cases {
        let name = std::ffi::OsString::from_vec(name.to_vec());
        // As the destination, then as the source. `--` ends options, so it comes first.
        let line = match quoted.strip_prefix(b"-- ") {
            Some(word) => [b"-- f ", word, b"\n"].concat(),
            None => [b"f ", quoted, b"\n"].concat(),
        };
        let shown = line.escape_ascii().to_string();
        tell(mount.path(), &line).unwrap_or_else(|e| panic!("{shown}: {e}"));
        assert_copied(&source.path().join(&name));
        let back = [quoted, b" \tback \n"].concat();
        tell(mount.path(), &back).unwrap_or_else(|e| panic!("{}: {e}", back.escape_ascii()));
        assert_copied(&source.path().join("back"));
        fs::remove_file(source.path().join("back")).unwrap();
        fs::remove_file(source.path().join(name)).unwrap();
    }
    assert_eq!(names(source.path()), ["d", "f"]);
}

#[test]
fn several_lines_run_in_order() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let (source, mount) = world("rw");
    // Each needs the one before; empty lines and comments are nothing.
    tell(mount.path(), "f a\n\n# a comment\na b\nb d\n").unwrap();
    for copied in ["a", "b", "d/b"] {
        assert_copied(&source.path().join(copied));
    }
    // What went before a failing line stands, and the failure is told.
    assert_eq!(tell(mount.path(), "f c\nmissing x\n"), Err(Errno::NOENT));
    assert_copied(&source.path().join("c"));
    assert!(!source.path().join("x").exists());
}

#[test]
fn a_line_in_pieces_is_put_together() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let (source, mount) = world("rw");
    let fd = open_control(mount.path()).unwrap();
    for piece in ["f", " g", "1\nf g2\nf ", "g", "3\n"] {
        assert_eq!(rustix::io::write(&fd, piece.as_bytes()), Ok(piece.len()));
    }
    assert_eq!(names(source.path()), ["d", "f", "g1", "g2", "g3"]);
    close(fd).unwrap();
    for n in 1..4 {
        assert_copied(&source.path().join(format!("g{n}")));
    }
}

#[test]
fn a_last_line_without_newline_runs_at_close() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let (source, mount) = world("rw");
    let fd = open_control(mount.path()).unwrap();
    rustix::io::write(&fd, b"f g").unwrap();
    assert_eq!(names(source.path()), ["d", "f"]);
    close(fd).unwrap();
    assert_copied(&source.path().join("g"));
    // A failure shows in close(2).
    let fd = open_control(mount.path()).unwrap();
    rustix::io::write(&fd, b"missing x").unwrap();
    assert_eq!(close(fd), Err(Errno::NOENT));
    run(&mut sh(mount.path(), "printf 'f h' > .copy"));
    assert_copied(&source.path().join("h"));
}

#[test]
fn opening_and_closing_does_nothing() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let (source, mount) = world("rw");
    run(&mut sh(
        mount.path(),
        ": > .copy; : >> .copy; printf '' > .copy; echo > .copy",
    ));
    assert_eq!(names(source.path()), ["d", "f"]);
}

#[test]
fn holes_stay_holes() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let (source, mount) = world("rw");
    let path = source.path().join("sparse");
    let file = File::create(&path).unwrap();
    file.set_len(300 << 20).unwrap();
    for at in [0, 5 << 20, 200 << 20] {
        file.write_all_at(&content(2, at, 1 << 16), at).unwrap();
    }
    for method in ["map-write", "map-map"] {
        tell(mount.path(), format!("--method={method} sparse copy\n")).unwrap();
        let copied = source.path().join("copy");
        let (a, b) = (fs::metadata(&path).unwrap(), fs::metadata(&copied).unwrap());
        assert_eq!(a.len(), b.len());
        assert!(
            b.blocks() <= a.blocks() + 64,
            "{method}: {} blocks, {}",
            b.blocks(),
            a.blocks()
        );
        let (a, b) = (File::open(&path).unwrap(), File::open(&copied).unwrap());
        let mut at = 0;
        while let Ok(start) = rustix::fs::seek(&a, SeekFrom::Data(at)) {
            let end = rustix::fs::seek(&a, SeekFrom::Hole(start)).unwrap();
            let mut bytes = [
                vec![0; (end - start) as usize],
                vec![0; (end - start) as usize],
            ];
            a.read_exact_at(&mut bytes[0], start).unwrap();
            b.read_exact_at(&mut bytes[1], start).unwrap();
            assert_same_bytes(start, &bytes[1], &bytes[0]);
            at = end;
        }
        assert_eq!(
            rustix::fs::seek(&b, SeekFrom::Hole(0)),
            Ok(1 << 16),
            "{method}"
        );
    }
}

#[test]
fn mode_and_times_are_kept() {
    if !require(&[Need::Fuse]) {
        return;
    }
    use rustix::fs::{AtFlags, Timespec, Timestamps, utimensat};
    let (source, mount) = world("rw");
    for (mode, seconds, nanoseconds) in [(0o751, -5, 7), (0o400, 5_000_000_000, 999_999_999)] {
        let path = source.path().join("f");
        set_mode(&path, mode);
        let time = Timespec {
            tv_sec: seconds,
            tv_nsec: nanoseconds,
        };
        let both = Timestamps {
            last_access: time,
            last_modification: time,
        };
        utimensat(CWD, &path, &both, AtFlags::empty()).unwrap();
        copy(mount.path(), "f", "g").unwrap();
        let m = fs::metadata(source.path().join("g")).unwrap();
        assert_eq!(m.mode() & 0o7777, mode);
        assert_eq!((m.mtime(), m.mtime_nsec()), (seconds, nanoseconds));
        let seen = fs::metadata(mount.path().join("g")).unwrap();
        assert_eq!((seen.mtime(), seen.mtime_nsec()), (seconds, nanoseconds));
        fs::remove_file(source.path().join("g")).unwrap();
    }
}

#[test]
fn a_directory_takes_the_file_inside() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let (source, mount) = world("rw");
    fs::create_dir(source.path().join("d/e")).unwrap();
    symlink("d", source.path().join("link")).unwrap();
    copy(mount.path(), "f", "d").unwrap();
    copy(mount.path(), "d/f", "d/e/").unwrap();
    assert_copied(&source.path().join("d/f"));
    assert_copied(&source.path().join("d/e/f"));
    fs::remove_file(source.path().join("d/f")).unwrap();
    copy(mount.path(), "f", "link").unwrap();
    assert_copied(&source.path().join("d/f"));
    copy(&mount.path().join("d/e"), "f", "../..").unwrap();
    copy(&mount.path().join("d/e"), "f", "..").unwrap();
    assert!(
        fs::symlink_metadata(source.path().join("link"))
            .unwrap()
            .is_symlink()
    );
}

#[test]
fn a_file_in_the_way_is_replaced_whole() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let (source, mount) = world("rw");
    source.file("g", b"what stood there");
    let old = File::open(mount.path().join("g")).unwrap();
    copy(mount.path(), "f", "g").unwrap();
    assert_copied(&source.path().join("g"));
    assert_copied(&mount.path().join("g"));
    let mut bytes = [0; 16];
    old.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"what stood there", "who has it open keeps it");
}

#[test]
fn names_may_be_absolute_below_the_mountpoint() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let (source, mount) = world("rw");
    let at = mount.path().display();
    copy(
        &mount.path().join("d"),
        &format!("{at}/f"),
        &format!("{at}/d/g"),
    )
    .unwrap();
    assert_copied(&source.path().join("d/g"));
    copy(&mount.path().join("d"), "../f", ".././d/../h").unwrap();
    assert_copied(&source.path().join("h"));
    // The same name in the source is another place.
    let native = source.path().display();
    assert_eq!(
        copy(mount.path(), &format!("{native}/f"), "x"),
        Err(Errno::XDEV)
    );
}

#[test]
fn the_list_tells_the_last_jobs() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let (_source, mount) = world("rw");
    copy(mount.path(), "f", "'a copy'").unwrap();
    assert_eq!(copy(mount.path(), "missing", "x"), Err(Errno::NOENT));
    assert_eq!(copy(mount.path(), "../f", "x"), Err(Errno::XDEV));
    let text = jobs(mount.path());
    let line = |part: &str| {
        text.lines()
            .find(|line| line.contains(part))
            .unwrap_or_else(|| panic!("no line with {part:?}:\n{text}"))
    };
    let done = line("a copy");
    assert!(
        done.contains("done") && done.contains("map-write"),
        "{done}"
    );
    assert!(done.contains("100000"), "{done}");
    assert!(line("missing").contains("failed"));
    assert!(text.contains("No such file"), "{text}");
    assert!(text.contains("leaves"), "why it was EXDEV:\n{text}");
    // The list is the mount's, whichever directory it is read in.
    assert_eq!(
        jobs(&mount.path().join("d")).lines().count(),
        text.lines().count()
    );
}
