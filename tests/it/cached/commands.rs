//! `corfs cache`, on a directory and on paths of a mount.

use serde_json::Value;

use super::*;

/// What `corfs cache WORDS --json` prints, a value a line.
#[track_caller]
fn asked(words: &[&str], place: &Path) -> Vec<Value> {
    let text = run(corfs().arg("cache").args(words).arg("--json").arg(place));
    let parse = |line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"));
    text.lines().map(parse).collect()
}

/// The only line, or the last one.
#[track_caller]
fn result(words: &[&str], place: &Path) -> Value {
    asked(words, place).pop().expect("a line")
}

fn number(value: &Value, key: &str) -> u64 {
    value[key]
        .as_u64()
        .unwrap_or_else(|| panic!("no number {key} in {value}"))
}

/// A tree, a cache of it and a mount with both.
struct Stage {
    scratch: Scratch,
    tree: Tree,
    cache: PathBuf,
}

impl Stage {
    fn new(files: u64) -> Self {
        let scratch = Scratch::new();
        let tree = Tree::new(&scratch.dir("source"), files, 3 * BLOCK);
        let cache = cache_folder(&scratch, "cache");
        Self {
            scratch,
            tree,
            cache,
        }
    }

    fn mount(&self) -> MountBuilder {
        cached(&self.tree.path, &self.cache)
    }
}

#[test]
fn a_tree_is_warmed_and_warming_goes_on_where_it_ended() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let stage = Stage::new(12);
    let mount = stage.mount().start();
    let some = result(&["warm", "--limit", "500K"], mount.path());
    assert_eq!(some["limit_reached"], true);
    assert!(number(&some, "bytes_done") < stage.tree.bytes(), "{some}");
    let rest = result(&["warm"], mount.path());
    assert_eq!(number(&rest, "files_done"), 12);
    assert_eq!(number(&rest, "bytes_done"), stage.tree.bytes());
    wait_until("all is stored", PATIENCE, || {
        let files = asked(&["list"], mount.path());
        files.len() == 12 && files.iter().all(|file| file["whole"] == true)
    });
    let before = counted(&mount, "filled_bytes_total");
    let again = result(&["warm"], mount.path());
    assert_eq!(number(&again, "files_whole_before"), 12);
    assert_eq!(
        counted(&mount, "filled_bytes_total"),
        before,
        "nothing is asked again"
    );
}

#[test]
fn status_and_list_tell_what_is_there() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let stage = Stage::new(5);
    let sub = stage.tree.path.join("sub");
    fs::create_dir(&sub).expect("mkdir");
    write_content(&sub.join("deep"), 77, BLOCK);
    let mount = stage.mount().start();
    result(&["warm"], mount.path());
    assert!(mount.finish().success());
    let lines = asked(&["status"], &stage.cache);
    assert_eq!(lines[0]["type"], "cache");
    assert_eq!(lines[1]["type"], "store");
    assert_eq!(number(&lines[1], "in_use"), 0);
    assert_eq!(number(&lines[1], "files"), 6);
    assert_eq!(number(&lines[1], "whole"), 6);
    assert_eq!(
        number(&lines[1], "stored_bytes"),
        stage.tree.bytes() + BLOCK
    );
    let used = number(&lines[0], "used_bytes");
    let on_disk = disk_usage(&stage.cache.join("v1"));
    assert!(used >= number(&lines[1], "allocated_bytes"), "{lines:?}");
    assert!(used <= on_disk * 2, "{used} of {on_disk}");
    let people = run(corfs().args(["cache", "list"]).arg(&stage.cache));
    assert!(
        people.contains("100 %") && people.contains("sub/deep"),
        "{people}"
    );
    let people = run(corfs().args(["cache", "status"]).arg(&stage.cache));
    assert!(people.contains("6, 6 whole, 0 pinned"), "{people}");
    // Through a mount it is about what lies below the path.
    let mount = stage.mount().start();
    let files = asked(&["list"], &mount.path().join("sub"));
    assert_eq!(files.len(), 1, "{files:?}");
    assert_eq!(files[0]["path"], "sub/deep");
    let processes = &asked(&["status"], &stage.cache)[0]["processes"];
    assert_eq!(processes.as_array().map(Vec::len), Some(1));
}

