//! Each work does what it says, and fails when it can't.

use std::fs;
use std::path::Path;

use super::*;

fn file(folder: &Path, size: usize) -> PathBuf {
    let path = folder.join("file");
    fs::write(&path, vec![7; size]).unwrap();
    path
}

fn ask(probe: &Probe) -> std::result::Result<Sample, String> {
    let answer = run(&serde_json::to_string(probe).unwrap())?;
    Ok(serde_json::from_str(&answer).unwrap())
}

#[test]
fn every_pattern_reads() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path(), 1 << 20);
    for pattern in [
        Pattern::Sequential,
        Pattern::Random,
        Pattern::Strided,
        Pattern::MappedSequential,
        Pattern::MappedRandom,
    ] {
        for readers in [1, 3] {
            let probe = Probe::Read {
                path: path.clone(),
                pattern,
                block: 4096,
                direct: false,
                readers,
                requests: 10,
            };
            let sample = ask(&probe).unwrap_or_else(|words| panic!("{pattern:?}: {words}"));
            assert!(sample.seconds > 0.0);
        }
    }
}

/// Several readers together read each byte once; every request lies within the file.
#[test]
fn readers_share_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path(), 10 * 4096 + 100);
    let reading = |pattern| reading::Reading::new(&path, pattern, 4096, false, 5).unwrap();
    let mut all: Vec<u64> = (0..3)
        .flat_map(|reader| reading(Pattern::Sequential).places(10 * 4096 + 100, reader, 3))
        .collect();
    all.sort_unstable();
    assert_eq!(all, (0..10).map(|n| n * 4096).collect::<Vec<u64>>());
    let anywhere = |reader| reading(Pattern::Random).places(10 * 4096, reader, 2);
    assert_eq!(anywhere(0).len(), 5);
    assert_eq!(anywhere(0), anywhere(0), "the same each time");
    assert_ne!(anywhere(0), anywhere(1), "each reader its own");
    assert!(anywhere(1).iter().all(|at| *at <= 9 * 4096));
    assert_eq!(
        reading(Pattern::Strided).places(10 * 4096, 0, 1),
        [0, 8 * 4096]
    );
}

#[test]
fn small_files_are_all_read() {
    let folder = tempfile::tempdir().unwrap();
    for number in 0..5 {
        fs::write(folder.path().join(format!("f{number}")), "text").unwrap();
    }
    let probe = Probe::Read {
        path: folder.path().into(),
        pattern: Pattern::SmallFiles,
        block: 4096,
        direct: false,
        readers: 2,
        requests: 0,
    };
    ask(&probe).unwrap();
}

#[test]
fn names_are_made_looked_at_and_removed() {
    let folder = tempfile::tempdir().unwrap();
    let deed = |deed, count| {
        ask(&Probe::Names {
            folder: folder.path().into(),
            deed,
            count,
        })
    };
    deed(Deed::Create, 5).unwrap();
    assert!(deed(Deed::Create, 5).is_err(), "they are there already");
    for kind in [
        Deed::Stat,
        Deed::Open,
        Deed::Readdir,
        Deed::Walk,
        Deed::Grep,
    ] {
        deed(kind, 5).unwrap_or_else(|words| panic!("{kind:?}: {words}"));
    }
    assert!(deed(Deed::Walk, 6).unwrap_err().contains("5 of 6"));
    deed(Deed::Rename, 5).unwrap();
    assert!(folder.path().join("g4").exists());
    deed(Deed::Create, 5).unwrap();
    deed(Deed::Unlink, 5).unwrap();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 5);
}

#[test]
fn mappings_are_touched() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path(), (1 << 20) + 10);
    for touching in [
        Touching::Populate,
        Touching::Touch,
        Touching::Pread,
        Touching::PreadWhole,
        Touching::Reuse,
        Touching::ReuseUntouched,
        Touching::MapEach,
        Touching::PreadEach,
    ] {
        let probe = Probe::Fault {
            path: path.clone(),
            touching,
            window: 256 << 10,
            requests: 20,
        };
        let sample = ask(&probe).unwrap_or_else(|words| panic!("{touching:?}: {words}"));
        if touching == Touching::MapEach {
            assert!(sample.minor >= 20, "a fault each: {sample:?}");
        }
    }
}

#[test]
fn words_that_are_no_copy_options_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let refused = ask(&Probe::Copy {
        words: vec!["--method=none".into()],
        sources: vec![file(folder.path(), 10)],
        to: folder.path().into(),
    });
    assert!(refused.unwrap_err().contains("none"));
}

#[test]
fn a_command_is_counted_and_its_failure_is_told() {
    let command = |words: &[&str]| {
        ask(&Probe::Command {
            words: words.iter().map(|&word| word.to_owned()).collect(),
        })
    };
    assert!(command(&["true"]).unwrap().minor > 0);
    assert!(
        command(&["false"])
            .unwrap_err()
            .contains("false: exit status: 1")
    );
    assert!(command(&[]).is_err());
    assert!(run("{").is_err());
}
