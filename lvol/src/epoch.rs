//! When an operation of any core has surely ended: the epochs of a pool.
//!
//! Who uses what a map says is *looking*. What is taken out of the maps (an extent, a slot) is used
//! again only when nobody can be looking at it any more; what others had, and a volume is alone with now, the
//! volume writes in place only then.
//!
//! Invariants:
//! - A core says for all to see which epoch its oldest look may have begun in, or that it has none. It
//!   says so before its first look reads a map; beyond that a look costs the core two plain counters.
//! - The epoch advances after maps have changed. A core takes note of the new one between operations,
//!   so that looks from then on see the change; what left the maps in an epoch is free when every
//!   core's oldest look is of a later one.
//! - A look whose future was dropped never ends: the device may still work for it. Whatever left the
//!   maps since then stays unused until the pool is opened again. Nobody waits for it; for all others whoever
//!   waits does.

use std::{
    cell::Cell,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering, fence},
    },
};

/// No look is under way.
const NOBODY: u64 = u64::MAX;

/// One core's word, on a cache line of its own.
#[derive(Debug)]
#[repr(align(64))]
struct Word(AtomicU64);

impl Default for Word {
    fn default() -> Self {
        Self(AtomicU64::new(NOBODY))
    }
}

/// The epochs of a pool, which all cores share.
#[derive(Debug, Default)]
pub(crate) struct Epochs {
    now: AtomicU64,
    home: Word,
    others: OnceLock<Box<[Word]>>,
    /// The epoch of the oldest look that never ends.
    abandoned: Word,
}

impl Epochs {
    /// Makes room for other cores, once.
    pub fn share(&self, cores: usize) {
        self.others
            .get_or_init(|| (0..cores).map(|_| Word::default()).collect());
    }

    /// The epoch now.
    pub fn now(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    /// Maps have changed: looks from now on are of a new epoch. Called by the home core alone.
    pub fn advance(&self) {
        self.now.store(self.now() + 1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// Everything that left the maps in epochs before this one can be used again.
    pub fn free_before(&self) -> u64 {
        // In this order: a core says that a look is over after that it never ends.
        let oldest = self.oldest();
        oldest.min(self.abandoned.0.load(Ordering::Acquire))
    }

    /// All looks of epochs before this one are over.
    pub fn oldest(&self) -> u64 {
        let others = self.others.get().into_iter().flatten();
        let words = others.chain([&self.home]);
        let oldest = words.map(|word| word.0.load(Ordering::Acquire)).min();
        oldest.unwrap_or(NOBODY)
    }

    /// Some look never ends.
    pub fn is_abandoned(&self) -> bool {
        self.abandoned.0.load(Ordering::Relaxed) != NOBODY
    }

    /// The disk may work for good for what a map said from this epoch on.
    pub fn abandon(&self, since: u64) {
        self.abandoned.0.fetch_min(since, Ordering::AcqRel);
    }
}

/// One core's looks.
#[derive(Debug)]
pub(crate) struct Looks {
    epochs: Arc<Epochs>,
    /// The core's number; `None` is the home core.
    core: Option<usize>,
    online: Cell<bool>,
    /// The epoch that looks begin in, and which of the counts is theirs.
    current: Cell<u64>,
    side: Cell<usize>,
    /// Looks of the current epoch and of the one before it that had any.
    counts: [Cell<u32>; 2],
    before: Cell<u64>,
}

impl Looks {
    pub fn new(epochs: Arc<Epochs>, core: Option<usize>) -> Self {
        Self {
            epochs,
            core,
            online: Cell::new(false),
            current: Cell::new(0),
            side: Cell::new(0),
            counts: Default::default(),
            before: Cell::new(0),
        }
    }

    fn say(&self, epoch: u64) {
        let word = match self.core {
            None => &self.epochs.home,
            Some(core) => &self.epochs.others.get().expect("it was shared")[core],
        };
        word.0.store(epoch, Ordering::Release);
    }

    /// An operation begins to look at maps.
    pub fn begin(&self) -> Look<'_> {
        if !self.online.get() {
            self.come_online();
        }
        let side = self.side.get();
        self.counts[side].set(self.counts[side].get() + 1);
        Look {
            looks: self,
            side,
            writes: None,
            ended: false,
        }
    }

    /// One look of a side is over. The epoch that it began in.
    fn over(&self, side: usize) -> u64 {
        self.counts[side].set(self.counts[side].get() - 1);
        match side == self.side.get() {
            true => self.current.get(),
            false => self.before.get(),
        }
    }

    /// 1. The core says that it may be looking, from the epoch that it knows.
    /// 2. The fence: either whoever advanced the epoch sees that word, or this core sees the maps as
    ///    they are after that change.
    #[cold]
    fn come_online(&self) {
        self.current.set(self.epochs.now());
        self.say(self.current.get());
        fence(Ordering::SeqCst);
        self.online.set(true);
    }

    /// Takes note of the epoch, between operations.
    pub fn turn(&self) {
        if !self.online.get() {
            return;
        }
        let other = 1 - self.side.get();
        if self.counts[other].get() > 0 {
            return;
        }
        let now = self.epochs.now.load(Ordering::Acquire);
        let current = self.current.get();
        if now != current {
            self.before.set(current);
            self.side.set(other);
            self.current.set(now);
        }
        let begun = self.counts[1 - self.side.get()].get() > 0;
        self.say(match begun {
            true => self.before.get(),
            false => self.current.get(),
        });
    }

    /// The turn ends: without looks the core need not be waited for.
    pub fn rest(&self) {
        if self.online.get() && self.counts.iter().all(|count| count.get() == 0) {
            self.online.set(false);
            self.say(NOBODY);
        }
    }

    pub fn are_none(&self) -> bool {
        self.counts.iter().all(|count| count.get() == 0)
    }
}

impl Drop for Looks {
    fn drop(&mut self) {
        if self.are_none() && self.online.get() {
            self.say(NOBODY);
        }
    }
}

/// An operation under way that uses what a map said.
#[derive(Debug)]
pub(crate) struct Look<'a> {
    looks: &'a Looks,
    side: usize,
    /// Set where it never ends.
    writes: Option<&'a AtomicBool>,
    ended: bool,
}

impl<'a> Look<'a> {
    /// The disk writes for it what readers find: `forsaken` is set where nobody will know when that ends.
    pub fn of_write(mut self, forsaken: &'a AtomicBool) -> Self {
        self.writes = Some(forsaken);
        self
    }

