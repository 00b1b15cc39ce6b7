//! The command line as a whole.

use super::*;
use crate::fuse::session::{Access, Sandbox, SourceWorkers};
use crate::mirror::{Coherence, Control, Io, NEVER, Passthrough};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

fn line(words: &[&str]) -> Result<Command, String> {
    parse(
        std::iter::once("corfs")
            .chain(words.iter().copied())
            .map(OsString::from),
    )
}

fn mounting(words: &[&str]) -> Settings {
    match line(words) {
        Ok(Command::Mount(settings)) => *settings,
        other => panic!("{other:?}"),
    }
}

fn with(list: &str) -> Settings {
    mounting(&["/s", "/m", "-o", list])
}

fn refused(words: &[&str]) -> String {
    line(words).unwrap_err()
}

#[test]
fn the_defaults_are_those_that_the_help_tells() {
    let settings = mounting(&["/s", "/m"]);
    assert_eq!(settings.source, PathBuf::from("/s"));
    assert_eq!(settings.mountpoint, PathBuf::from("/m"));
    assert!(!settings.foreground && settings.clone_fd && settings.threads.is_none());
    assert_eq!(settings.access, Access::Owner);
    assert_eq!(settings.sandbox, Sandbox::Auto);
    assert_eq!(settings.source_workers, SourceWorkers::Auto);
    assert_eq!(settings.source_timeout, Some(Duration::from_secs(30)));
    assert_eq!(settings.source_timeout_write, None);
    assert_eq!(settings.flags, Default::default());
    let options = settings.options;
    assert_eq!(options.io, Io::Mmap);
    assert_eq!(options.window, 4 << 20);
    assert_eq!(options.window_budget, 256 << 20);
    assert_eq!(options.inode_limit, Some(1 << 20));
    assert_eq!(options.coherence, Coherence::Ttl);
    assert_eq!(options.watch_timeout, Duration::from_secs(60));
    assert_eq!(options.attr_timeout, Duration::from_secs(1));
    assert_eq!(options.entry_timeout, Duration::from_secs(1));
    assert_eq!(options.negative_timeout, None);
    assert_eq!(options.control, Control::Hidden);
    assert_eq!(options.control_name, ".copy");
    assert!(!options.read_only && !options.default_permissions && !options.allow_other);
}

#[test]
fn the_word_mount_changes_nothing() {
    let words = ["/s", "/m", "-f", "-o", "ro", "--window=8M"];
    let long: Vec<&str> = std::iter::once("mount").chain(words).collect();
    assert_eq!(mounting(&words), mounting(&long));
}

#[test]
fn every_long_option_is_a_word_of_the_list_too() {
    let samples = [
        ("threads", "7"),
        ("busy-poll", "250"),
        ("clone-fd", "off"),
        ("readahead", "256K"),
        ("io", "pread"),
        ("passthrough", "always"),
        ("writeback", "on"),
        ("cache", "/c"),
        ("cache-id", "a source"),
        ("cache-size", "5%"),
        ("cache-free", "1G"),
        ("block", "64K"),
        ("verify", "always"),
        ("racy", "3"),
        ("prefetch", "0"),
        ("validate", "ttl:30s"),
        ("offline", "never"),
        ("source-idle", "7"),
        ("window", "128K"),
        ("window-budget", "64M"),
        ("inode-limit", "64K"),
        ("coherence", "watch"),
        ("watch-timeout", "never"),
        ("watch-limit", "9"),
        ("attr-timeout", "2.5"),
        ("entry-timeout", "3"),
        ("negative-timeout", "4"),
        ("control", "visible"),
        ("control-name", ".cp"),
        ("uid", "7"),
        ("gid", "8"),
        ("map", "u1000:2000:1/g5:6:7"),
        ("source-workers", "always"),
        ("source-timeout", "7"),
        ("source-timeout-write", "9s"),
        ("sandbox", "off"),
        ("log-file", "/l"),
        ("fsname", "a b"),
    ];
    assert_eq!(
        samples.map(|(name, _)| name).to_vec(),
        VALUED.iter().map(|o| o.name).collect::<Vec<_>>()
    );
    for (name, value) in samples {
        // Some mean something only beside another.
        let beside = match name {
            "watch-timeout" | "watch-limit" => "coherence=watch",
            "cache-id" | "cache-size" | "cache-free" | "block" | "verify" | "racy" | "prefetch"
            | "validate" | "offline" | "source-idle" => "cache=/c",
            _ => "rw",
        };
        let long = mounting(&["/s", "/m", "-o", beside, &format!("--{name}"), value]);
        assert_ne!(long, with(beside), "{name} has no effect");
        assert_eq!(long, with(&format!("{beside},{name}={value}")));
        let low = name.replace('-', "_");
        assert_eq!(long, with(&format!("{beside},{low}={value}")));
    }
    for (short, long, word) in [
        ("-f", "--foreground", "foreground"),
        ("-d", "--debug", "debug"),
    ] {
        assert_eq!(mounting(&["/s", "/m", short]), with(word));
        assert_eq!(mounting(&["/s", "/m", long]), with(word));
    }
    assert!(with("debug").foreground);
}