#[test]
fn what_is_pinned_stays_and_what_is_not_goes() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let stage = Stage::new(20);
    let limit = stage.tree.bytes() / 2;
    let mount = stage.mount().opt(format!("cache_size={limit}")).start();
    let pinned = mount.path().join(name(0));
    result(&["warm"], &pinned);
    wait_until("it is stored", PATIENCE, || {
        asked(&["list"], &pinned)
            .iter()
            .any(|file| file["whole"] == true)
    });
    assert_eq!(number(&result(&["pin"], &pinned), "files"), 1);
    for _ in 0..2 {
        stage.tree.compare(mount.path());
    }
    let files = asked(&["list"], mount.path());
    let first = files.iter().find(|file| file["path"] == name(0).as_str());
    assert_eq!(first.expect("it is there")["pinned"], true);
    assert!(files.len() < 20, "others were evicted: {}", files.len());
    drop(mount);
    result(&["evict"], &stage.cache);
    let left = asked(&["list"], &stage.cache);
    assert_eq!(left.len(), 1, "{left:?}");
    let mount = stage.mount().start();
    let pinned = mount.path().join(name(0));
    result(&["unpin"], &pinned);
    result(&["evict"], &pinned);
    assert_eq!(asked(&["list"], &stage.cache).len(), 0);
    stage.tree.compare(mount.path());
}

#[test]
fn evicting_leaves_what_is_in_use_and_as_much_as_is_to_be_kept() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let stage = Stage::new(10);
    let mount = stage.mount().start();
    result(&["warm"], mount.path());
    // What is stored after its answer is in use until then.
    wait_until("all is stored and let go", PATIENCE, || {
        let files = asked(&["list"], mount.path());
        let done = |file: &Value| file["whole"] == true && file["in_use"] == false;
        files.len() == 10 && files.iter().all(done)
    });
    let open = File::open(mount.path().join(name(3))).expect("open");
    let mut bytes = vec![0; BLOCK as usize];
    open.read_exact_at(&mut bytes, 0).expect("read");
    let each = stage.tree.bytes() / 10;
    let some = result(&["evict", "--keep", &(each * 5).to_string()], &stage.cache);
    let gone = number(&some, "files");
    assert!((4..=7).contains(&gone), "{some}");
    result(&["evict"], &stage.cache);
    let left = asked(&["list"], &stage.cache);
    assert!(
        left.iter().any(|file| file["path"] == name(3).as_str()),
        "{left:?}"
    );
    open.read_exact_at(&mut bytes, BLOCK).expect("read");
    assert_content(3, BLOCK, &bytes);
    stage.tree.compare(mount.path());
}

#[test]
fn verifying_finds_a_flipped_bit_and_drops_the_block() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let stage = Stage::new(4);
    let mount = stage.mount().start();
    result(&["warm"], mount.path());
    assert!(mount.finish().success());
    let right = result(&["verify"], &stage.cache);
    assert_eq!(number(&right, "files"), 4);
    assert_eq!(number(&right, "wrong_blocks"), 0);
    for path in files_of(&stage.cache, "data") {
        let file = File::options()
            .read(true)
            .write(true)
            .open(path)
            .expect("open");
        let mut byte = [0];
        file.read_exact_at(&mut byte, BLOCK + 5).expect("read");
        file.write_all_at(&[byte[0] ^ 4], BLOCK + 5).expect("write");
    }
    let out = output(corfs().args(["cache", "verify"]).arg(&stage.cache));
    assert_eq!(out.status.code(), Some(1));
    let words = String::from_utf8_lossy(&out.stderr);
    assert!(words.contains("4 blocks were wrong"), "{words}");
    assert_eq!(
        number(&result(&["verify"], &stage.cache), "wrong_blocks"),
        0
    );
    let mount = stage.mount().start();
    stage.tree.compare(mount.path());
}

#[test]
fn a_check_removes_what_belongs_to_nobody_and_counts_right() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let stage = Stage::new(4);
    let mount = stage.mount().start();
    result(&["warm"], mount.path());
    assert!(mount.finish().success());
    let index = files_of(&stage.cache, "index").remove(0);
    let fan = index.parent().expect("a folder");
    let halves = [
        index.with_extension("data"),
        fan.join("00112233445566778899aabbccddeeff.data"),
    ];
    write_file(&halves[1], &[1; 100_000]);
    fs::remove_file(&index).expect("remove");
    let found = result(&["check"], &stage.cache);
    assert_eq!(number(&found, "files"), 3);
    assert!(number(&found, "removed") >= 2, "{found}");
    assert!(halves.iter().all(|half| !half.exists()), "halves are gone");
    let lines = asked(&["status"], &stage.cache);
    assert!(number(&lines[0], "used_bytes") >= number(&lines[1], "allocated_bytes"));
    let mount = stage.mount().start();
    stage.tree.compare(mount.path());
}

#[test]
fn what_is_no_cache_is_told_in_words() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let stage = Stage::new(1);
    let out = output(corfs().args(["cache", "status"]).arg(stage.scratch.path()));
    assert_eq!(out.status.code(), Some(1));
    let words = String::from_utf8_lossy(&out.stderr);
    assert!(words.contains("holds no cache"), "{words}");
    let mount = Mount::of(&stage.tree.path).start();
    let out = output(corfs().args(["cache", "warm"]).arg(mount.path()));
    assert_eq!(out.status.code(), Some(1));
    let words = String::from_utf8_lossy(&out.stderr);
    assert!(words.contains("the mount has no cache"), "{words}");
}
