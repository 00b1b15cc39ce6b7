//! The control file `.copy`: what it does, what it refuses, and for whom.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, OFlags, SeekFrom};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use crate::support::{
    Mount, Need, OTHER, Scratch, Tmpfs, USER, apart, assert_content, assert_same_bytes,
    become_user, content, output, read_file, require, run, set_mode, set_owner, sh, soak,
    wait_until, write_content, write_file,
};

// ---------------------------------------------------------------------------------------------
// Writing into it

/// Opens the `.copy` of a directory as the shell's `>` does.
fn open_control(dir: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
    rustix::fs::open(dir.join(".copy"), flags, Mode::from_raw_mode(0o666))
}

/// close(2) with its answer, which dropping hides.
fn close(fd: OwnedFd) -> Result<(), Errno> {
    use std::os::fd::IntoRawFd;
    // SAFETY: the descriptor was owned, and is given up here.
    match unsafe { libc::close(fd.into_raw_fd()) } {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap()),
    }
}

/// Writes `bytes` into the `.copy` of a directory.
fn tell(dir: &Path, bytes: impl AsRef<[u8]>) -> Result<(), Errno> {
    let (fd, mut rest) = (open_control(dir)?, bytes.as_ref());
    // Lines before one that fails count as written; the failure is told at the next try, as any
    // program that writes on after a short write will make it.
    while !rest.is_empty() {
        rest = &rest[rustix::io::write(&fd, rest)?..];
    }
    close(fd)
}

/// `echo from to > .copy`, without a shell.
fn copy(dir: &Path, from: &str, to: &str) -> Result<(), Errno> {
    tell(dir, format!("{from} {to}\n"))
}

/// The names in a directory of the source, where a copy would leave something behind.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// A source with a file `f` of 100,000 bytes (seed 1) and a directory `d`, and its mount.
fn world(options: &str) -> (Scratch, Mount) {
    let source = Scratch::new();
    source.file("f", &content(1, 0, 100_000));
    source.dir("d");
    let mount = Mount::of(source.path()).opt(options).start();
    (source, mount)
}

#[track_caller]
fn assert_copied(path: &Path) {
    let bytes = read_file(path);
    assert_eq!(bytes.len(), 100_000, "{}", path.display());
    assert_content(1, 0, &bytes);
}

/// The text of a directory's `.copy`.
fn jobs(dir: &Path) -> String {
    String::from_utf8(read_file(&dir.join(".copy"))).unwrap()
}

// ---------------------------------------------------------------------------------------------
// What it does

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

// ---------------------------------------------------------------------------------------------
// What it refuses

#[test]
fn every_error_has_its_number() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let (source, mount) = world("rw");
    rustix::fs::mknodat(
        CWD,
        source.path().join("fifo"),
        FileType::Fifo,
        Mode::RWXU,
        0,
    )
    .unwrap();
    symlink("round", source.path().join("round")).unwrap();
    symlink("nowhere", source.path().join("dangling")).unwrap();
    let before = names(source.path());
    let long = "n".repeat(256);
    for (line, errno) in [
        ("missing x", Errno::NOENT),
        ("d/missing x", Errno::NOENT),
        ("missing/f x", Errno::NOENT),
        ("f missing/x", Errno::NOENT),
        ("f new/", Errno::NOENT),
        ("'' x", Errno::NOENT),
        ("f ''", Errno::NOENT),
        ("dangling x", Errno::NOENT),
        ("d x", Errno::ISDIR),
        (". x", Errno::ISDIR),
        ("f/x y", Errno::NOTDIR),
        ("f f/x", Errno::NOTDIR),
        ("round x", Errno::LOOP),
        ("f .copy", Errno::EXIST),
        ("f d/.copy", Errno::EXIST),
        ("f f", Errno::INVAL),
        ("f ./d/../f", Errno::INVAL),
        ("fifo x", Errno::INVAL),
        ("f", Errno::INVAL),
        ("f g h", Errno::INVAL),
        ("'f g", Errno::INVAL),
        ("f g\\", Errno::INVAL),
        ("--unknown f g", Errno::INVAL),
        ("--method=none f g", Errno::INVAL),
        ("--method f g", Errno::INVAL),
        ("--chunk=0 f g", Errno::INVAL),
        ("--chunk=1000 f g", Errno::INVAL),
        ("--chunk=99G f g", Errno::INVAL),
        ("f \0", Errno::INVAL),
        ("../f x", Errno::XDEV),
        ("f ../x", Errno::XDEV),
        ("d/../../f x", Errno::XDEV),
        ("/etc/hostname x", Errno::XDEV),
        ("f /tmp/x", Errno::XDEV),
    ] {
        assert_eq!(
            tell(mount.path(), format!("{line}\n")),
            Err(errno),
            "{line:?}"
        );
    }
    assert_eq!(copy(mount.path(), "f", &long), Err(Errno::NAMETOOLONG));
    assert_eq!(copy(mount.path(), &long, "x"), Err(Errno::NAMETOOLONG));
    assert_eq!(names(source.path()), before, "something was left behind");
    assert_copied(&source.path().join("f"));
}

