//! The folder `.corfs/` at the root, and `corfs stat`.

use std::fs;
use std::os::unix::fs::MetadataExt;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::support::{
    Mount, Need, OTHER, Scratch, USER, apart, content, corfs, errno_of, output, read_file, require,
    run, write_file,
};

#[test]
fn the_folder_is_hidden_and_read_only() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    source.dir("sub");
    let mount = Mount::of(source.path()).start();
    let names: Vec<_> = fs::read_dir(mount.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(names, ["sub"]);
    let folder = mount.path().join(".corfs");
    let mode = |name: &str| fs::metadata(folder.join(name)).unwrap().mode();
    assert_eq!(mode(".") & libc::S_IFMT, libc::S_IFDIR);
    assert_eq!(mode(".") & 0o222, 0);
    assert_eq!(mode("stats"), libc::S_IFREG | 0o444);
    assert_eq!(mode("config"), libc::S_IFREG | 0o400);
    let mut listed: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    listed.sort();
    assert_eq!(listed, ["config", "jobs.json", "oplog", "stats"]);
    // At the root only.
    assert!(!mount.path().join("sub/.corfs").exists());
    assert!(!folder.join("none").exists());

    let refused = |what: &str, result: Result<(), Errno>| {
        let errno = result.expect_err(what);
        assert!(
            [Errno::PERM, Errno::ACCESS, Errno::ROFS, Errno::EXIST].contains(&errno),
            "{what}: {errno}"
        );
    };
    let open = |name: &str, flags| rustix::fs::open(folder.join(name), flags, Mode::RWXU).map(drop);
    refused("write stats", open("stats", OFlags::WRONLY));
    refused(
        "truncate stats",
        open("stats", OFlags::WRONLY | OFlags::TRUNC),
    );
    refused("create", open("new", OFlags::CREATE | OFlags::WRONLY));
    refused("mkdir", rustix::fs::mkdir(folder.join("new"), Mode::RWXU));
    refused("unlink", rustix::fs::unlink(folder.join("stats")));
    refused("rmdir", rustix::fs::rmdir(&folder));
    refused(
        "rename",
        rustix::fs::rename(folder.join("stats"), mount.path().join("s")),
    );
    refused(
        "rename the folder",
        rustix::fs::rename(&folder, mount.path().join("s")),
    );
    refused(
        "link",
        rustix::fs::link(folder.join("stats"), mount.path().join("s")),
    );
    refused("mkdir over it", rustix::fs::mkdir(&folder, Mode::RWXU));
    refused("chmod", rustix::fs::chmod(folder.join("stats"), Mode::RWXU));
    assert!(!source.path().join(".corfs").exists());
}

#[test]
fn the_statistics_count_and_name_nobody() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    source.file("secret-name", &content(1, 0, 100_000));
    let mount = Mount::of(source.path()).start();
    let path = mount.path().join(".corfs/stats");
    let text = || String::from_utf8(read_file(&path)).unwrap();
    let before = mount.stats();
    for _ in 0..3 {
        read_file(&mount.path().join("secret-name"));
        write_file(&mount.path().join("another-secret"), b"12345");
        fs::remove_file(mount.path().join("another-secret")).unwrap();
    }
    let _ = fs::metadata(mount.path().join("missing-secret"));
    let _ = rustix::fs::rmdir(mount.path().join("secret-name/x"));
    let after = mount.stats();
    let grew = |name: &str, labels: &[(&str, &str)]| {
        let (a, b) = (before.sum(name, labels), after.value(name, labels));
        assert!(b > a, "{name} {labels:?}: {a}, then {b}");
    };
    grew("corfs_operations_total", &[("op", "lookup")]);
    grew("corfs_operations_total", &[("op", "write")]);
    grew("corfs_operations_total", &[("op", "create")]);
    grew("corfs_operations_total", &[("op", "unlink")]);
    grew("corfs_operations_total", &[("op", "read")]);
    grew("corfs_operation_errors_total", &[("op", "lookup")]);
    grew("corfs_operation_duration_seconds_count", &[("op", "read")]);
    grew("corfs_operation_duration_seconds_sum", &[("op", "read")]);
    grew(
        "corfs_operation_duration_seconds_bucket",
        &[("op", "read"), ("le", "+Inf")],
    );
    grew("corfs_read_bytes_total", &[("mode", "mmap")]);
    grew("corfs_written_bytes_total", &[]);
    let text = text();
    assert!(text.ends_with("# EOF\n"), "OpenMetrics ends so");
    assert_eq!(text.matches("# EOF").count(), 1);
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        assert!(line.starts_with("corfs_"), "{line}");
    }
    for kind in ["counter", "gauge", "histogram"] {
        assert!(text.contains(&format!(" {kind}\n")), "no {kind}");
    }
    assert!(
        !text.contains("secret"),
        "a name of a file stands in the statistics"
    );
    assert!(!text.contains(source.path().to_str().unwrap()));
}

#[test]
fn the_configuration_is_what_is_in_force() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    let mount = Mount::of(source.path())
        .opt("io=pread,window_budget=16M,ro")
        .start();
    let text = String::from_utf8(read_file(&mount.path().join(".corfs/config"))).unwrap();
    for words in ["io", "pread", "budget", "timeout"] {
        assert!(text.contains(words), "no {words} in:\n{text}");
    }
    assert!(
        text.contains("16M") || text.contains(&(16 << 20).to_string()),
        "{text}"
    );
}

#[test]
fn others_read_the_statistics_but_not_the_configuration() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = Scratch::new();
    let mount = Mount::of(source.path()).opt("allow_other").start();
    apart(Some((USER, OTHER)), || {
        assert!(!read_file(&mount.path().join(".corfs/stats")).is_empty());
        let config = fs::read(mount.path().join(".corfs/config"));
        assert_eq!(errno_of("read config", config), Errno::ACCESS);
    });
    let config = fs::metadata(mount.path().join(".corfs/config")).unwrap();
    assert_eq!((config.uid(), config.gid()), (0, 0));
}

#[test]
fn the_command_shows_the_statistics() {
    if !require(&[Need::Fuse]) {
        return;
    }
    let source = Scratch::new();
    source.file("f", &content(1, 0, 300_000));
    let mount = Mount::of(source.path()).opt("io=mmap").start();
    read_file(&mount.path().join("f"));
    let people = run(corfs().arg("stat").arg(mount.path()));
    assert!(
        people.contains("read") && people.contains("lookup"),
        "{people}"
    );
    let programs = run(corfs().args(["stat", "--json"]).arg(mount.path()));
    let value: serde_json::Value =
        serde_json::from_str(&programs).unwrap_or_else(|e| panic!("not JSON ({e}): {programs}"));
    assert!(
        value.is_object() && programs.contains("300000"),
        "{programs}"
    );
}

#[test]
fn the_command_says_what_is_no_mount() {
    let scratch = Scratch::new();
    for path in [scratch.path().to_path_buf(), scratch.path().join("none")] {
        let said = output(corfs().arg("stat").arg(&path));
        assert!(!said.status.success());
        let words = String::from_utf8_lossy(&said.stderr);
        assert!(words.contains(path.to_str().unwrap()), "{words}");
    }
}