#[test]
fn strict_keeps_nothing_and_says_so_to_who_asks_for_a_timeout() {
    let options = with("coherence=strict").options;
    assert_eq!(options.attr_timeout, Duration::ZERO);
    assert_eq!(options.entry_timeout, Duration::ZERO);
    assert_eq!(options.negative_timeout, None);
    for name in ["attr_timeout", "entry_timeout", "negative_timeout"] {
        let words = format!("coherence=strict,{name}=1");
        let refusal = refused(&["/s", "/m", "-o", &words]);
        assert!(refusal.contains(&format!("leave out {name}")), "{refusal}");
    }
}

#[test]
fn only_a_watched_source_has_a_watch_timeout() {
    let options = with("coherence=watch,watch_timeout=5,attr_timeout=2").options;
    assert_eq!(options.watch_timeout, Duration::from_secs(5));
    assert_eq!(options.attr_timeout, Duration::from_secs(2));
    let never = with("coherence=watch,watch_timeout=never").options;
    assert_eq!(never.watch_timeout, NEVER);
    for word in ["watch_timeout=5", "watch_limit=5"] {
        let refusal = refused(&["/s", "/m", "-o", word]);
        assert!(refusal.contains("add coherence=watch"), "{refusal}");
    }
}

#[test]
fn the_last_word_counts_in_whichever_form() {
    assert!(!with("ro,rw").options.read_only);
    assert!(with("rw").flags == with("suid,nosuid").flags);
    assert!(
        !mounting(&["/s", "/m", "-o", "ro", "-o", "rw"])
            .options
            .read_only
    );
    let window = |words: &[&str]| mounting(words).options.window;
    assert_eq!(
        window(&["/s", "/m", "--window", "1M", "-o", "window=2M"]),
        2 << 20
    );
    assert_eq!(
        window(&["-o", "window=2M", "/s", "/m", "--window", "1M"]),
        1 << 20
    );
    assert_eq!(window(&["/s", "--window=1M", "--window=2M", "/m"]), 2 << 20);
}

#[test]
fn words_of_mount_are_honoured() {
    let settings = with("ro,suid,dev,noexec,noatime,sync,dirsync,auto_unmount,nonempty");
    assert!(settings.options.read_only && settings.options.noatime);
    let flags = settings.flags;
    assert!(flags.suid && flags.dev && flags.noexec && flags.sync && flags.dirsync);
    assert!(settings.auto_unmount && settings.nonempty);
    assert!(!with("sync,async").flags.sync);
    assert!(!with("noexec,exec").flags.noexec);
    assert!(!with("noatime,atime").options.noatime);
}

#[test]
fn who_lets_others_in_has_modes_checked() {
    let others = with("allow_other");
    assert_eq!(others.access, Access::All);
    assert!(others.options.default_permissions && others.options.allow_other);
    let root = with("allow_root");
    assert_eq!(root.access, Access::OwnerAndRoot);
    assert!(root.options.default_permissions && !root.options.allow_other);
    assert!(with("default_permissions").options.default_permissions);
    assert!(refused(&["/s", "/m", "-o", "allow_root,allow_other"]).contains("only one"));
}

#[test]
fn harmless_words_of_others_are_ignored() {
    let list = "_netdev,nofail,auto,noauto,user,users,nouser,owner,group,defaults,relatime,\
        norelatime,strictatime,nodiratime,diratime,lazytime,x-systemd.automount,x-a=b,comment=c,\
        subtype=corfs,rw,nosuid,nodev,exec";
    assert_eq!(with(list), mounting(&["/s", "/m"]));
}