#[test]
fn links_that_leave_the_source_are_not_followed() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let (source, mount) = world("rw");
    let outside = Scratch::new();
    outside.file("secret", b"secret");
    let beside = source
        .path()
        .file_name()
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned();
    for (name, target) in [
        ("absolute", outside.path().join("secret")),
        ("folder", outside.path().to_path_buf()),
        ("up", PathBuf::from("..")),
        ("out-and-in", PathBuf::from(format!("../{beside}/f"))),
        ("proc", PathBuf::from("/proc/self/exe")),
        ("root", PathBuf::from("/")),
    ] {
        symlink(target, source.path().join(name)).unwrap();
    }
    let before = names(source.path());
    for (from, to) in [
        ("absolute", "x"),
        ("folder/secret", "x"),
        ("out-and-in", "x"),
        ("proc", "x"),
        ("up/f", "x"),
        ("f", "folder/x"),
        ("f", "folder"),
        ("f", "up/x"),
        ("f", "root/x"),
        ("f", "absolute"),
    ] {
        assert_eq!(
            copy(mount.path(), from, to),
            Err(Errno::XDEV),
            "{from} {to}"
        );
    }
    assert_eq!(names(source.path()), before);
    assert_eq!(names(outside.path()), ["secret"]);
    assert_eq!(read_file(&outside.path().join("secret")), b"secret");
    // A link that stays inside is followed.
    symlink("d/../f", source.path().join("inside")).unwrap();
    copy(mount.path(), "inside", "x").unwrap();
    assert_copied(&source.path().join("x"));
}

#[test]
fn a_full_file_system_leaves_nothing() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let small = Tmpfs::new(6 << 20);
    write_content(&small.path().join("big"), 3, 4 << 20);
    write_file(&small.path().join("stands"), b"what stood there");
    let mount = Mount::of(small.path()).start();
    for method in ["map-write", "map-map"] {
        for to in ["new", "stands"] {
            let line = format!("--method={method} big {to}\n");
            assert_eq!(tell(mount.path(), &line), Err(Errno::NOSPC), "{line}");
        }
    }
    assert_eq!(names(small.path()), ["big", "stands"]);
    assert_eq!(read_file(&small.path().join("stands")), b"what stood there");
    let bytes = rustix::fs::statvfs(small.path()).unwrap();
    assert!(
        bytes.f_bavail * bytes.f_frsize > 1 << 20,
        "room was not given back"
    );
}

#[test]
fn a_read_only_mount_copies_nothing() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let (source, mount) = world("ro");
    assert_eq!(copy(mount.path(), "f", "g"), Err(Errno::ROFS));
    let failed = output(&mut sh(mount.path(), "echo f g > .copy"));
    assert!(!failed.status.success());
    assert_eq!(names(source.path()), ["d", "f"]);
}

