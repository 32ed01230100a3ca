//! Owns the writes of a core that wait for a stripe: the first of them takes along those that come
//! while it waits, so that many small ones become one large one.
//!
//! Invariants:
//! - A write joins only another one that still waits for the stripe's lock, and none that wants the
//!   same blocks: whoever has the lock finds each block wanted by one write at most.
//! - Whoever joined is told its own outcome: where the whole fails, each is tried by itself.
//! - At most [`CROWD`] operations wait for one stripe, so that others find workers. Beyond that hosts'
//!   requests wait outside.
//! - Nothing is kept of a write that does not wait.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    ops::Range,
    task::{Poll, Waker},
};

use arrayvec::ArrayVec;
use corebay_core::disk::{Disk, Durability, SEGMENTS_MAX};
use hashbrown::HashMap;

use crate::{
    engine::{Core, Outcome, Segments},
    shared::Set,
    write::Write,
};

/// The most operations of a core that wait for one stripe.
pub(crate) const CROWD: usize = 48;

/// A worker's write while it waits or is written along.
#[derive(Default)]
struct Place {
    write: Option<Write>,
    /// The next one of the same party.
    next: Option<u16>,
    outcome: Option<Outcome>,
    waker: Option<Waker>,
}

/// Who waits for a stripe.
#[derive(Clone, Copy)]
struct Waiting {
    /// Whom newcomers may join.
    leader: Option<u16>,
    count: usize,
}

/// The writes of a core that wait for stripes, by the number of their worker.
pub(crate) struct Merges {
    places: Box<[RefCell<Place>]>,
    waiting: RefCell<HashMap<u64, Waiting>>,
    merged: Cell<u64>,
}

/// Writes that are done as one: their workers, ascending by their first row.
pub(crate) type Party = ArrayVec<u16, CROWD>;

/// Rows of a party in which the same strips are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slice {
    pub(crate) rows: Range<u32>,
    pub(crate) strips: Set,
}

impl Merges {
    /// For so many workers.
    pub(crate) fn new(workers: usize) -> Self {
        Self {
            places: (0..workers).map(|_| RefCell::default()).collect(),
            waiting: RefCell::new(HashMap::with_capacity(2 * workers)),
            merged: Cell::new(0),
        }
    }

    /// Writes that were done together with an earlier one.
    #[cfg(test)]
    pub(crate) fn merged(&self) -> u64 {
        self.merged.get()
    }

    /// True where so many wait for the stripe that hosts' requests wait outside.
    pub(crate) fn is_crowded(&self, stripe: u64) -> bool {
        let waiting = self.waiting.borrow();
        !waiting.is_empty() && waiting.get(&stripe).is_some_and(|who| who.count >= CROWD)
    }

    /// A worker's write waits for its stripe. True where it joined another one, which does it too.
    pub(crate) fn wait(&self, worker: usize, write: Write) -> bool {
        let worker = worker as u16;
        let mut waiting = self.waiting.borrow_mut();
        let who = waiting.entry(write.band.stripe).or_insert(Waiting {
            leader: None,
            count: 0,
        });
        who.count += 1;
        let last = who.leader.and_then(|leader| self.place_for(leader, &write));
        match last {
            Some(last) => self.places[last as usize].borrow_mut().next = Some(worker),
            None => who.leader = Some(worker),
        }
        *self.places[worker as usize].borrow_mut() = Place {
            write: Some(write),
            ..Place::default()
        };
        last.is_some()
    }

    /// The last of a party, if a write goes with all of it.
    fn place_for(&self, leader: u16, write: &Write) -> Option<u16> {
        let (mut at, mut count) = (leader, 1);
        loop {
            let place = self.places[at as usize].borrow();
            let other = &place.write.as_ref()?.band;
            let rows =
                other.rows.start < write.band.rows.end && write.band.rows.start < other.rows.end;
            let strips = other.strips.start < write.band.strips.end
                && write.band.strips.start < other.strips.end;
            if (rows && strips) || count == CROWD {
                return None;
            }
            match place.next {
                Some(next) => (at, count) = (next, count + 1),
                None => return Some(at),
            }
        }
    }

