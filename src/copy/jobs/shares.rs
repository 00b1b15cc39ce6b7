//! What each caller may have of something that is bounded, and all of them together.

use std::collections::HashMap;
use std::collections::VecDeque;

/// So much of a thing, by user id.
#[derive(Debug)]
pub(in crate::copy) struct Shares {
    /// The most that one has.
    pub(in crate::copy) each: usize,
    /// The most that all have, but for what follows.
    pub(in crate::copy) all: usize,
    /// So much everybody may have, whatever the others have.
    pub(in crate::copy) always: usize,
    taken: usize,
    by: HashMap<u32, usize>,
}

impl Shares {
    pub(in crate::copy) fn new(each: usize, all: usize, always: usize) -> Self {
        Self {
            each,
            all,
            always,
            taken: 0,
            by: HashMap::new(),
        }
    }

    pub(in crate::copy) fn of(&self, who: u32) -> usize {
        self.by.get(&who).copied().unwrap_or(0)
    }

    pub(in crate::copy) fn taken(&self) -> usize {
        self.taken
    }

    /// Whether `who` may have `more`.
    pub(in crate::copy) fn allows(&self, who: u32, more: usize) -> bool {
        let own = self.of(who).saturating_add(more);
        let all = self.taken.saturating_add(more);
        own <= self.each && (all <= self.all || own <= self.always)
    }

    /// Counts what has been taken, allowed or not.
    pub(in crate::copy) fn take(&mut self, who: u32, more: usize) {
        self.taken += more;
        *self.by.entry(who).or_default() += more;
    }

    pub(in crate::copy) fn give_back(&mut self, who: u32, less: usize) {
        self.taken = self.taken.saturating_sub(less);
        if let Some(own) = self.by.get_mut(&who) {
            *own = own.saturating_sub(less);
            // Users come and go; nothing is kept of those who have nothing.
            if *own == 0 {
                self.by.remove(&who);
            }
        }
    }
}

/// Queues, one for each caller, that are served in turn.
#[derive(Debug)]
pub(in crate::copy) struct Turns<T> {
    /// Whose turn is next, first; none of the queues is empty.
    queues: VecDeque<(u32, VecDeque<T>)>,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self {
            queues: VecDeque::new(),
        }
    }
}

impl<T> Turns<T> {
    pub(in crate::copy) fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }

    pub(in crate::copy) fn push(&mut self, who: u32, item: T) {
        self.queue(who).push_back(item);
    }

    /// Before all others of this caller.
    pub(in crate::copy) fn push_front(&mut self, who: u32, item: T) {
        self.queue(who).push_front(item);
    }

    fn queue(&mut self, who: u32) -> &mut VecDeque<T> {
        let at = self.queues.iter().position(|(other, _)| *other == who);
        let at = at.unwrap_or_else(|| {
            self.queues.push_back((who, VecDeque::new()));
            self.queues.len() - 1
        });
        &mut self.queues[at].1
    }

    /// The next item of the one who has waited longest since his last turn, of those who may have
    /// theirs.
    pub(in crate::copy) fn pop(&mut self, may: impl Fn(u32, &T) -> bool) -> Option<(u32, T)> {
        let first = |queue: &VecDeque<T>, who| queue.front().is_some_and(|item| may(who, item));
        let at = self
            .queues
            .iter()
            .position(|(who, queue)| first(queue, *who))?;
        let (who, mut queue) = self.queues.remove(at)?;
        let item = queue.pop_front();
        if !queue.is_empty() {
            self.queues.push_back((who, queue));
        }
        item.map(|item| (who, item))
    }

    pub(in crate::copy) fn remove(&mut self, who: u32, is: impl Fn(&T) -> bool) {
        self.queue(who).retain(|item| !is(item));
        self.queues.retain(|(_, queue)| !queue.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_cannot_take_what_is_for_another() {
        let mut shares = Shares::new(10, 15, 2);
        assert!(shares.allows(1, 10) && !shares.allows(1, 11));
        shares.take(1, 10);
        assert!(!shares.allows(1, 1) && shares.allows(2, 5) && !shares.allows(2, 6));
        shares.take(2, 5);
        assert!(!shares.allows(2, 1), "all is taken");
        assert!(
            shares.allows(3, 2) && !shares.allows(3, 3),
            "but for one who has nothing"
        );
        shares.give_back(1, 10);
        assert!(shares.allows(3, 10) && shares.of(1) == 0 && shares.taken() == 5);
        assert_eq!(shares.by.len(), 1);
    }

    #[test]
    fn callers_take_turns() {
        let mut turns = Turns::default();
        for item in 0..4 {
            turns.push(1, item);
        }
        turns.push(2, 10);
        turns.push(2, 11);
        turns.push(3, 20);
        let mut order = Vec::new();
        while let Some((_, item)) = turns.pop(|_, _| true) {
            order.push(item);
        }
        assert_eq!(order, [0, 10, 20, 1, 11, 2, 3]);
        assert!(turns.is_empty());
    }

    #[test]
    fn who_may_not_is_passed_over_and_what_is_removed_is_gone() {
        let mut turns = Turns::default();
        turns.push(1, 'a');
        turns.push(2, 'b');
        turns.push_front(2, 'c');
        assert_eq!(turns.pop(|who, _| who != 1), Some((2, 'c')));
        turns.remove(2, |item| *item == 'b');
        assert_eq!(turns.pop(|who, _| who != 1), None);
        assert_eq!(turns.pop(|_, item| *item != 'a'), None);
        assert_eq!(turns.pop(|_, _| true), Some((1, 'a')));
        assert!(turns.is_empty());
    }
}
