use super::super::outcome::Sweep;
use super::super::outcome::testing::{run, series};
use super::*;

fn at(axis: &str, value: f64, who: &str, seconds: f64) -> Series {
    let all = [1.0, 1.01, 0.99, 1.0, 1.0].map(|share| seconds * share);
    let baseline = ["read-write", "pread"].contains(&who);
    let mut one = series(&format!("{axis} {value}"), who, baseline, &all);
    one.about.amount = value;
    one.about.sweep = Some(Sweep {
        name: axis.into(),
        line: who.into(),
        axis: axis.into(),
        value,
    });
    one
}

#[test]
fn the_size_from_which_mmap_wins_is_told() {
    let sizes = |times: [f64; 3]| {
        let values = [65536.0, 1048576.0, 16777216.0];
        let mut all = Vec::new();
        for (value, time) in values.into_iter().zip(times) {
            all.push(at("size", value, "read-write", 1.0));
            all.push(at("size", value, "map-write", time));
        }
        let mut run = run(all);
        run.experiment = "copy".into();
        answers(&run)[0].clone()
    };
    let said = sizes([2.0, 0.5, 0.4]);
    assert!(
        said.starts_with("map-write wins over read and write from 1 MiB on"),
        "{said}"
    );
    let said = sizes([0.5, 2.0, 0.4]);
    assert!(said.contains("from 16 MiB on (2.50 times"), "{said}");
    let said = sizes([0.5, 1.0, 1.0]);
    assert!(
        said.contains("does not win") && said.contains("2.00 at 64 KiB"),
        "{said}"
    );
}

#[test]
fn cold_caches_answer_nothing() {
    let mut cold = at("size", 65536.0, "map-write", 0.1);
    cold.about.work.insert_str(0, COLD);
    let mut run = run(vec![
        at("size", 65536.0, "read-write", 1.0),
        at("size", 65536.0, "map-write", 0.5),
        cold,
    ]);
    run.experiment = "copy".into();
    assert!(answers(&run)[0].contains("(2.00 times as fast there, 2.00 at 64 KiB)"));
}

#[test]
fn nobody_wins_in_too_few_rounds() {
    let mut all = vec![
        at("size", 65536.0, "read-write", 1.0),
        at("size", 65536.0, "map-write", 0.5),
    ];
    all[1].samples.truncate(2);
    let mut run = run(all);
    run.experiment = "copy".into();
    let said = answers(&run)[0].clone();
    assert!(said.contains("in 2 rounds"), "{said}");
}

fn noisy(mut series: Series, factors: [f64; 5]) -> Series {
    for (sample, factor) in series.samples.iter_mut().zip(factors) {
        sample.seconds *= factor;
    }
    series
}

#[test]
fn nobody_wins_where_it_is_too_noisy() {
    let mut run = run(vec![
        at("size", 65536.0, "read-write", 1.0),
        noisy(
            at("size", 65536.0, "map-write", 0.8),
            [1.0, 1.0, 1.0, 3.0, 3.0],
        ),
    ]);
    run.experiment = "copy".into();
    let said = answers(&run)[0].clone();
    assert!(
        said.starts_with("map-write at the largest size measured, 64 KiB, is not to be told")
            && said.contains("from read and write (1.24 ["),
        "{said}"
    );
}

#[test]
fn a_chunk_is_the_wrong_one_only_where_it_is_clearly_slower() {
    let said = |slow: f64, factors| {
        let fast = at("chunk", 65536.0, "map-map", 1.0);
        let mut slow = noisy(at("chunk", 1048576.0, "map-map", slow), factors);
        slow.about.amount = 65536.0;
        let mut run = run(vec![fast, slow]);
        run.experiment = "copy".into();
        chunks(&run)[0].clone()
    };
    assert_eq!(
        said(2.0, [1.0; 5]),
        "By chunk, map-map was fastest with 64 KiB (0.06 MiB/s) and slowest with 1 MiB \
         (0.03 MiB/s)."
    );
    assert!(said(1.05, [1.0; 5]).contains("64 KiB, its best, is within 15 % of 1 MiB"));
    let unclear = said(1.3, [0.5, 0.5, 1.0, 1.0, 1.0]);
    assert!(
        unclear.contains("is not to be told from 1 MiB"),
        "{unclear}"
    );
}

