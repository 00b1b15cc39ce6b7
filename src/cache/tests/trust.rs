//! What is believed after a stop, and after trouble.

use std::os::unix::fs::FileExt;

use proptest::prelude::*;

use super::super::{CacheDir, Verify};
use super::*;

/// A store with one whole file, closed or killed, on a machine that crashed or not.
fn stored(dir: &Path, blocks: u64, clean: bool, crashed: bool) -> Vec<u8> {
    let store = open(&options(dir));
    let bytes = content("f", 1, blocks * BLOCK);
    fill_all(&entry(&store, "f", 1, blocks * BLOCK), &bytes);
    if clean {
        store.close();
    }
    // Without close() its locks go when it does, as those of a killed process.
    drop(store);
    if crashed && clean {
        for path in files(dir, "/state") {
            let text = std::fs::read_to_string(&path).unwrap();
            let mut state = super::super::trust::State::decode(&text).unwrap();
            state.place ^= 1;
            std::fs::write(path, state.encode()).unwrap();
        }
    } else if crashed {
        crash(dir);
    }
    bytes
}

fn flip(path: &Path, at: u64) {
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
}

#[test]
fn only_a_crash_without_a_clean_stop_makes_blocks_suspect() {
    for (clean, crashed, ready) in [
        (true, false, Ready::All),
        (true, true, Ready::All),
        (false, false, Ready::All),
        (false, true, Ready::Suspect),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let bytes = stored(folder.path(), 3, clean, crashed);
        let store = open(&options(folder.path()));
        let entry = entry(&store, "f", 1, 3 * BLOCK);
        assert_eq!(entry.ready(0..3 * BLOCK), ready, "{clean} {crashed}");
        assert_eq!(entry.is_whole(), ready == Ready::All);
        assert!(entry.check(0..3 * BLOCK));
        assert_eq!(entry.ready(0..3 * BLOCK), Ready::All);
        assert!(entry.is_whole());
        assert_eq!(served(&entry), bytes);
        assert_eq!(counted(&store, "corfs_cache_corrupt_total"), 0.0);
    }
}

#[test]
fn a_suspect_block_that_is_wrong_is_fetched_again() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = stored(folder.path(), 3, false, true);
    flip(&files(folder.path(), ".data")[0], BLOCK + 17);
    let store = open(&options(folder.path()));
    let entry = entry(&store, "f", 1, 3 * BLOCK);
    assert!(!entry.check(0..3 * BLOCK));
    assert_eq!(counted(&store, "corfs_cache_corrupt_total"), 1.0);
    assert_eq!(entry.ready(BLOCK..BLOCK + 1), Ready::Missing);
    assert_eq!(entry.ready(0..BLOCK), Ready::All);
    fill(&entry, 1, &bytes);
    assert!(entry.check(0..3 * BLOCK) && entry.is_whole());
    assert_eq!(served(&entry), bytes);
}

#[test]
fn suspicion_ends_when_everything_was_checked() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = stored(folder.path(), 3, false, true);
    let store = open(&options(folder.path()));
    assert!(store.state().has_suspects());
    super::super::keeping::check_suspects(&store).unwrap();
    assert!(!store.state().has_suspects());
    let held = entry(&store, "f", 1, 3 * BLOCK);
    assert!(held.is_whole());
    assert_eq!(served(&held), bytes);
    drop(held);
    store.close();
    drop(store);
    let store = open(&options(folder.path()));
    assert!(entry(&store, "f", 1, 3 * BLOCK).is_whole());
}

#[test]
fn what_the_disk_refused_to_write_is_a_miss_in_every_process_and_later_ones_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = stored(folder.path(), 2, false, false);
    let store = open(&options(folder.path()));
    let held = entry(&store, "f", 1, 2 * BLOCK);
    assert!(held.is_whole());
    store.change_state(|state, _| state.lose()).unwrap();
    assert_eq!(held.ready(0..1), Ready::Missing);
    assert!(!held.is_whole());
    fill(&held, 0, &bytes);
    assert_eq!(held.ready(0..1), Ready::All);
    let other = open(&options(folder.path()));
    let seen = entry(&other, "f", 1, 2 * BLOCK);
    assert_eq!(seen.ready(0..BLOCK), Ready::All);
    assert_eq!(seen.ready(0..2 * BLOCK), Ready::Missing);
}

#[test]
fn with_verify_always_every_serving_is_held_against_the_checksum() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = stored(folder.path(), 2, true, false);
    let mut options = options(folder.path());
    options.verify = Verify::Always;
    let store = open(&options);
    let entry = entry(&store, "f", 1, 2 * BLOCK);
    assert_eq!(entry.ready(0..2 * BLOCK), Ready::Suspect);
    assert!(!entry.is_whole() && !entry.check(0..1));
    let block = entry.verified(1, soon()).unwrap();
    assert_eq!(
        (block.offset(), block.bytes()),
        (BLOCK, &bytes[BLOCK as usize..])
    );
    flip(&files(folder.path(), ".data")[0], BLOCK);
    assert!(entry.verified(1, soon()).is_none());
    assert_eq!(counted(&store, "corfs_cache_corrupt_total"), 1.0);
    assert_eq!(entry.ready(BLOCK..2 * BLOCK), Ready::Missing);
    fill(&entry, 1, &bytes);
    assert_eq!(
        entry.verified(1, soon()).unwrap().bytes(),
        &bytes[BLOCK as usize..]
    );
    assert!(entry.verified(2, soon()).is_none());
}

