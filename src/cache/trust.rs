//! Which stored blocks are believed without being held against their checksums: pure rules.
//!
//! A record is written after its bytes, both through the page cache, which survives the process:
//! within one boot and one mount of the cache disk every record that is whole is right. After a
//! crash of the machine it may be ahead of its bytes, unless the last user stopped cleanly. Every
//! first user of a store begins an epoch, and a record carries the epoch in which it was written.

/// What a store knows about its epochs; kept in its file `state`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct State {
    /// The epoch that is now; from 1 on.
    pub(super) epoch: u32,
    /// Whether all that was written is on disk for certain, and nobody uses the store.
    pub(super) clean: bool,
    /// Boot and mount of the cache disk.
    pub(super) place: u64,
    /// All that was written in an epoch up to this one is on disk.
    pub(super) durable: u32,
    /// Later ones up to this are suspect.
    pub(super) suspect_to: u32,
    /// Later ones up to this are lost: the disk refused them, and what the page cache still shows
    /// may turn into something else when it is read again.
    pub(super) lost_to: u32,
}

/// What a record's epoch says about its block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    Trusted,
    Suspect,
    Lost,
}

impl State {
    /// The state with which a first user begins, after `before`; None when there was none that
    /// could be read. `fresh`: an epoch that no record has, for that case.
    pub(super) fn begin(before: Option<&Self>, place: u64, fresh: u32) -> Self {
        let Some(before) = before else {
            return Self {
                epoch: fresh.max(1),
                clean: false,
                place,
                durable: 0,
                suspect_to: fresh.max(1) - 1,
                lost_to: 0,
            };
        };
        let safe = before.clean || before.place == place;
        let doubts = before.suspect_to.max(before.lost_to) > before.durable;
        Self {
            epoch: before.epoch.saturating_add(1),
            clean: false,
            place,
            // After a loss of power not even what was on disk before is beyond doubt: a file system
            // without an order of its own may show an old index beside the data of a later entry.
            durable: match (before.clean && !doubts, safe) {
                (true, _) => before.epoch,
                (false, true) => before.durable,
                (false, false) => 0,
            },
            suspect_to: if safe {
                before.suspect_to
            } else {
                before.epoch
            },
            lost_to: before.lost_to,
        }
    }

    /// What a record of that epoch is worth.
    pub(super) fn trust(&self, epoch: u32) -> Trust {
        if epoch <= self.durable {
            Trust::Trusted
        } else if epoch <= self.lost_to {
            Trust::Lost
        } else if epoch <= self.suspect_to || epoch > self.epoch {
            Trust::Suspect
        } else {
            Trust::Trusted
        }
    }

    /// Whether any record can be suspect.
    pub(super) fn has_suspects(&self) -> bool {
        self.suspect_to > self.durable.max(self.lost_to)
    }

    /// All suspect records up to `suspect_to` were looked at, and carry the present epoch now.
    pub(super) fn checked(&mut self, suspect_to: u32) {
        if self.suspect_to == suspect_to {
            self.suspect_to = 0;
        }
    }

    /// The disk refused what was written: nothing of the epochs that are not durable is believed.
    pub(super) fn lose(&mut self) {
        self.lost_to = self.epoch;
        self.epoch = self.epoch.saturating_add(1);
    }

    /// The text of the file.
    pub(super) fn encode(&self) -> String {
        let text = format!(
            "epoch {}\nclean {}\nplace {}\ndurable {}\nsuspect {}\nlost {}\n",
            self.epoch,
            u8::from(self.clean),
            self.place,
            self.durable,
            self.suspect_to,
            self.lost_to
        );
        let sum = xxhash_rust::xxh3::xxh3_64(text.as_bytes());
        format!("{text}sum {sum:016x}\n")
    }

    /// None for what is torn or foreign.
    pub(super) fn decode(text: &str) -> Option<Self> {
        let mut values = [0u64; 6];
        let mut lines = text.lines();
        let names = ["epoch", "clean", "place", "durable", "suspect", "lost"];
        for (value, name) in values.iter_mut().zip(names) {
            let (found, number) = lines.next()?.split_once(' ')?;
            if found != name {
                return None;
            }
            *value = number.parse().ok()?;
        }
        let small = |value: u64| u32::try_from(value).ok();
        let state = Self {
            epoch: small(values[0])?,
            clean: values[1] != 0,
            place: values[2],
            durable: small(values[3])?,
            suspect_to: small(values[4])?,
            lost_to: small(values[5])?,
        };
        (state.epoch > 0 && state.encode() == text).then_some(state)
    }
}

/// How old a version must be before a fill of it is believed, and what is known of its age.
#[derive(Clone, Copy, Debug)]
pub(super) struct Age {
    /// The younger of mtime and ctime, in nanoseconds since 1970.
    pub(super) changed: i128,
    /// Now by our clock, in the same unit, when the fill began.
    pub(super) now: i128,
    /// How long this very version had been known when the fill began, by a clock that nobody
    /// sets.
    pub(super) known: std::time::Duration,
    /// Whether the times are of our clock.
    pub(super) ours: bool,
}

/// Another machine's clock is believed to be right to a day.
const SKEW: i128 = 86_400_000_000_000;

