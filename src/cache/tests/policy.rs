//! Which entries should have gone: the policy against plain LRU, on traces whose answer is known.
//! `cargo test --lib cache::tests::policy -- --nocapture` prints the hit rates.

use std::collections::{BTreeMap, HashMap};

use super::super::layout::Use;

/// Numbers that look random and are the same in every run (xorshift64*).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// One of `n`, the first ones most often: by Zipf's law with exponent 1.
    fn zipf(&mut self, n: u64) -> u64 {
        let unit = (self.next() >> 11) as f64 / (1u64 << 53) as f64;
        ((n as f64 + 1.0).powf(unit) - 1.0) as u64
    }
}

#[derive(Clone, Copy, Debug)]
enum Policy {
    /// Exactly the entry that was not used for longest goes.
    Lru,
    /// As `evict` does it: 8 drawn, 32 remembered, the worst by score.
    Ours,
}

/// What part of a trace, one access every 20 s, is answered by a cache of `room` entries.
fn hits(policy: Policy, room: usize, trace: impl Iterator<Item = u64>) -> f64 {
    let mut numbers = Numbers(99);
    let mut there: HashMap<u64, Use> = HashMap::new();
    let mut list: Vec<u64> = Vec::new();
    let mut pool: Vec<u64> = Vec::new();
    let mut order: BTreeMap<u64, u64> = BTreeMap::new();
    let (mut hits, mut all) = (0u32, 0u32);
    for (step, file) in trace.enumerate() {
        let now = 1_000_000 + 20 * step as u64;
        all += 1;
        let used = there.get(&file).copied();
        hits += u32::from(used.is_some());
        if used.is_none() {
            if there.len() == room {
                let gone = match policy {
                    Policy::Lru => order.first_key_value().map(|(_, file)| *file),
                    Policy::Ours => {
                        for _ in 0..8 {
                            let drawn = list[(numbers.next() % room as u64) as usize];
                            if !pool.contains(&drawn) {
                                pool.push(drawn);
                            }
                        }
                        pool.retain(|file| there.contains_key(file));
                        pool.sort_by_key(|file| there[file].score(now));
                        let too_many = pool.len().saturating_sub(32);
                        pool.drain(..too_many);
                        pool.pop()
                    }
                };
                let gone = gone.expect("there is one");
                let used = there.remove(&gone).expect("it is there");
                order.remove(&used.last);
                let at = list.iter().position(|file| *file == gone);
                list.swap_remove(at.expect("it is listed"));
            }
            list.push(file);
        }
        if let Some(used) = used {
            order.remove(&used.last);
        }
        order.insert(now, file);
        there.insert(file, used.unwrap_or_default().again(now));
    }
    f64::from(hits) / f64::from(all)
}

const ROOM: usize = 300;
const STEPS: usize = 30_000;

/// Zipf over ten times the room.
fn plain() -> impl Iterator<Item = u64> {
    let mut numbers = Numbers(1);
    (0..STEPS).map(move |_| numbers.zipf(10 * ROOM as u64))
}

/// The same, and of every 2,000 accesses 1,000 are a scan of files that nobody reads again.
fn with_scans() -> impl Iterator<Item = u64> {
    let mut numbers = Numbers(1);
    (0..STEPS).map(move |step| match step % 2000 {
        0..1000 => numbers.zipf(10 * ROOM as u64),
        _ => 1_000_000 + step as u64,
    })
}

/// What is much used changes altogether, ten times.
fn moving() -> impl Iterator<Item = u64> {
    let mut numbers = Numbers(1);
    (0..STEPS).map(move |step| {
        let era = (step / (STEPS / 10)) as u64;
        era * 1_000_000 + numbers.zipf(10 * ROOM as u64)
    })
}

#[test]
fn scans_cost_less_than_with_plain_lru_and_nothing_else_costs_much_more() {
    let rates = |name: &str, trace: &dyn Fn() -> Box<dyn Iterator<Item = u64>>| {
        let [lru, ours] = [Policy::Lru, Policy::Ours].map(|policy| hits(policy, ROOM, trace()));
        println!("{name}: LRU {lru:.3}, ours {ours:.3}");
        (lru, ours)
    };
    let (lru, ours) = rates("zipf", &|| Box::new(plain()));
    assert!(ours > lru - 0.02);
    let (lru, ours) = rates("zipf with scans", &|| Box::new(with_scans()));
    assert!(ours > lru + 0.02);
    let (lru, ours) = rates("zipf that moves", &|| Box::new(moving()));
    assert!(ours > lru - 0.05);
}

#[test]
fn uses_close_together_are_one_and_old_ones_are_forgotten() {
    let once = Use::default().again(1000);
    assert_eq!((once.uses, once.last), (1, 1000));
    assert_eq!(once.again(1005).uses, 1);
    let mut used = once;
    for n in 1..10 {
        used = used.again(1000 + n * 100);
    }
    assert_eq!(used.uses, 4);
    assert!(used.score(1900 + 5000) < once.score(1900 + 5000));
    let week = 7 * 86_400;
    assert_eq!(used.again(1900 + week).uses, 3);
    assert_eq!(used.again(1900 + 100 * week).uses, 1);
    // A clock that was set back makes nothing worse than its neighbours.
    assert_eq!(used.score(0), used.score(1900));
    let _ = Use {
        last: 0,
        uses: u32::MAX,
    }
    .again(u64::MAX)
    .score(u64::MAX);
}