#[test]
fn another_file_system_inside_the_source() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    source.file("f", &content(1, 0, 100_000));
    let inner = Tmpfs::at(&source.dir("inner"), 8 << 20);
    let mount = Mount::of(source.path()).start();
    // It is inside the source, so it may be copied to and from.
    copy(mount.path(), "f", "inner/g").unwrap();
    copy(&mount.path().join("inner"), "g", "../h").unwrap();
    assert_copied(&inner.path().join("g"));
    assert_copied(&source.path().join("h"));
}

// ---------------------------------------------------------------------------------------------
// What it looks like

#[test]
fn it_is_found_by_name_and_in_no_listing() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let (source, mount) = world("rw");
    let at = mount.path();
    for dir in [at.to_path_buf(), at.join("d")] {
        assert!(!names(&dir).contains(&".copy".to_owned()));
        let m = fs::symlink_metadata(dir.join(".copy")).unwrap();
        assert_eq!(m.mode(), libc::S_IFREG | 0o600);
        let owner = fs::metadata(&dir).unwrap();
        assert_eq!((m.uid(), m.gid()), (owner.uid(), owner.gid()));
    }
    assert!(fs::metadata(at.join("f/.copy")).is_err());
    assert!(!source.path().join(".copy").exists());
    assert_eq!(run(&mut sh(at, "find . | sort")), ".\n./d\n./f\n");
    // Nothing in the way of removing a directory that seems empty.
    fs::remove_dir(at.join("d")).unwrap();
}

#[test]
fn its_owner_is_its_directorys() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let (source, mount) = world("allow_other");
    set_owner(&source.path().join("d"), USER, OTHER);
    for (dir, owner) in [("d", (USER, OTHER)), (".", (0, 0))] {
        let path = mount.path().join(dir).join(".copy");
        wait_until("the owner shows", Duration::from_secs(15), || {
            let m = fs::metadata(&path).unwrap();
            assert_eq!(m.mode(), libc::S_IFREG | 0o666);
            (m.uid(), m.gid()) == owner
        });
    }
}

#[test]
fn control_words_show_hide_and_rename_it() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let (_source, visible) = world("control=visible");
    assert_eq!(names(visible.path()), [".copy", "d", "f"]);
    assert_eq!(names(&visible.path().join("d")), [""; 0]);
    assert!(visible.path().join("d/.copy").exists());
    copy(visible.path(), "f", "g").unwrap();

    let (source, off) = world("control=off");
    assert!(!off.path().join(".copy").exists());
    write_file(&off.path().join(".copy"), b"f g\n");
    assert_eq!(read_file(&source.path().join(".copy")), b"f g\n");
    assert_eq!(names(off.path()), [".copy", "d", "f"]);

    let (source, renamed) = world("control_name=.cp");
    assert!(!renamed.path().join(".copy").exists());
    run(&mut sh(
        renamed.path(),
        "echo f g > .cp && cd d && echo ../f g > .cp",
    ));
    assert_copied(&source.path().join("d/g"));
}

#[test]
fn a_real_entry_of_that_name_wins() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    source.file("f", &content(1, 0, 100_000));
    source.file(".copy", b"real");
    source.dir("d");
    fs::create_dir(source.dir("e").join(".copy")).unwrap();
    let mount = Mount::of(source.path()).start();
    let at = mount.path();
    assert_eq!(names(at), [".copy", "d", "e", "f"]);
    assert_eq!(read_file(&at.join(".copy")), b"real");
    write_file(&at.join(".copy"), b"f g\n");
    assert_eq!(read_file(&source.path().join(".copy")), b"f g\n");
    assert!(!source.path().join("g").exists());
    assert!(at.join("e/.copy").is_dir());
    for _ in 0..3 {
        assert!(fs::metadata(at.join(".copy")).is_ok());
    }
    let told = mount
        .log()
        .lines()
        .filter(|line| line.contains(".copy"))
        .count();
    assert_eq!(told, 1, "logged once:\n{}", mount.log());
    // Elsewhere it is the control file, and here too once the real one is gone.
    copy(&at.join("d"), "../f", "g").unwrap();
    fs::remove_file(at.join(".copy")).unwrap();
    copy(at, "f", "g").unwrap();
    assert_copied(&source.path().join("g"));
}

