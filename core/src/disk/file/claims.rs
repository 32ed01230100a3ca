//! Which blocks of a medium are being read or written, on whatever core: what makes a block atomic
//! where the layers below do not.
//!
//! The kernel promises no atomicity between a read and a write of the same bytes, neither through
//! its page cache nor, for blocks larger than the device's sectors, past it. So an operation first
//! claims its blocks, and waits its turn where they are claimed.
//!
//! Invariants:
//! - A block's entry is held by one writer, or by any number of readers, or by nobody. Blocks that
//!   share an entry wait for each other without need, which is rare and harmless.
//! - An operation takes its entries in ascending order of their place in the table and keeps what it
//!   has while it waits for the next: nobody waits in a circle.
//! - A writer that waits keeps further readers out, so it gets its turn.
//! - Nothing here blocks: what cannot be had is tried again at the next turn.

use std::sync::atomic::{AtomicU32, Ordering};

const WRITER: u32 = 1 << 31;
const WRITER_WAITS: u32 = 1 << 30;

/// The entries of a large medium. Blocks that are this far apart share one.
const ENTRIES_MAX: u64 = 32768;

/// Claims on the blocks of one medium.
#[derive(Debug)]
pub(super) struct Claims {
    entries: Box<[AtomicU32]>,
}

/// One operation's claim on its blocks.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Claim {
    first: u64,
    count: u32,
    held: u32,
    write: bool,
}

impl Claim {
    /// A claim on `count` blocks from `first` on, for reading or for writing them.
    pub(super) fn on(first: u64, count: u32, write: bool) -> Self {
        Self {
            first,
            count,
            held: 0,
            write,
        }
    }
}

impl Claims {
    /// Claims for a medium of `blocks` blocks.
    pub(super) fn new(blocks: u64) -> Self {
        let entries = blocks.next_power_of_two().min(ENTRIES_MAX);
        Self {
            entries: (0..entries).map(|_| AtomicU32::new(0)).collect(),
        }
    }

    /// Takes what is still missing of a claim; true once all of it is held.
    pub(super) fn take(&self, claim: &mut Claim) -> bool {
        while claim.held < claim.count {
            let entry = self.entry(claim, claim.held);
            let taken = if claim.write {
                take_for_writing(entry)
            } else {
                take_for_reading(entry)
            };
            if !taken {
                return false;
            }
            claim.held += 1;
        }
        true
    }

    /// Gives back what is held of a claim, all of it or not.
    pub(super) fn release(&self, claim: &mut Claim) {
        for place in 0..claim.held {
            let entry = self.entry(claim, place);
            if claim.write {
                entry.fetch_and(!WRITER, Ordering::Release);
            } else {
                entry.fetch_sub(1, Ordering::Release);
            }
        }
        if claim.write && claim.held < claim.count {
            // It may have been this one that keeps readers out. Another writer says so again.
            self.entry(claim, claim.held)
                .fetch_and(!WRITER_WAITS, Ordering::Relaxed);
        }
        *claim = Claim::default();
    }

    /// The entry at a place of the claim's ascending order, in which blocks whose entries begin at
    /// the table's start again come first.
    fn entry(&self, claim: &Claim, place: u32) -> &AtomicU32 {
        let len = self.entries.len() as u64;
        let start = claim.first & (len - 1);
        let place = u64::from(place);
        let wrapped = (start + u64::from(claim.count)).saturating_sub(len);
        let index = if place < wrapped {
            place
        } else {
            start + place - wrapped
        };
        &self.entries[usize::try_from(index).expect("an index into the table")]
    }
}

fn take_for_reading(entry: &AtomicU32) -> bool {
    entry
        .fetch_update(Ordering::Acquire, Ordering::Relaxed, |now| {
            (now & (WRITER | WRITER_WAITS) == 0).then_some(now + 1)
        })
        .is_ok()
}

fn take_for_writing(entry: &AtomicU32) -> bool {
    let previous = entry.fetch_update(Ordering::Acquire, Ordering::Relaxed, |now| {
        if now & !WRITER_WAITS == 0 {
            Some(WRITER)
        } else {
            Some(now | WRITER_WAITS)
        }
    });
    previous.is_ok_and(|previous| previous & !WRITER_WAITS == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_share_and_writers_do_not() {
        let claims = Claims::new(16);
        let (mut a, mut b) = (Claim::on(2, 4, false), Claim::on(5, 2, false));
        let mut w = Claim::on(5, 1, true);
        assert!(claims.take(&mut a) && claims.take(&mut b));
        assert!(!claims.take(&mut w));
        let mut late = Claim::on(5, 1, false);
        assert!(!claims.take(&mut late), "overtook a waiting writer");
        claims.release(&mut a);
        assert!(!claims.take(&mut w));
        claims.release(&mut b);
        assert!(claims.take(&mut w));
        assert!(!claims.take(&mut late));
        claims.release(&mut w);
        assert!(claims.take(&mut late));
    }

    #[test]
    fn a_writer_that_gives_up_lets_readers_in() {
        let claims = Claims::new(16);
        let (mut r, mut w) = (Claim::on(3, 1, false), Claim::on(0, 16, true));
        assert!(claims.take(&mut r) && !claims.take(&mut w));
        claims.release(&mut w);
        let mut all = Claim::on(0, 16, false);
        assert!(claims.take(&mut all));
    }

    #[test]
    fn a_claim_around_the_end_takes_each_entry_once() {
        let claims = Claims::new(16);
        let mut around = Claim::on(13, 7, true);
        assert!(claims.take(&mut around));
        let taken: Vec<bool> = claims
            .entries
            .iter()
            .map(|entry| entry.load(Ordering::Relaxed) == WRITER)
            .collect();
        let expected: Vec<bool> = (0..16).map(|i| !(4..13).contains(&i)).collect();
        assert_eq!(taken, expected);
        claims.release(&mut around);
        assert!(claims.take(&mut Claim::on(0, 16, true)));
    }
}