    /// The disk works no more for it.
    pub fn end(mut self) {
        self.ended = true;
        self.looks.over(self.side);
    }
}

impl Drop for Look<'_> {
    fn drop(&mut self) {
        if !self.ended {
            if let Some(forsaken) = self.writes {
                forsaken.store(true, Ordering::SeqCst);
            }
            // Before anybody can see that it is over.
            self.looks.epochs.abandon(self.looks.over(self.side));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_holds_what_left_the_maps_since_it_began() {
        let epochs = Arc::new(Epochs::default());
        epochs.share(1);
        let (home, other) = (
            Looks::new(epochs.clone(), None),
            Looks::new(epochs.clone(), Some(0)),
        );
        assert_eq!(epochs.oldest(), NOBODY);
        let look = other.begin();
        let left = epochs.now();
        epochs.advance();
        other.turn();
        home.turn();
        assert!(epochs.oldest() <= left);
        // Looks that began later hold nothing up.
        let later = other.begin();
        look.end();
        other.turn();
        assert!(epochs.oldest() > left);
        epochs.advance();
        other.turn();
        assert!(epochs.oldest() <= left + 1);
        later.end();
        other.rest();
        assert_eq!(epochs.oldest(), NOBODY);
        assert!(!epochs.is_abandoned());
        let never = epochs.now();
        drop(home.begin());
        assert!(epochs.is_abandoned());
        // It holds up what left since, for good, and nobody who waits.
        let look = other.begin();
        epochs.advance();
        home.turn();
        other.turn();
        assert!(epochs.oldest() <= never);
        look.end();
        epochs.advance();
        for _ in 0..2 {
            home.turn();
            other.turn();
        }
        assert!(epochs.oldest() > never);
        assert_eq!(epochs.free_before(), never);
    }

    #[test]
    fn looks_of_many_epochs_end_in_any_order() {
        let epochs = Arc::new(Epochs::default());
        let home = Looks::new(epochs.clone(), None);
        let mut rng = corebay_core::rng::Rng::from_seed(7);
        // The slow model: each look with the epoch that it may have begun in at the earliest.
        let mut looks: Vec<(u64, Look<'_>)> = Vec::new();
        let mut noted = 0;
        for _ in 0..2000 {
            match rng.below(5) {
                0 | 1 => {
                    if !home.online.get() {
                        noted = epochs.now();
                    }
                    looks.push((noted, home.begin()));
                }
                2 if !looks.is_empty() => {
                    let at = usize::try_from(rng.below(looks.len() as u64)).unwrap();
                    looks.swap_remove(at).1.end();
                }
                3 => epochs.advance(),
                _ => {
                    home.turn();
                    home.rest();
                    noted = home.current.get();
                }
            }
            let oldest = looks.iter().map(|(epoch, _)| *epoch).min();
            assert!(oldest.is_none_or(|oldest| epochs.oldest() <= oldest));
        }
        looks.into_iter().for_each(|(_, look)| look.end());
        home.turn();
        home.turn();
        assert!(epochs.oldest() >= epochs.now());
    }
}