    /// A leader has the lock: nobody joins it any more.
    pub(crate) fn close(&self, leader: usize, stripe: u64) -> Party {
        let leader = leader as u16;
        let mut party = Party::new();
        let mut next = Some(leader);
        while let Some(worker) = next {
            party.push(worker);
            next = self.places[worker as usize].borrow().next;
        }
        let mut waiting = self.waiting.borrow_mut();
        if let Some(who) = waiting.get_mut(&stripe) {
            who.count -= party.len();
            if who.leader == Some(leader) {
                who.leader = None;
            }
            if who.count == 0 {
                waiting.remove(&stripe);
            }
        }
        self.merged.set(self.merged.get() + party.len() as u64 - 1);
        party.sort_unstable_by_key(|&worker| self.with(worker, |write| write.band.rows.start));
        party
    }

    /// Looks at the write of a worker.
    pub(crate) fn with<T>(&self, worker: u16, look: impl FnOnce(&Write) -> T) -> T {
        let place = self.places[worker as usize].borrow();
        look(
            place
                .write
                .as_ref()
                .expect("it is kept until its party ends"),
        )
    }

    /// Takes a worker's write back.
    pub(crate) fn take(&self, worker: u16) -> Write {
        let mut place = self.places[worker as usize].borrow_mut();
        place.write.take().expect("it is kept until its party ends")
    }

    /// Tells a worker how its write ended.
    pub(crate) fn end(&self, worker: u16, outcome: Outcome) {
        let mut place = self.places[worker as usize].borrow_mut();
        place.write = None;
        place.outcome = Some(outcome);
        if let Some(waker) = place.waker.take() {
            waker.wake();
        }
    }