#[test]
fn blocks_that_cannot_be_read_from_disk_are_a_miss() {
    let folder = tempfile::tempdir().unwrap();
    stored(folder.path(), 2, true, false);
    let store = open(&options(folder.path()));
    let entry = entry(&store, "f", 1, 2 * BLOCK);
    assert!(entry.is_whole());
    entry.lose(BLOCK..BLOCK + 1);
    assert_eq!(entry.ready(0..BLOCK), Ready::All);
    assert_eq!(entry.ready(BLOCK..BLOCK + 1), Ready::Missing);
    assert!(!entry.is_whole());
}

#[test]
fn a_second_user_of_the_store_sees_what_the_first_one_stores() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (open(&options(folder.path())), open(&options(folder.path())));
    let bytes = content("f", 1, 2 * BLOCK);
    let (a, b) = (
        entry(&one, "f", 1, 2 * BLOCK),
        entry(&two, "f", 1, 2 * BLOCK),
    );
    fill(&a, 0, &bytes);
    assert_eq!(b.ready(0..BLOCK), Ready::All);
    // And does not ask the source for it.
    let read = |_: &mut [u8]| -> Result<usize> { panic!("it is stored already") };
    let block = b.fill(0, soon(), read, || Ok(true)).unwrap();
    assert_eq!(block.bytes(), &bytes[..BLOCK as usize]);
    drop((a, b));
    one.close();
    let text = || std::fs::read_to_string(&files(folder.path(), "/state")[0]).unwrap();
    assert!(text().contains("clean 0"), "the other one is there yet");
    two.close();
    assert!(text().contains("clean 1"));
}

#[test]
fn a_lost_state_makes_every_block_suspect() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = stored(folder.path(), 2, true, false);
    std::fs::write(&files(folder.path(), "/state")[0], "epoch 3\ncle").unwrap();
    let store = open(&options(folder.path()));
    let entry = entry(&store, "f", 1, 2 * BLOCK);
    assert_eq!(entry.ready(0..BLOCK), Ready::Suspect);
    assert!(entry.check(0..2 * BLOCK));
    assert_eq!(served(&entry), bytes);
}

#[test]
fn a_command_verifies_and_drops_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    stored(folder.path(), 4, true, false);
    flip(&files(folder.path(), ".data")[0], 2 * BLOCK);
    let cache = CacheDir::open(folder.path()).unwrap();
    let info = &cache.stores().unwrap()[0];
    assert_eq!((&*info.key, &*info.about), ("id:test", "type test\n"));
    let view = cache.store(&info.name).unwrap();
    let verified = view.verify(b"f").unwrap().unwrap();
    assert_eq!(
        (verified.right, verified.wrong, verified.missing),
        (3, 1, 0)
    );
    let verified = view.verify(b"f").unwrap().unwrap();
    assert_eq!(
        (verified.right, verified.wrong, verified.missing),
        (3, 0, 1)
    );
    assert_eq!(view.verify(b"g").unwrap(), None);
    let info = view.entry(b"f").unwrap().unwrap();
    assert_eq!((info.blocks, info.stored, info.suspect), (4, 3, 0));
    assert_eq!((info.in_use, info.pinned), (false, false));
}

/// What a crash does to files.
#[derive(Clone, Debug)]
enum Damage {
    Flip(bool, prop::sample::Index, u8),
    Cut(bool, prop::sample::Index),
    Zero(bool, prop::sample::Index),
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = any::<prop::sample::Index>;
    prop_oneof![
        (any::<bool>(), at(), 0u8..8).prop_map(|(index, at, bit)| Damage::Flip(index, at, bit)),
        (any::<bool>(), at()).prop_map(|(index, at)| Damage::Cut(index, at)),
        (any::<bool>(), at()).prop_map(|(index, at)| Damage::Zero(index, at)),
    ]
}

impl Damage {
    fn strike(&self, dir: &Path) {
        let index = match self {
            Self::Flip(index, ..) | Self::Cut(index, _) | Self::Zero(index, _) => *index,
        };
        let path = &files(dir, if index { ".index" } else { ".data" })[0];
        let mut bytes = std::fs::read(path).unwrap();
        if bytes.is_empty() {
            return;
        }
        match self {
            Self::Flip(_, at, bit) => {
                let at = at.index(bytes.len());
                bytes[at] ^= 1 << bit;
            }
            Self::Cut(_, at) => bytes.truncate(at.index(bytes.len())),
            Self::Zero(_, at) => {
                let at = at.index(bytes.len());
                bytes[at..].fill(0);
            }
        }
        std::fs::write(path, bytes).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases((200.0 * soak()) as u32))]
    #[test]
    fn no_damage_of_a_crash_is_ever_served(
        damages in prop::collection::vec(damage(), 1..4), always: bool,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let bytes = stored(folder.path(), 3, false, true);
        for damage in damages {
            damage.strike(folder.path());
        }
        let mut options = options(folder.path());
        if always {
            options.verify = Verify::Always;
        }
        let store = open(&options);
        let entry = entry(&store, "f", 1, 3 * BLOCK);
        for block in 0..3 {
            let range = block * BLOCK..(block + 1) * BLOCK;
            let right = &bytes[range.start as usize..range.end as usize];
            if always {
                if let Some(block) = entry.verified(block, soon()) {
                    prop_assert_eq!(block.bytes(), right);
                }
            } else if entry.ready(range.clone()) == Ready::All || entry.check(range.clone()) {
                prop_assert_eq!(&served(&entry)[range.start as usize..range.end as usize], right);
            }
        }
        fill_all(&entry, &bytes);
        prop_assert_eq!(served(&entry), bytes);
    }
}
