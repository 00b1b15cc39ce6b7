//! The store of names is torn, flipped, or its process killed: never a wrong answer.

use std::path::PathBuf;

use super::*;

fn file_of_names(cache: &Path) -> PathBuf {
    let stores = fs::read_dir(cache.join("v1")).unwrap().flatten();
    let found = stores.map(|store| store.path().join("names/tree.redb"));
    found
        .into_iter()
        .find(|path| path.exists())
        .expect("the names")
}

#[test]
fn after_a_kill_the_tree_is_as_last_seen() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let mut source = faulty();
    let scratch = Scratch::new();
    let cache = cache_folder(&scratch);
    for round in 0..3 {
        let mut mount = cached(source.path(), &cache).start();
        let seen = learn(&mount);
        mount.signal_server(rustix::process::Signal::KILL);
        mount.wait(PATIENCE).expect("it ends");
        source.die();
        let mount = cached(source.path(), &cache).start();
        assert_served_from_memory(&mount, &seen);
        drop(mount);
        source.come_back();
        eprintln!("round {round}");
    }
}

#[test]
fn damaged_names_are_a_miss_and_are_learnt_anew() {
    if !require(&[Need::Fuse, Need::Root]) {
        return;
    }
    let source = faulty();
    let scratch = Scratch::new();
    let cache = cache_folder(&scratch);
    let mount = cached(source.path(), &cache).start();
    let seen = learn(&mount);
    assert_eq!(mount.finish().code(), Some(0));
    let path = file_of_names(&cache);
    let whole = fs::read(&path).unwrap();
    let mut dice = Dice::new(5);
    for round in 0..soak(60) {
        let mut torn = whole.clone();
        match round % 2 {
            0 => torn.truncate(dice.below(whole.len() as u64) as usize),
            _ => {
                for _ in 0..8 {
                    let at = dice.below(whole.len() as u64) as usize;
                    torn[at] ^= 1 << dice.below(8);
                }
            }
        }
        fs::write(&path, &torn).unwrap();
        let mount = cached(source.path(), &cache).start();
        assert_eq!(see(mount.path()), seen, "round {round}");
        source.faults().fail_all(Errno::IO);
        await_offline(&mount);
        for (path, told_before) in &seen {
            // What is known is right.
            let at = mount.path().join(path);
            if fs::symlink_metadata(&at).is_ok() {
                assert_eq!(told(&at), *told_before, "round {round}: {path}");
            }
        }
        source.faults().heal();
        await_online(&mount);
    }
}