    /// How the write of a worker that joined another one ended.
    pub(crate) async fn outcome(&self, worker: usize) -> Outcome {
        poll_fn(|context| {
            let mut place = self.places[worker].borrow_mut();
            match place.outcome.take() {
                Some(outcome) => Poll::Ready(outcome),
                None => {
                    place.waker = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// What a party wants of some rows of a strip, which it wants all of.
    pub(crate) fn data<D: Disk>(
        &self,
        core: &Core<D>,
        party: &[u16],
        strip: usize,
        rows: &Range<u32>,
    ) -> Segments {
        let mut segments = Segments::new();
        for &worker in party {
            self.with(worker, |write| {
                if let Some(part) = part_of(write, strip, rows) {
                    segments.extend(write.data(core, strip, &part));
                }
            });
        }
        segments
    }

    /// True where any of a party has to be durable before it is answered.
    pub(crate) fn durability(&self, party: &[u16]) -> Durability {
        let durable =
            |&worker: &u16| self.with(worker, |write| write.durability == Durability::Durable);
        match party.iter().any(durable) {
            true => Durability::Durable,
            false => Durability::Cached,
        }
    }

    /// The next rows from `from` on that are written at once: as many as want the same strips, are no
    /// more than `most`, and lie in no more buffers than a transfer takes.
    pub(crate) fn slice(&self, party: &[u16], from: u32, most: u32) -> Option<Slice> {
        let (mut end, strips) = self.step(party, from)?;
        if strips.is_empty() {
            return self.slice(party, end, most);
        }
        end = end.min(from + most);
        while let Some((next, more)) = self.step(party, end)
            && more == strips
            && next - from <= most
            && strips
                .iter()
                .all(|strip| self.pieces(party, strip, &(from..next)) <= SEGMENTS_MAX)
        {
            end = next;
        }
        Some(Slice {
            rows: from..end,
            strips,
        })
    }

    /// What is written in the row `from`, and where that changes; nothing behind the last row.
    fn step(&self, party: &[u16], from: u32) -> Option<(u32, Set)> {
        let (mut end, mut strips) = (u32::MAX, Set::default());
        for &worker in party {
            self.with(worker, |write| {
                let rows = &write.band.rows;
                if rows.start > from {
                    end = end.min(rows.start);
                } else if rows.end > from {
                    end = end.min(rows.end);
                    strips = strips.union(write.band.strips.clone().collect());
                }
            });
        }
        (end < u32::MAX).then_some((end, strips))
    }

    /// The buffers that the rows of a strip lie in, or a few more.
    fn pieces(&self, party: &[u16], strip: usize, rows: &Range<u32>) -> usize {
        let of = |worker: &u16| {
            self.with(*worker, |write| match part_of(write, strip, rows) {
                Some(_) => write.buffers(),
                None => 0,
            })
        };
        party.iter().map(of).sum()
    }
}

/// The part of some rows of a strip that a write wants.
fn part_of(write: &Write, strip: usize, rows: &Range<u32>) -> Option<Range<u32>> {
    let part = rows.start.max(write.band.rows.start)..rows.end.min(write.band.rows.end);
    (write.band.strips.contains(&strip) && !part.is_empty()).then_some(part)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{geometry::Band, write::Payload};

    fn write(rows: Range<u32>, strips: Range<usize>) -> Write {
        Write {
            band: Band {
                stripe: 9,
                rows,
                strips,
            },
            payload: Payload::Zeroes,
            durability: Durability::Cached,
        }
    }

    fn slices(merges: &Merges, party: &[u16], most: u32) -> Vec<(Range<u32>, Vec<usize>)> {
        let (mut slices, mut at) = (Vec::new(), 0);
        while let Some(slice) = merges.slice(party, at, most) {
            at = slice.rows.end;
            slices.push((slice.rows, slice.strips.iter().collect()));
        }
        slices
    }

    #[test]
    fn neighbours_become_one_and_what_overlaps_stays_apart() {
        let merges = Merges::new(8);
        assert!(!merges.wait(0, write(4096..8192, 0..1)));
        assert!(merges.wait(1, write(0..4096, 1..2)));
        assert!(merges.wait(2, write(0..4096, 0..1)));
        assert!(
            !merges.wait(3, write(0..512, 0..3)),
            "it wants the same blocks"
        );
        assert!(
            merges.wait(4, write(8192..8704, 0..1)),
            "it joins the newer one"
        );
        let party = merges.close(0, 9);
        assert_eq!(party[2], 0, "by rows");
        let expected = [(0..4096, vec![0, 1]), (4096..8192, vec![0])];
        assert_eq!(slices(&merges, &party, 16384), expected);
        party.iter().for_each(|&worker| merges.end(worker, Ok(())));
        let party = merges.close(3, 9);
        let expected = [(0..512, vec![0, 1, 2]), (8192..8704, vec![0])];
        assert_eq!(slices(&merges, &party, 16384), expected);
        assert_eq!((merges.merged(), merges.waiting.borrow().len()), (3, 0));
    }

    #[test]
    fn slices_are_no_longer_and_no_more_scattered_than_a_transfer() {
        let merges = Merges::new(64);
        for worker in 0..40 {
            let rows = worker as u32 * 512..(worker as u32 + 1) * 512;
            assert_eq!(merges.wait(worker, write(rows, 0..1)), worker > 0);
        }
        let party = merges.close(0, 9);
        let lengths = |most| -> Vec<usize> {
            let slices = slices(&merges, &party, most);
            slices.into_iter().map(|(rows, _)| rows.len()).collect()
        };
        assert_eq!(lengths(1 << 20), [16 * 512, 16 * 512, 8 * 512]);
        assert_eq!(lengths(4096), [4096; 5]);
    }

    #[test]
    fn a_crowd_is_told() {
        let merges = Merges::new(64);
        for worker in 0..CROWD {
            assert!(!merges.is_crowded(9));
            merges.wait(worker, write(0..512, 0..1));
        }
        assert!(merges.is_crowded(9) && !merges.is_crowded(8));
        merges.close(0, 9);
        assert!(!merges.is_crowded(9));
    }
}