impl Age {
    /// Whether a later change must show in the identity: two changes within the coarseness of a
    /// clock leave the same time, and a fill between them would have the first one's bytes.
    pub(super) fn is_settled(&self, racy: std::time::Duration) -> bool {
        let racy_ns = racy.as_nanos() as i128;
        let margin = racy_ns + if self.ours { 0 } else { SKEW };
        self.now.saturating_sub(self.changed) > margin || self.known >= racy
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use std::time::Duration;

    /// What may happen to a store between two of its users.
    #[derive(Clone, Copy, Debug)]
    enum End {
        Clean,
        Killed,
        PowerLost,
        SyncFailedThenKilled,
    }

    fn ends() -> impl Strategy<Value = Vec<End>> {
        let one = prop_oneof![
            Just(End::Clean),
            Just(End::Killed),
            Just(End::PowerLost),
            Just(End::SyncFailedThenKilled)
        ];
        prop::collection::vec(one, 0..20)
    }

    proptest! {
        /// A record is trusted exactly when nothing happened that may have lost its bytes: at the
        /// least never when something did.
        #[test]
        fn what_may_be_lost_is_never_trusted(ends in ends()) {
            let mut place = 1;
            let mut state = State::begin(None, place, 1);
            // Of each epoch: is it certainly on disk, may its bytes be lost?
            let mut epochs: Vec<(u32, bool, bool)> = Vec::new();
            for end in ends {
                epochs.push((state.epoch, false, false));
                match end {
                    End::Clean => {
                        state.clean = true;
                        epochs.iter_mut().for_each(|e| e.1 |= !e.2);
                    }
                    End::Killed => {}
                    End::PowerLost => {
                        place += 1;
                        epochs.iter_mut().for_each(|e| e.2 |= !e.1);
                    }
                    End::SyncFailedThenKilled => {
                        epochs.iter_mut().for_each(|e| e.2 |= !e.1);
                        state.lose();
                        epochs.push((state.epoch, false, false));
                    }
                }
                let read = State::decode(&state.encode());
                prop_assert_eq!(read.as_ref(), Some(&state));
                state = State::begin(read.as_ref(), place, 1);
                for &(epoch, _, lost) in &epochs {
                    prop_assert!(epoch < state.epoch);
                    if lost {
                        prop_assert_ne!(state.trust(epoch), Trust::Trusted, "{} {:?}", epoch, state);
                    }
                }
            }
            prop_assert_eq!(state.trust(state.epoch), Trust::Trusted);
        }

        #[test]
        fn kills_and_clean_stops_alone_make_no_doubt(kills in prop::collection::vec(any::<bool>(), 0..9)) {
            let mut state = State::begin(None, 1, 1);
            for killed in kills {
                state.clean = !killed;
                state = State::begin(Some(&state), 1, 1);
            }
            for epoch in 1..=state.epoch {
                prop_assert_eq!(state.trust(epoch), Trust::Trusted);
            }
        }

        #[test]
        fn no_text_makes_the_decoder_panic(text in "(epoch [0-9]{1,20}\n)?.{0,200}") {
            prop_assert_eq!(State::decode(&text), None);
        }
    }

    #[test]
    fn a_lost_state_makes_all_suspect() {
        let state = State::begin(None, 1, 1_700_000_000);
        assert_eq!(state.trust(5), Trust::Suspect);
        assert_eq!(state.trust(1_700_000_000), Trust::Trusted);
        assert!(state.has_suspects());
        assert!(!State::begin(None, 1, 1).has_suspects());
    }

    #[test]
    fn after_a_check_of_everything_old_records_are_gone_and_new_ones_trusted() {
        let mut state = State::begin(None, 1, 1);
        state = State::begin(Some(&state), 2, 1);
        assert_eq!(
            (state.trust(1), state.has_suspects()),
            (Trust::Suspect, true)
        );
        state.checked(state.suspect_to);
        assert!(!state.has_suspects());
        state = State::begin(Some(&state), 3, 1);
        assert_eq!(state.trust(2), Trust::Suspect);
    }

    #[test]
    fn a_torn_state_is_none() {
        let text = State::begin(None, 1, 9).encode();
        for cut in 0..text.len() {
            assert_eq!(State::decode(&text[..cut]), None, "{cut}");
        }
        assert_eq!(State::decode(&text.replace("epoch 9", "epoch 8")), None);
    }

    #[test]
    fn a_version_is_settled_by_our_clock_a_day_of_another_or_by_being_known() {
        let racy = Duration::from_secs(2);
        let second = 1_000_000_000;
        let age = |seconds: i128, known: u64, ours: bool| Age {
            changed: 0,
            now: seconds * second,
            known: Duration::from_secs(known),
            ours,
        };
        for (age, settled) in [
            (age(1, 0, true), false),
            (age(2, 0, true), false),
            (age(3, 0, true), true),
            (age(3, 0, false), false),
            (age(86_402, 0, false), false),
            (age(86_403, 0, false), true),
            (age(3, 2, false), true),
            (age(-500, 1, true), false),
            (age(-500, 2, true), true),
        ] {
            assert_eq!(age.is_settled(racy), settled, "{age:?}");
        }
    }
}