#[test]
fn it_is_not_removed_renamed_replaced_or_truncated() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let (source, mount) = world("rw");
    let at = |name: &str| mount.path().join(name);
    let control = at(".copy");
    for (what, result) in [
        ("unlink", rustix::fs::unlink(&control)),
        ("rename", rustix::fs::rename(&control, at("x"))),
        ("rename over", rustix::fs::rename(at("f"), &control)),
        ("link", rustix::fs::link(&control, at("x"))),
        ("rename within", rustix::fs::rename(&control, at("d/.copy"))),
    ] {
        let errno = result.expect_err(what);
        let refusals = [Errno::PERM, Errno::ACCESS, Errno::BUSY, Errno::EXIST];
        assert!(refusals.contains(&errno), "{what}: {errno}");
    }
    let exclusive = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
    let create =
        |dir: &str| rustix::fs::open(at(dir).join(".copy"), exclusive, Mode::RWXU).map(drop);
    for (what, result) in [
        ("create", create(".")),
        ("create in d", create("d")),
        ("mkdir", rustix::fs::mkdir(&control, Mode::RWXU)),
        ("symlink", rustix::fs::symlink("f", &control)),
        (
            "mknod",
            rustix::fs::mknodat(CWD, &control, FileType::Fifo, Mode::RWXU, 0),
        ),
        ("link over", rustix::fs::link(at("f"), &control)),
    ] {
        assert_eq!(result, Err(Errno::EXIST), "{what}");
    }
    // Truncation has no effect, whatever it says.
    copy(mount.path(), "f", "g").unwrap();
    let text = jobs(mount.path());
    let _ = File::options()
        .write(true)
        .open(&control)
        .unwrap()
        .set_len(0);
    drop(
        File::options()
            .write(true)
            .truncate(true)
            .open(&control)
            .unwrap(),
    );
    assert_eq!(jobs(mount.path()), text);
    assert_eq!(names(source.path()), ["d", "f", "g"]);
}

// ---------------------------------------------------------------------------------------------
// For whom it acts

/// A mount that others may enter, of a source in which an ordinary user owns the directory `own`
/// and may read `f`.
fn shared_world() -> (Scratch, Mount) {
    let (source, mount) = world("allow_other");
    set_owner(&source.dir("own"), USER, OTHER);
    (source, mount)
}

#[test]
fn it_acts_with_its_openers_rights() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let (source, mount) = shared_world();
    let secret = source.file("secret", b"secret");
    set_mode(&secret, 0o600);
    let before = names(source.path());
    apart(Some((USER, OTHER)), || {
        let at = mount.path();
        assert_eq!(
            copy(at, "secret", "own/x"),
            Err(Errno::ACCESS),
            "reads what it must not"
        );
        assert_eq!(
            copy(at, "f", "x"),
            Err(Errno::ACCESS),
            "writes where it must not"
        );
        assert_eq!(copy(at, "f", "d/x"), Err(Errno::ACCESS));
        copy(at, "f", "own").unwrap();
        copy(&at.join("own"), "f", "g").unwrap();
    });
    assert_eq!(names(source.path()), before);
    let copied = fs::metadata(source.path().join("own/f")).unwrap();
    assert_eq!((copied.uid(), copied.gid()), (USER, OTHER));
    assert_eq!(names(&source.path().join("own")), ["f", "g"]);
    // Root's copy is root's, wherever it lies.
    copy(mount.path(), "secret", "own/by-root").unwrap();
    assert_eq!(
        fs::metadata(source.path().join("own/by-root"))
            .unwrap()
            .uid(),
        0
    );
}

