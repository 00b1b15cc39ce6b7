//! Owners as the mount shows them, and back: `uid=`, `gid=` and `map=`.

use std::fmt;

/// No id: the kernel shows it as the overflow id (65534), and nobody is or becomes its owner
/// (`make_kuid` of -1, linux/uidgid.h).
pub(super) const NOBODY: u32 = u32::MAX;

/// The name that an ACL gives, with no rights, to one who has no id on the mount: the kernel
/// refuses ACLs that name [`NOBODY`]. Under a map it is nobody's in the source.
pub(super) const STRANGER: u32 = u32::MAX - 1;

/// The largest id that may be mapped or shown.
pub const LAST: u32 = u32::MAX - 2;

/// Ids that follow one another, in the source and on the mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// The first of them in the source.
    pub source: u32,
    /// The first of them on the mount.
    pub mount: u32,
    /// How many; at least 1, and none of either side is above [`LAST`].
    pub count: u32,
}

impl fmt::Display for IdRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.source, self.mount, self.count)
    }
}

/// How the ids of users, or those of groups, are shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ids {
    all: Option<u32>,
    ranges: Vec<IdRange>,
}

impl Ids {
    /// Ids of which those in `ranges` are mapped; if `all` is given, every id is shown as that
    /// one, and the ranges say only who a caller is in the source.
    ///
    /// # Errors
    /// In words: two ranges overlap on one side, so that one id would be two or two would be one;
    /// one is empty or reaches above [`LAST`].
    pub fn new(all: Option<u32>, ranges: Vec<IdRange>) -> Result<Self, String> {
        let beyond = |first: u32, count: u32| u64::from(first) + u64::from(count) - 1;
        for (at, range) in ranges.iter().enumerate() {
            if range.count == 0 {
                return Err(format!("map {range}: must map at least one id"));
            }
            if beyond(range.source.max(range.mount), range.count) > u64::from(LAST) {
                return Err(format!("map {range}: ids end at {LAST}"));
            }
            for other in &ranges[..at] {
                if overlap((range.source, range.count), (other.source, other.count)) {
                    return Err(format!(
                        "maps {other} and {range} overlap: an id of the source is shown as one only"
                    ));
                }
                if overlap((range.mount, range.count), (other.mount, other.count)) {
                    return Err(format!(
                        "maps {other} and {range} collide: two ids of the source would look like one"
                    ));
                }
            }
        }
        Ok(Self { all, ranges })
    }

    /// The one id that everything is shown with.
    pub fn all(&self) -> Option<u32> {
        self.all
    }

    /// What is mapped.
    pub fn ranges(&self) -> &[IdRange] {
        &self.ranges
    }

    /// Whether every id stays what it is.
    pub fn is_plain(&self) -> bool {
        self.all.is_none() && self.ranges.is_empty()
    }

    /// The id on the mount of an id of the source. `None` for one whose number stands for another
    /// there.
    pub fn shown(&self, source: u32) -> Option<u32> {
        self.all.or_else(|| self.mapped(source))
    }

    /// As [`Ids::shown`], without regard to `all`: an ACL names several.
    pub fn mapped(&self, source: u32) -> Option<u32> {
        if self.ranges.is_empty() {
            return Some(source);
        }
        let sides = |range: &IdRange| (range.source, range.mount, range.count);
        translate(source, self.ranges.iter().map(sides))
    }

    /// The id in the source of an id on the mount, hence of a caller. `None` for one that no id of
    /// the source is shown as.
    pub fn source(&self, mount: u32) -> Option<u32> {
        if self.ranges.is_empty() {
            return Some(mount);
        }
        let sides = |range: &IdRange| (range.mount, range.source, range.count);
        translate(mount, self.ranges.iter().map(sides))
    }
}

fn overlap((a, many): (u32, u32), (b, more): (u32, u32)) -> bool {
    u64::from(a) < u64::from(b) + u64::from(more) && u64::from(b) < u64::from(a) + u64::from(many)
}

/// Of ranges (from, to, count): where `id` goes. What is in no range stays itself, unless that
/// number is where another one goes.
fn translate(id: u32, ranges: impl Iterator<Item = (u32, u32, u32)> + Clone) -> Option<u32> {
    let within = |first: u32, count: u32| id.checked_sub(first).filter(|at| *at < count);
    let found = ranges
        .clone()
        .find_map(|(from, to, count)| within(from, count).map(|at| to + at));
    if found.is_some() {
        return found;
    }
    let taken = ranges
        .into_iter()
        .any(|(_, to, count)| within(to, count).is_some());
    (!taken && id <= LAST).then_some(id)
}