#[test]
fn an_unknown_word_is_refused_by_its_name() {
    let words = refused(&["/s", "/m", "-o", "ro,frobnicate=3"]);
    assert!(
        words.contains("frobnicate=3") && words.contains("not known"),
        "{words}"
    );
    assert!(refused(&["/s", "/m", "--frobnicate"]).contains("--frobnicate"));
    assert!(refused(&["/s", "/m", "-o", "ro=1"]).contains("takes no value"));
    assert!(refused(&["/s", "/m", "-o", "window"]).contains("window=SIZE"));
    assert_eq!(with("clone_fd"), mounting(&["/s", "/m"]));
}

#[test]
fn an_impossible_value_is_refused_with_what_is_right() {
    let words = refused(&["/s", "/m", "-o", "window=3K"]);
    assert!(words.starts_with("window=3K: must be"), "{words}");
    assert!(words.contains("multiple of 4096, 64K to 1G"), "{words}");
    for bad in [
        "window=2G",
        "window=65537",
        "window=x",
        "window=",
        "window_budget=1M",
        "threads=0",
        "threads=257",
        "threads=-1",
        "busy_poll=1001",
        "busy_poll=-1",
        "busy_poll=off",
        "passthrough=maybe",
        "writeback=always",
        "cache=/c,block=63K",
        "cache=/c,block=96K",
        "cache=/c,block=32M",
        "cache=/c,cache_size=101%",
        "cache=/c,cache_free=-1",
        "cache=/c,verify=never",
        "cache=/c,validate=ttl",
        "cache=/c,validate=ttl:x",
        "cache=/c,prefetch=2G",
        "cache=/c,cache_id=",
        "readahead=1",
        "io=splice",
        "clone_fd=maybe",
        "sandbox=on",
        "control=on",
        "coherence=lax",
        "watch_timeout=soon",
        "watch_limit=0",
        "attr_timeout=-1",
        "source_timeout=0",
        "source_timeout_write=soon",
        "source_workers=some",
        "entry_timeout=soon",
        "negative_timeout=1e9",
        "control_name=a/b",
        "control_name=..",
        "control_name=.corfs",
        "control_name=",
        "fsname=",
        "log_file=",
        "window=64M,window_budget=8M",
        "window_budget=16777216T",
        "inode_limit=255",
        "inode_limit=many",
        "inode_limit=",
    ] {
        let words = refused(&["/s", "/m", "-o", bad]);
        assert!(words.contains("must"), "{bad}: {words}");
    }
}

#[test]
fn the_kernel_cannot_keep_times_of_access_still() {
    let words = refused(&["/s", "/m", "-o", "noatime,passthrough=always"]);
    assert!(words.contains("only one of them can hold"), "{words}");
    assert_eq!(with("").options.passthrough, Passthrough::Never);
    let asked = with("passthrough=always,io=pread").options;
    assert_eq!(asked.passthrough, Passthrough::Always);
}

#[test]
fn who_writes_back_is_alone_with_the_source() {
    assert!(!with("").options.writeback);
    assert!(
        with("writeback=on,coherence=ttl,io=pread")
            .options
            .writeback
    );
    assert!(
        !with("writeback=on,writeback=off,passthrough=always")
            .options
            .writeback
    );
    for (other, advice) in [
        ("passthrough=always", "use passthrough=never"),
        ("coherence=watch", "use coherence=ttl"),
        ("coherence=strict", "use coherence=ttl"),
        ("cache=/c", "leave out one of them"),
    ] {
        let words = refused(&["/s", "/m", "-o", &format!("writeback=on,{other}")]);
        let (name, _) = other.split_once('=').unwrap();
        assert!(
            words.contains("writeback=on") && words.contains(name),
            "{words}"
        );
        assert!(words.contains(advice), "{words}");
    }
}

#[test]
fn a_limit_of_inodes_is_a_number_or_none() {
    assert_eq!(with("inode_limit=256").options.inode_limit, Some(256));
    assert_eq!(with("inode_limit=64K").options.inode_limit, Some(65536));
    assert_eq!(with("inode_limit=0").options.inode_limit, None);
}

#[test]
fn a_small_budget_makes_the_default_window_smaller() {
    assert_eq!(with("window_budget=8M").options.window, 4 << 20);
    assert_eq!(with("window_budget=7M").options.window, 2 << 20);
    assert_eq!(with("window_budget=2M").options.window, 1 << 20);
}