#[test]
fn all_ways_to_have_a_page_are_looked_at() {
    let of = |value: f64, who: &str, seconds: f64| {
        let mut one = at("window", value, who, seconds);
        one.about.amount = 1048576.0;
        one
    };
    let all = |touch: f64, whole: f64| {
        let mut run = run(vec![
            of(65536.0, "pread", 1.02),
            of(65536.0, "map, populate", 4.0),
            of(4194304.0, "map, populate", 2.0),
            of(4194304.0, "map, touch", touch),
            of(4194304.0, WHOLE, whole),
        ]);
        run.experiment = "fault".into();
        windows(&run)
    };
    assert_eq!(
        all(1.0, 5.0),
        [format!(
            "Every page once, each way in its best window: map, touch with 4 MiB has the best \
             median (1.00 MiB/s); pread with 64 KiB is within 15 % of that; map, populate with \
             4 MiB is 0.50 times as fast as that; {WHOLE} with 4 MiB is 0.20 times as fast as \
             that."
        )]
    );
    assert!(all(9.0, 0.1)[0].contains(&format!("{WHOLE} with 4 MiB has the best median")));
}

#[test]
fn small_reads_differ_only_by_the_verdict() {
    let mut run = run(vec![
        small_reads("pread", 1.0, 0),
        small_reads("one mapping, populated", 0.5, 0),
        small_reads("one mapping, touched", 1.05, 0),
        noisy(
            small_reads("a mapping each", 1.3, 0),
            [0.5, 0.5, 1.0, 1.0, 2.0],
        ),
    ]);
    run.series[0].about.baseline = true;
    let said = reuse(&run)[0].clone();
    for part in [
        "populated is 2.00 times as fast as pread",
        "touched is within 15 % of pread",
        "a mapping each is not to be told from pread (0.77 [",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

fn with_faults(mut series: Series, minor: u64) -> Series {
    for sample in &mut series.samples {
        sample.minor = minor;
    }
    series
}

fn of_faults(all: Vec<Series>) -> Vec<String> {
    let mut run = run(all);
    run.experiment = "fault".into();
    a_fault(&run)
}

fn small_reads(who: &str, seconds: f64, minor: u64) -> Series {
    let work = crate::bench::experiments::SMALL;
    with_faults(series(work, who, false, &[seconds; 5]), minor)
}

#[test]
fn the_price_of_a_fault_is_what_touching_adds_in_the_smallest_windows() {
    let said = of_faults(vec![
        with_faults(at("window", 4194304.0, "map, touch", 0.009), 2000),
        at("window", 4194304.0, "map, populate", 0.001),
        with_faults(at("window", 65536.0, "map, touch", 0.003), 1000),
        at("window", 65536.0, "map, populate", 0.001),
    ]);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("about 2.00 microseconds: with windows of 64 KiB"));
}

/// As the kernel counts.
#[test]
fn where_populating_takes_as_many_faults_a_mapping_each_gives_their_price() {
    let said = of_faults(vec![
        with_faults(at("window", 65536.0, "map, touch", 0.003), 1000),
        with_faults(at("window", 65536.0, "map, populate", 0.001), 1000),
        small_reads("one mapping, populated", 0.01, 1),
        small_reads("one mapping, touched", 0.01, 148),
        small_reads("a mapping each", 0.21, 20_001),
    ]);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(
        said[0].contains("mmap and munmap of its page costs about 10.0"),
        "{said:?}"
    );
}

#[test]
fn there_is_no_price_without_a_clear_difference() {
    let said = of_faults(vec![
        small_reads("one mapping, populated", 0.01, 1),
        small_reads("a mapping each", 0.0101, 20_001),
    ]);
    assert_eq!(said.len(), 1);
    assert!(said[0].contains("not to be told"), "{said:?}");
}

#[test]
fn who_was_faster_than_a_mode_of_corfs_is_named() {
    let ours = |who: &str, seconds: f64| {
        let mut one = series("w", who, false, &[seconds; 5]);
        one.about.ours = Some(true);
        one
    };
    let native = series("w", "native", true, &[0.5; 5]);
    let mut slower = series("w", "bindfs", false, &[2.0; 5]);
    // Who is one of ours is not told by words that somebody chose.
    slower.about.command = "corfs -f /somewhere /else".into();
    let noisy = series("w", "noisy", false, &[0.1, 0.1, 0.9, 5.0, 5.0]);
    let best = ours("passthrough", 0.5);
    let all = vec![
        native,
        ours("io=mmap", 1.0),
        ours("io=pread", 4.0),
        best,
        slower,
        noisy,
    ];
    assert_eq!(
        losses(&run(all)),
        [
            "w: native 2.00 times as fast as io=mmap",
            "w: native 8.00 times, bindfs 2.00 times as fast as io=pread"
        ]
    );
}

#[test]
fn nothing_measured_is_nothing_said() {
    for experiment in ["copy", "fault", "read", "meta"] {
        let mut run = run(Vec::new());
        run.experiment = experiment.into();
        assert_eq!(answers(&run), [""; 0]);
    }
}