/// How owners are shown: users and groups apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdMap {
    /// Users.
    pub users: Ids,
    /// Groups.
    pub groups: Ids,
}

impl IdMap {
    /// Whether every id stays what it is.
    pub fn is_plain(&self) -> bool {
        self.users.is_plain() && self.groups.is_plain()
    }

    /// Whether owners or groups are shown that the source's own rights know nothing of: then the
    /// kernel's judgement at the mount, by what is shown, is the one that counts.
    pub fn forces(&self) -> bool {
        self.users.all.is_some() || self.groups.all.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ids(ranges: &[(u32, u32, u32)]) -> Result<Ids, String> {
        let range = |&(source, mount, count)| IdRange {
            source,
            mount,
            count,
        };
        Ids::new(None, ranges.iter().map(range).collect())
    }

    #[test]
    fn a_map_goes_both_ways_and_hides_what_it_covers() {
        let map = ids(&[(1000, 2000, 3)]).unwrap();
        assert_eq!(map.shown(1002), Some(2002));
        assert_eq!(map.source(2002), Some(1002));
        assert_eq!(map.shown(5), Some(5));
        assert_eq!(map.source(5), Some(5));
        assert_eq!(map.shown(2000), None, "another one is shown as this");
        assert_eq!(map.source(1000), None, "nobody is shown as this");
        for none in [NOBODY, STRANGER] {
            assert_eq!((map.shown(none), map.source(none)), (None, None));
        }
    }

    #[test]
    fn two_may_change_places() {
        let map = ids(&[(1, 2, 1), (2, 1, 1)]).unwrap();
        assert_eq!((map.shown(1), map.shown(2)), (Some(2), Some(1)));
        assert_eq!((map.source(1), map.source(2)), (Some(2), Some(1)));
        let shift = ids(&[(0, 1, 10)]).unwrap();
        assert_eq!((shift.shown(10), shift.shown(9)), (None, Some(10)));
        assert_eq!((shift.source(0), shift.source(10)), (None, Some(9)));
    }

    #[test]
    fn what_would_make_two_of_one_or_one_of_two_is_refused() {
        let words = |ranges: &[(u32, u32, u32)]| ids(ranges).unwrap_err();
        assert!(words(&[(1, 10, 5), (5, 20, 1)]).contains("1:10:5 and 5:20:1 overlap"));
        assert!(words(&[(1, 10, 5), (6, 14, 1)]).contains("1:10:5 and 6:14:1 collide"));
        assert!(words(&[(1, 10, 0)]).contains("at least one"));
        assert!(words(&[(1, LAST, 2)]).contains("ids end at 4294967293"));
        ids(&[(1, LAST, 1), (0, 0, 1)]).unwrap();
    }

    #[test]
    fn one_for_all_leaves_callers_what_they_are() {
        let range = IdRange {
            source: 1000,
            mount: 7,
            count: 1,
        };
        let map = Ids::new(Some(7), vec![range]).unwrap();
        assert_eq!((map.shown(0), map.shown(1000)), (Some(7), Some(7)));
        assert_eq!((map.source(7), map.source(5)), (Some(1000), Some(5)));
        assert_eq!(map.mapped(5), Some(5));
    }

    /// Small numbers, so that ranges meet.
    fn ranges() -> impl Strategy<Value = Vec<(u32, u32, u32)>> {
        prop::collection::vec((0..60_u32, 0..60_u32, 1..9_u32), 1..5)
    }

    proptest! {
        #[test]
        fn there_and_back_is_where_one_was(ranges in ranges()) {
            let Ok(map) = ids(&ranges) else { return Ok(()) };
            let mut seen = std::collections::HashSet::new();
            for id in (0..80).chain([LAST, STRANGER, NOBODY]) {
                if let Some(shown) = map.shown(id) {
                    prop_assert_eq!(map.source(shown), Some(id));
                    prop_assert!(seen.insert(shown), "{} is two", shown);
                }
                if let Some(source) = map.source(id) {
                    prop_assert_eq!(map.shown(source), Some(id));
                }
            }
        }

        #[test]
        fn only_what_is_one_to_one_is_taken(ranges in ranges()) {
            let all = |side: fn(&(u32, u32, u32)) -> u32| {
                let mut ids: Vec<u32> = ranges
                    .iter()
                    .flat_map(|range| side(range)..side(range) + range.2)
                    .collect();
                let many = ids.len();
                ids.sort_unstable();
                ids.dedup();
                ids.len() == many
            };
            prop_assert_eq!(ids(&ranges).is_ok(), all(|r| r.0) && all(|r| r.1));
        }
    }
}