#[test]
fn commas_and_any_bytes_reach_the_value() {
    assert_eq!(
        with(r"fsname=a\,b\\c,ro").fsname.as_deref(),
        Some(OsStr::new(r"a,b\c"))
    );
    let raw = OsStr::from_bytes(b"fsname=\xff");
    let words = [
        OsStr::new("corfs"),
        OsStr::new("/s"),
        OsStr::from_bytes(b"/m\xfe"),
        OsStr::new("-o"),
        raw,
    ];
    let Ok(Command::Mount(settings)) = parse(words.map(OsString::from)) else {
        panic!("refused");
    };
    assert_eq!(settings.fsname.as_deref(), Some(OsStr::from_bytes(b"\xff")));
    assert_eq!(settings.mountpoint.as_os_str().as_bytes(), b"/m\xfe");
}

#[test]
fn umount_and_stat_have_their_own_words() {
    let plain = Command::Umount {
        mountpoint: "/m".into(),
        manner: Manner::Plain,
    };
    let lazy = Command::Umount {
        mountpoint: "/m".into(),
        manner: Manner::Lazy,
    };
    assert_eq!(line(&["umount", "/m"]), Ok(plain));
    assert_eq!(line(&["umount", "-l", "/m"]), Ok(lazy.clone()));
    assert_eq!(line(&["umount", "/m", "--lazy"]), Ok(lazy));
    let force = Command::Umount {
        mountpoint: PathBuf::from("/m"),
        manner: Manner::Force,
    };
    assert_eq!(line(&["umount", "-f", "/m"]), Ok(force.clone()));
    assert_eq!(line(&["umount", "--lazy", "--force", "/m"]), Ok(force));
    for (numbers, mount) in [("0:52:4294967311", Some(4_294_967_311)), ("0:52:0", None)] {
        let keep = Command::Keep {
            mountpoint: "/m".into(),
            device: (0, 52),
            mount,
        };
        let option = format!("--when-abandoned={numbers}");
        assert_eq!(line(&["umount", &option, "--", "/m"]), Ok(keep));
    }
    assert!(refused(&["umount", "--when-abandoned=x", "/m"]).contains("MAJOR:MINOR"));
    let stat = |json, watch| Command::Stat {
        path: "/m".into(),
        json,
        watch,
    };
    let seconds = |seconds| Some(Duration::from_secs_f64(seconds));
    assert_eq!(line(&["stat", "/m"]), Ok(stat(false, None)));
    assert_eq!(line(&["stat", "--json", "/m"]), Ok(stat(true, None)));
    assert_eq!(line(&["stat", "-w", "/m"]), Ok(stat(false, seconds(1.0))));
    assert_eq!(
        line(&["stat", "--watch", "--json", "--interval=0.5", "/m"]),
        Ok(stat(true, seconds(0.5)))
    );
    assert!(refused(&["stat", "--watch", "--interval=0", "/m"]).contains("more than 0"));
    assert!(refused(&["stat", "--interval=1", "/m"]).contains("--watch"));
}

#[test]
fn copy_has_the_words_of_a_line() {
    let copying = |words: &[&str]| match line(&[&["copy"], words].concat()) {
        Ok(Command::Copy(copying)) => *copying,
        other => panic!("{words:?}: {other:?}"),
    };
    let plain = copying(&["a", "b"]);
    assert_eq!(plain.telling, Telling::Bar);
    assert_eq!(plain.asked.sources, [b"a"]);
    assert_eq!(plain.asked.destination, b"b");
    let asked = copying(&["-a", "x", "--json", "--chunk=64K", "y", "-q", "--", "-z"]);
    assert_eq!(asked.telling, Telling::Json);
    assert_eq!(asked.asked.sources, [b"x", b"y"]);
    assert_eq!(asked.asked.destination, b"-z");
    assert!(asked.asked.options.recursive && asked.asked.options.preserve.links);
    assert_eq!(asked.asked.options.chunk, 64 << 10);
    assert_eq!(copying(&["a", "-q", "b"]).telling, Telling::Nothing);
    assert!(refused(&["copy", "a"]).contains("the destination is missing"));
    assert!(refused(&["copy", "--chunk=1", "a", "b"]).contains("64K to 1G"));
    assert!(
        matches!(line(&["copy", "--help"]), Ok(Command::Print(words)) if words.contains("SRC"))
    );
}

#[test]
fn names_of_commands_can_be_names_of_directories() {
    assert_eq!(
        mounting(&["./umount", "stat"]).mountpoint,
        PathBuf::from("stat")
    );
    assert_eq!(
        mounting(&["./umount", "stat"]).source,
        PathBuf::from("./umount")
    );
    assert_eq!(
        mounting(&["-f", "umount", "/m"]).source,
        PathBuf::from("umount")
    );
    assert_eq!(mounting(&["help", "/m"]).source, PathBuf::from("help"));
}