#[test]
fn supplementary_groups_count() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let (source, mount) = shared_world();
    let path = source.file("grouped", &content(1, 0, 100_000));
    set_owner(&path, 0, 4242);
    set_mode(&path, 0o640);
    apart(Some((USER, OTHER)), || {
        assert_eq!(copy(mount.path(), "grouped", "own/x"), Err(Errno::ACCESS));
    });
    apart(None, || {
        become_user(USER, OTHER, &[77, 4242]);
        copy(mount.path(), "grouped", "own/x").unwrap();
    });
    assert_copied(&source.path().join("own/x"));
}

/// Without a number for its caller the daemon cannot know the groups: none is the safe answer.
#[test]
fn a_caller_from_outside_the_process_namespace_has_no_other_groups() {
    if !require(&[Need::Fuse, Need::Root, Need::Tool("unshare")]) {
        return;
    }
    let source = Scratch::new();
    let path = source.file("grouped", &content(1, 0, 100_000));
    set_owner(&path, 0, 4242);
    set_mode(&path, 0o640);
    source.file("f", &content(1, 0, 100_000));
    set_owner(&source.dir("own"), USER, OTHER);
    let mount = Mount::of(source.path())
        .opt("allow_other")
        .in_a_namespace()
        .start();
    apart(None, || {
        become_user(USER, OTHER, &[4242]);
        assert_eq!(copy(mount.path(), "grouped", "own/x"), Err(Errno::ACCESS));
        copy(mount.path(), "f", "own/g").unwrap();
    });
    assert_copied(&source.path().join("own/g"));
    // Nor is uid 0 without a number more than an owner of files.
    assert_eq!(copy(mount.path(), "f", "own/by-root"), Err(Errno::ACCESS));
    copy(mount.path(), "grouped", "by-root").unwrap();
}

#[test]
fn capabilities_count() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};
    let (source, mount) = shared_world();
    let path = source.file("theirs", b"x");
    set_owner(&path, USER, OTHER);
    set_mode(&path, 0o600);
    copy(mount.path(), "theirs", "x").unwrap();
    fs::remove_file(source.path().join("x")).unwrap();
    apart(None, || {
        let sets = capabilities(None).unwrap();
        let none = CapabilitySets {
            effective: CapabilitySet::empty(),
            ..sets
        };
        set_capabilities(None, none).unwrap();
        assert_eq!(
            copy(mount.path(), "theirs", "x"),
            Err(Errno::ACCESS),
            "uid 0 alone is no right"
        );
    });
    assert!(!source.path().join("x").exists());
}

#[test]
fn a_descriptor_in_other_hands_is_refused() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let (source, mount) = shared_world();
    let fd = open_control(mount.path()).unwrap();
    apart(Some((USER, OTHER)), || {
        assert_eq!(rustix::io::write(&fd, b"f own/x\n"), Err(Errno::PERM));
    });
    let fd = apart(Some((USER, OTHER)), || open_control(mount.path()).unwrap());
    assert_eq!(rustix::io::write(&fd, b"f own/x\n"), Err(Errno::PERM));
    drop(fd);
    assert_eq!(names(&source.path().join("own")), [""; 0]);
}

#[test]
fn a_setuid_program_gains_nothing() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let (source, mount) = shared_world();
    let scratch = Scratch::new();
    let program = scratch.path().join("cat");
    run(Command::new("cp").arg("/bin/cat").arg(&program));
    set_mode(&program, 0o4755);
    let secret = source.file("secret", b"secret");
    set_mode(&secret, 0o600);
    let line = scratch.file("line", b"secret own/x\n");
    set_mode(&line, 0o644);
    let control = apart(Some((USER, OTHER)), || open_control(mount.path()).unwrap());
    let said = Command::new(&program)
        .arg(&line)
        .uid(USER)
        .gid(OTHER)
        .stdout(File::from(control))
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert!(!said.status.success(), "it wrote as root");
    let words = String::from_utf8_lossy(&said.stderr);
    assert!(words.contains("Operation not permitted"), "{words}");
    assert_eq!(names(&source.path().join("own")), [""; 0]);
}