#[test]
fn missing_and_spare_words_are_errors_and_help_is_none() {
    for bad in [
        &[][..],
        &["/s"],
        &["/s", "/m", "/x"],
        &["umount"],
        &["stat"],
        &["-o"],
        &["umount", "-x", "/m"],
    ] {
        assert!(!refused(bad).starts_with("error"), "{bad:?}");
    }
    for good in [
        &["--help"][..],
        &["-h"],
        &["-V"],
        &["--version"],
        &["umount", "--help"],
    ] {
        assert!(matches!(line(good), Ok(Command::Print(_))), "{good:?}");
    }
    let Ok(Command::Print(version)) = line(&["-V"]) else {
        panic!()
    };
    assert_eq!(
        version.trim_end(),
        concat!("corfs ", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn owners_are_mapped_for_both_or_for_users_and_groups_apart() {
    use crate::mirror::{IdRange, Ids};
    assert_eq!(with("rw").options.ids, None);
    let range = |source, mount, count| IdRange {
        source,
        mount,
        count,
    };
    let ids = with("map=1000:2000:1/g5:6:2,map=u1:3:1")
        .options
        .ids
        .unwrap();
    assert_eq!(ids.users.ranges(), [range(1000, 2000, 1), range(1, 3, 1)]);
    assert_eq!(ids.groups.ranges(), [range(1000, 2000, 1), range(5, 6, 2)]);
    let long = mounting(&["/s", "/m", "--map", "1:2:3", "--uid=7", "--gid", "8"]);
    let ids = long.options.ids.unwrap();
    assert_eq!((ids.users.all(), ids.groups.all()), (Some(7), Some(8)));
    assert_eq!(ids.users, Ids::new(Some(7), vec![range(1, 2, 3)]).unwrap());
}

#[test]
fn ids_that_are_none_are_refused_with_what_is_right() {
    for word in ["uid=", "uid=root", "gid=-1", "uid=+1", "gid=4294967295"] {
        let said = refused(&["/s", "/m", "-o", word]);
        assert!(said.contains("must be a number, 0 to 4294967293"), "{said}");
    }
    for word in [
        "map=",
        "map=1",
        "map=1:2",
        "map=1:2:3:4",
        "map=x1:2:3",
        "map=1:2:3/",
        "map=1:-2:3",
    ] {
        let said = refused(&["/s", "/m", "-o", word]);
        assert!(said.contains("must be SOURCE:MOUNT:COUNT"), "{said}");
    }
    let said = refused(&["/s", "/m", "-o", "map=1:5:2/2:9:1"]);
    assert!(said.contains("1:5:2 and 2:9:1 overlap"), "{said}");
    let said = refused(&["/s", "/m", "-o", "map=u1:5:2,map=9:6:1"]);
    assert!(said.contains("1:5:2 and 9:6:1 collide"), "{said}");
    with("map=u1:5:2/g2:5:1");
}

#[test]
fn words_of_the_cache_need_one_and_go_with_what_keeps_to_it() {
    for option in [
        "cache_id=a",
        "cache_size=1G",
        "block=64K",
        "validate=never",
        "racy=0",
    ] {
        let words = refused(&["/s", "/m", "-o", option]);
        let (name, _) = option.split_once('=').unwrap();
        assert!(
            words.contains(name) && words.contains("add cache=DIR"),
            "{words}"
        );
    }
    let words = refused(&["/s", "/m", "--cache", "/c", "-o", "passthrough=always"]);
    assert!(words.contains("use passthrough=cached"), "{words}");
    let words = refused(&["/s", "/m", "-o", "passthrough=cached"]);
    assert!(words.contains("there is no cache"), "{words}");
    let words = refused(&["/s", "/m", "--cache", "/c", "-o", "coherence=strict"]);
    assert!(words.contains("leave out one of them"), "{words}");
    assert_eq!(with("cache=/c").options.passthrough, Passthrough::Cached);
    assert_eq!(
        with("cache=/c,passthrough=never").options.passthrough,
        Passthrough::Never
    );
    assert_eq!(with("").cache, None);
    let dir = |option: &str| with(option).cache.unwrap().dir;
    assert_eq!(dir("cache=/c"), PathBuf::from("/c"));
    assert_eq!(dir("cache=c"), std::env::current_dir().unwrap().join("c"));
}