#[test]
fn a_mount_of_an_ordinary_user() {
    if !require(&[Need::UserFuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    source.file("f", &content(1, 0, 100_000));
    set_mode(&source.file("secret", b"secret"), 0o600);
    set_owner(&source.dir("own"), USER, OTHER);
    let mount = Mount::of(source.path()).as_user(USER, OTHER).start();
    apart(Some((USER, OTHER)), || {
        let at = mount.path();
        copy(at, "f", "own/g").unwrap();
        assert_eq!(copy(at, "secret", "own/x"), Err(Errno::ACCESS));
        assert_eq!(copy(at, "f", "x"), Err(Errno::ACCESS));
        assert!(jobs(at).contains("own/g"));
    });
    assert_copied(&source.path().join("own/g"));
    assert_eq!(
        fs::metadata(source.path().join("own/g")).unwrap().uid(),
        USER
    );
}

// ---------------------------------------------------------------------------------------------
// Beside everything else

#[test]
fn a_new_file_shows_at_once() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let (_source, mount) = world("negative_timeout=60,entry_timeout=60,attr_timeout=60");
    let at = mount.path();
    for name in ["g", "d/g"] {
        assert!(!at.join(name).exists());
        assert!(!at.join(name).exists());
        copy(at, "f", name).unwrap();
        assert_copied(&at.join(name));
    }
    // And what it replaced does not linger.
    write_file(&at.join("h"), b"old");
    assert_eq!(fs::metadata(at.join("h")).unwrap().len(), 3);
    copy(at, "f", "h").unwrap();
    assert_eq!(fs::metadata(at.join("h")).unwrap().len(), 100_000);
    assert_copied(&at.join("h"));
    assert_eq!(names(at), ["d", "f", "g", "h"]);
}

/// Long enough to do other things meanwhile: a second or so of copying.
fn long_world() -> (Scratch, Mount, u64) {
    let source = Scratch::new();
    let size = soak(4 << 30).max(1 << 30);
    let file = File::create(source.path().join("big")).unwrap();
    let piece = content(5, 0, 4 << 20);
    let mut left = size;
    while left > 0 {
        let len = left.min(piece.len() as u64);
        (&file).write_all(&piece[..len as usize]).unwrap();
        left -= len;
    }
    source.file("f", &content(1, 0, 100_000));
    let mount = Mount::of(source.path()).start();
    (source, mount, size)
}

/// A shell in `dir` that writes a line and waits.
fn echo(dir: &Path, line: &str) -> std::process::Child {
    // `exec` of an external printf: the signal then meets the process that writes.
    Command::new("sh")
        .args([
            "-c",
            "exec /usr/bin/env printf '%s\\n' \"$0\" > .copy",
            line,
        ])
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Waits until the list shows a running copy of `big` with that name.
fn await_copying(dir: &Path, to: &str) {
    let line = format!("big -> {to}");
    wait_until("the copy begins", Duration::from_secs(20), || {
        jobs(dir)
            .lines()
            .any(|job| job.contains("running") && job.ends_with(&line))
    });
}

#[test]
fn a_long_copy_keeps_nobody_waiting_and_can_be_stopped() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let (source, mount, size) = long_world();
    let at = mount.path();

    // Stopped by a signal: EINTR within a second, nothing left.
    let mut waiting = echo(at, "big copy");
    await_copying(at, "copy");
    let started = Instant::now();
    let pid = Pid::from_child(&waiting);
    kill_process(pid, Signal::INT).unwrap();
    let status = waiting.wait().unwrap();
    let took = started.elapsed();
    assert_eq!(
        status.signal(),
        Some(libc::SIGINT),
        "{status}: it was not interrupted"
    );
    assert!(took < Duration::from_secs(1), "answered after {took:?}");
    wait_until("nothing is left", Duration::from_secs(10), || {
        names(source.path()) == ["big", "f"]
    });
    wait_until("the list says so", Duration::from_secs(10), || {
        jobs(at).contains("cancelled")
    });

    // Others go on beside it.
    let mut waiting = echo(at, "big copy");
    await_copying(at, "copy");
    let mut answers: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
    let mut round = 0;
    while waiting.try_wait().unwrap().is_none() {
        let mut timed = |what, work: &dyn Fn()| {
            let started = Instant::now();
            work();
            answers.entry(what).or_default().push(started.elapsed());
        };
        timed("echo", &|| copy(at, "f", "g").unwrap());
        timed("cat", &|| assert!(jobs(at).contains("big")));
        timed("read", &|| assert_copied(&at.join("f")));
        timed("stat", &|| assert!(at.join("g").exists()));
        round += 1;
    }
    let status = waiting.wait().unwrap();
    assert!(status.success(), "{status}: {}", jobs(at));
    assert_eq!(
        fs::metadata(source.path().join("copy")).unwrap().len(),
        size
    );
    assert!(round > 1, "the copy was over too soon");
    for (what, mut times) in answers {
        times.sort();
        let (median, most) = (times[times.len() / 2], times[times.len() - 1]);
        eprintln!(
            "{what} beside a long copy: {median:?}, at most {most:?} ({} times)",
            times.len()
        );
        // The middle one: a shared machine may hold up any single one.
        assert!(
            median < Duration::from_millis(100),
            "{what} took {median:?}"
        );
    }

    // The end of the mount: what is in flight is waited for or cancelled, whole or absent.
    let waiting = echo(at, "big again");
    await_copying(at, "again");
    let status = mount.finish_within(Duration::from_secs(300));
    let ended = waiting.wait_with_output().unwrap();
    let left = names(source.path());
    if ended.status.success() {
        assert_eq!(left, ["again", "big", "copy", "f", "g"]);
        assert_eq!(
            fs::metadata(source.path().join("again")).unwrap().len(),
            size
        );
    } else {
        assert_eq!(left, ["big", "copy", "f", "g"]);
    }
    assert_eq!(status.code(), Some(0));
}

#[test]
fn many_copies_at_once() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let (source, mount) = world("rw");
    std::thread::scope(|scope| {
        for worker in 0..16 {
            let at = mount.path();
            scope.spawn(move || {
                for round in 0..5 {
                    copy(at, "f", &format!("g{worker}-{round}")).unwrap();
                    // All over the same name: one of them whole, never a mixture.
                    copy(at, "f", "d/same").unwrap();
                }
            });
        }
    });
    assert_eq!(names(source.path()).len(), 2 + 16 * 5);
    for worker in 0..16 {
        assert_copied(&source.path().join(format!("g{worker}-4")));
    }
    assert_eq!(names(&source.path().join("d")), ["same"]);
    assert_copied(&source.path().join("d/same"));
}

#[test]
fn descriptors_do_not_pile_up() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let (_source, mount) = world("rw");
    let held = || {
        fs::read_dir(format!("/proc/{}/fd", mount.pid()))
            .unwrap()
            .count()
    };
    copy(mount.path(), "f", "g").unwrap();
    let before = held();
    for _ in 0..200 {
        copy(mount.path(), "f", "g").unwrap();
        assert_eq!(copy(mount.path(), "missing", "g"), Err(Errno::NOENT));
        jobs(mount.path());
        let fd = open_control(mount.path()).unwrap();
        assert!(fd.as_raw_fd() > 2);
    }
    wait_until(
        "the descriptors are closed",
        Duration::from_secs(10),
        || held() < before + 50,
    );
}
