//! Slow writes on the home core: whose turn it is, and which extents their data go to.
//!
//! Invariants:
//! - Of the blocks that a slow write works on no other slow operation works on any, in whichever order they
//!   came; whoever has to wait is not overtaken by a later one on the same blocks.
//! - All slow writes to an extent of a volume at a time go to one extent of the pool, which is pinned
//!   until the last of them has ended.
//! - A write that is dropped amid its work keeps its extents for good: the disk may still work for it.
//! - What others had too, and have left to the volume, a write goes to only when every look from before has
//!   ended: until then a reader of another volume may find there what is written now. It waits, and takes no
//!   other extent: what it replaces is the volume's own, for which no other is reserved.

use std::{
    cell::{Cell, RefCell},
    ops::Range,
    rc::Rc,
    sync::atomic::Ordering,
};

use arrayvec::ArrayVec;
use corebay_core::disk::Disk;

use crate::{
    error::PoolError,
    format::{BLOCKS_PER_EXTENT, Extent, record::Record},
    journal::Committed,
    pool::Shared,
    staged::AllStaged,
    state::{
        Missing, State,
        extents::Attempt,
        map::{Target, leaf_place},
    },
    sync::Signal,
};

const PER_EXTENT: u64 = BLOCKS_PER_EXTENT as u64;

/// The most extents that one write touches: 2048 blocks that begin amid one.
pub(crate) const WRITE_EXTENTS_MAX: usize = 9;

/// Blocks that somebody waits for, or that are being cleared.
#[derive(Debug)]
struct Held {
    ticket: u64,
    volume: u32,
    blocks: Range<u64>,
}

/// The slow writes and clearings that are under way.
#[derive(Default)]
pub(crate) struct Turns {
    staged: RefCell<AllStaged>,
    /// In the order they came.
    held: RefCell<Vec<Held>>,
    changed: Signal,
    next_ticket: Cell<u64>,
}

impl Turns {
    /// Whether nobody who came before `ticket` has a part of these blocks, or waits for one.
    fn is_next(&self, ticket: u64, volume: u32, blocks: &Range<u64>) -> bool {
        let held = self.held.borrow();
        let earlier = held.iter().take_while(|held| held.ticket < ticket);
        !earlier.into_iter().any(|held| {
            let apart = held.blocks.end <= blocks.start || blocks.end <= held.blocks.start;
            held.volume == volume && !apart
        })
    }

    /// Takes the blocks for a write, if nobody works on any of them.
    fn take(&self, ticket: u64, volume: u32, blocks: &Range<u64>) -> bool {
        if !self.is_next(ticket, volume, blocks) {
            return false;
        }
        let mut staged = self.staged.borrow_mut();
        let free = parts_of(blocks.clone()).all(|part| {
            let found = staged.get((volume, part.start / PER_EXTENT));
            found.is_none_or(|staged| !staged.is_busy(&part))
        });
        if free {
            for part in parts_of(blocks.clone()) {
                let (_, staged) = staged.get_or_add((volume, part.start / PER_EXTENT));
                staged.begin(&part);
            }
        }
        free
    }

    /// True where a write works on some of these blocks.
    fn is_written(&self, volume: u32, blocks: &Range<u64>) -> bool {
        let staged = self.staged.borrow();
        staged.iter().any(|((of, index), staged)| {
            let extent = index * PER_EXTENT..(index + 1) * PER_EXTENT;
            let common = extent.start.max(blocks.start)..extent.end.min(blocks.end);
            of == volume && !common.is_empty() && staged.is_busy(&common)
        })
    }

    fn queue(&self, volume: u32, blocks: &Range<u64>) -> u64 {
        let ticket = self.next_ticket.get();
        self.next_ticket.set(ticket + 1);
        self.held.borrow_mut().push(Held {
            ticket,
            volume,
            blocks: blocks.clone(),
        });
        ticket
    }

    fn leave(&self, ticket: u64) {
        self.held.borrow_mut().retain(|held| held.ticket != ticket);
        self.changed.notify();
    }

    /// Somebody works on some blocks no more.
    fn released(&self) {
        if !self.held.borrow().is_empty() {
            self.changed.notify();
        }
    }
}

/// Blocks that are being cleared, or that somebody waits for.
pub(crate) struct Holding<'a> {
    turns: &'a Turns,
    ticket: u64,
}

impl Drop for Holding<'_> {
    fn drop(&mut self) {
        self.turns.leave(self.ticket);
    }
}

/// A slow write that has begun.
pub(crate) struct SlowWrite<D: Disk> {
    shared: Rc<Shared<D>>,
    volume: u32,
    blocks: Range<u64>,
    /// For each of the volume's extents that it touches: where its data go.
    extents: ArrayVec<Extent, WRITE_EXTENTS_MAX>,
    /// Of these, by bit: the blocks were the volume's own all the time.
    own: u16,
    ended: bool,
}

impl<D: Disk> SlowWrite<D> {
    /// Where its data go: an extent for each of the volume's extents.
    pub fn extents(&self) -> &ArrayVec<Extent, WRITE_EXTENTS_MAX> {
        &self.extents
    }

    /// What has to be recorded once its data are durable.
    pub fn records(&self) -> impl Iterator<Item = Record> + '_ {
        let parts = parts_of(self.blocks.clone()).zip(&self.extents);
        let fresh = parts.enumerate().filter(|(at, _)| self.own >> at & 1 == 0);
        fresh.map(|(_, (part, extent))| map_record(self.volume, &part, *extent))
    }

    /// The disk works no more for it, and what it made readable has taken effect, or will not.
    pub fn end(mut self) {
        self.ended = true;
        self.release();
    }

    fn release(&self) {
        for part in parts_of(self.blocks.clone()) {
            self.shared.release_part(self.volume, &part);
        }
        self.shared.turns.released();
    }
}

impl<D: Disk> Drop for SlowWrite<D> {
    fn drop(&mut self) {
        if !self.ended {
            // Without extents it was still waiting, and the disk knows nothing of it.
            if !self.extents.is_empty() {
                let epochs = &self.shared.common.epochs;
                epochs.abandon(epochs.now());
            }
            for extent in &self.extents {
                self.shared.state.borrow_mut().pin(*extent);
            }
            if self.own != 0 {
                self.shared.forsake(self.volume);
            }
            self.release();
        }
    }
}

/// A slow write to blocks of one extent, on the home core, that had to wait for nothing.
pub(crate) struct FirstWrite<'a, D: Disk> {
    shared: &'a Shared<D>,
    volume: u32,
    blocks: Range<u64>,
    /// Among the extents that slow writes are on their way to.
    place: usize,
    extent: Extent,
    /// The blocks were the volume's own all the time.
    own: bool,
    ended: bool,
}

impl<'a, D: Disk> FirstWrite<'a, D> {
    /// Where its data go.
    pub fn extent(&self) -> Extent {
        self.extent
    }

    /// The data are where they belong: they are to be found once the record that this gives has taken
    /// effect, or now where it gives none. `None` where there is no room for it now.
    pub fn record(&self) -> Option<Result<Option<Committed<'a, D>>, PoolError>> {
        if self.own {
            let index = self.blocks.start / PER_EXTENT;
            self.shared.publish(self.volume, index);
            return Some(Ok(None));
        }
        let shared = self.shared;
        let appended = shared.try_append_map(|| self.map_record());
        appended.map(|appended| appended.map(|ticket| Some(shared.committed(ticket))))
    }

    /// The same, once there is room for it; waits until the record has taken effect.
    pub async fn record_later(&self) -> Result<(), PoolError> {
        let record = || std::iter::once(self.map_record());
        let ticket = self.shared.append(record).await?;
        self.shared.committed(ticket).await
    }

    fn map_record(&self) -> Record {
        map_record(self.volume, &self.blocks, self.extent)
    }

    /// What it made readable has taken effect, or will not. Once.
    pub fn end(&mut self) {
        self.ended = true;
        self.release();
    }

    fn release(&self) {
        self.shared.release_at(self.place, &self.blocks);
        self.shared.turns.released();
    }
}

impl<D: Disk> Drop for FirstWrite<'_, D> {
    fn drop(&mut self) {
        if !self.ended {
            let epochs = &self.shared.common.epochs;
            epochs.abandon(epochs.now());
            self.shared.state.borrow_mut().pin(self.extent);
            if self.own {
                self.shared.forsake(self.volume);
            }
            self.release();
        }
    }
}

impl<D: Disk> Shared<D> {
    /// A slow write to blocks of one extent begins, where it has to wait for nobody and nothing has to be
    /// read. They lie in the volume, as the caller has just seen. `lies`: where the flat map says that the
    /// first of them lies, where it says so.
    pub fn try_begin(
        &self,
        volume: u32,
        blocks: &Range<u64>,
        lies: Option<Option<Extent>>,
    ) -> Option<FirstWrite<'_, D>> {
        if !self.turns.held.borrow().is_empty() {
            return None;
        }
        let state = &mut *self.state.borrow_mut();
        debug_assert!(state.known(volume).is_ok_and(|v| blocks.end <= v.blocks));
        let all = &mut *self.turns.staged.borrow_mut();
        let key = (volume, blocks.start / PER_EXTENT);
        let (place, extent, own) = match all.place(key) {
            Some(place) => {
                let staged = all.at(place);
                // Another may be reading what it needs to know where its data go.
                let extent = staged.extent.filter(|_| !staged.is_busy(blocks))?;
                staged.begin(blocks);
                // Who lies elsewhere is not there.
                let may_be_own = lies.is_none_or(|lies| lies == Some(extent));
                let own = may_be_own && state.is_own(volume, blocks, extent);
                (place, extent, own)
            }
            None => {
                let (extent, own) = find_target(state, volume, blocks, || self.is_left())?;
                let (place, staged) = all.get_or_add(key);
                staged.extent = Some(extent);
                staged.begin(blocks);
                (place, extent, own)
            }
        };
        Some(FirstWrite {
            shared: self,
            volume,
            blocks: blocks.clone(),
            place,
            extent,
            own,
            ended: false,
        })
    }

    /// A write to blocks of one extent has ended.
    fn release_part(&self, volume: u32, part: &Range<u64>) {
        let key = (volume, part.start / PER_EXTENT);
        let place = self.turns.staged.borrow().place(key);
        if let Some(place) = place {
            self.release_at(place, part);
        }
    }

    fn release_at(&self, place: usize, part: &Range<u64>) {
        let left = self.turns.staged.borrow_mut().end(place, part);
        if let Some(extent) = left {
            self.unpin(extent);
        }
    }

    /// The disk may still write over blocks that are the volume's, for a write that was dropped.
    fn forsake(&self, volume: u32) {
        let flat = self.flat_volume(volume);
        flat.forsaken.store(true, Ordering::SeqCst);
    }

    /// True where a slow operation works on a volume, or waits for its turn.
    pub fn is_worked_on(&self, volume: u32) -> bool {
        let held = self.turns.held.borrow();
        let staged = self.turns.staged.borrow();
        let is_held = held.iter().any(|held| held.volume == volume);
        is_held || staged.iter().any(|((of, _), _)| of == volume)
    }

    /// Waits until no earlier slow operation works on these blocks.
    pub async fn hold(&self, volume: u32, blocks: Range<u64>) -> Holding<'_> {
        let turns = &self.turns;
        let ticket = turns.queue(volume, &blocks);
        let holding = Holding { turns, ticket };
        let next = || turns.is_next(ticket, volume, &blocks) && !turns.is_written(volume, &blocks);
        turns.changed.until(|| next().then_some(())).await;
        holding
    }

    /// A slow write begins: it waits its turn, and gets an extent for each of the volume's extents that
    /// it touches.
    pub async fn begin_write(
        self: &Rc<Self>,
        volume: u32,
        blocks: Range<u64>,
    ) -> Result<SlowWrite<D>, PoolError> {
        let turns = &self.turns;
        if !turns.take(u64::MAX, volume, &blocks) {
            let ticket = turns.queue(volume, &blocks);
            let _holding = Holding { turns, ticket };
            turns
                .changed
                .until(|| turns.take(ticket, volume, &blocks).then_some(()))
                .await;
        }
        let mut write = self.taken(volume, blocks);
        let found = match self.check_and_try_targets(&mut write) {
            Ok(Try::Got) => Ok(()),
            Ok(_) => self.targets(&mut write).await,
            Err(error) => Err(error),
        };
        match found {
            Ok(()) => Ok(write),
            Err(error) => {
                write.end();
                Err(error)
            }
        }
    }

    /// The same where nobody has to be waited for, and nothing.
    pub fn try_begin_write(
        self: &Rc<Self>,
        volume: u32,
        blocks: &Range<u64>,
    ) -> Option<Result<SlowWrite<D>, PoolError>> {
        let turns = &self.turns;
        if !turns.held.borrow().is_empty() || !turns.take(u64::MAX, volume, blocks) {
            return None;
        }
        let mut write = self.taken(volume, blocks.clone());
        let found = self.check_and_try_targets(&mut write);
        if let Ok(Try::Got) = found {
            return Some(Ok(write));
        }
        write.end();
        found.err().map(Err)
    }

    /// A slow write whose blocks were taken.
    fn taken(self: &Rc<Self>, volume: u32, blocks: Range<u64>) -> SlowWrite<D> {
        SlowWrite {
            shared: self.clone(),
            volume,
            blocks,
            extents: ArrayVec::new(),
            own: 0,
            ended: false,
        }
    }

    fn check_and_try_targets(&self, write: &mut SlowWrite<D>) -> Result<Try, PoolError> {
        self.check_end(write.volume, &write.blocks)?;
        self.try_targets(write, &[])
    }

    /// The data of a slow write are where they belong, or could not be written.
    pub async fn finish_write(
        &self,
        write: SlowWrite<D>,
        is_written: bool,
    ) -> Result<(), PoolError> {
        let result = match is_written {
            true => self.show(&write).await,
            false => Ok(()),
        };
        write.end();
        result
    }

    /// Lets every core write in place what a write has found to be the volume's own.
    pub fn publish_own(&self, write: &SlowWrite<D>) {
        for (at, part) in parts_of(write.blocks.clone()).enumerate() {
            if write.own >> at & 1 != 0 {
                self.publish(write.volume, part.start / PER_EXTENT);
            }
        }
    }

    async fn show(&self, write: &SlowWrite<D>) -> Result<(), PoolError> {
        self.publish_own(write);
        if write.records().next().is_none() {
            return Ok(());
        }
        let ticket = self.append(|| write.records()).await?;
        self.committed(ticket).await
    }

    async fn targets(&self, write: &mut SlowWrite<D>) -> Result<(), PoolError> {
        let mut needs = self.needs();
        let mut left = Candidates::new();
        loop {
            match self.try_targets(write, &left)? {
                Try::Got => return Ok(()),
                Try::Left(candidates) => {
                    self.grace().await;
                    if let Some(error) = self.stopped() {
                        return Err(error);
                    }
                    left = candidates;
                }
                Try::Load(missing) => needs.load(missing).await?,
                Try::Wait if self.is_abandoned() => return Err(PoolError::NoSpace),
                Try::Wait => self.space_may_change().await?,
            }
        }
    }

    /// Waits until extents were given back, or have been taken by who was on the way to them.
    pub async fn space_may_change(&self) -> Result<(), PoolError> {
        let mut first = true;
        let mut again = || !std::mem::take(&mut first) || self.stopped().is_some();
        self.space.until(|| again().then_some(())).await;
        self.stopped().map_or(Ok(()), Err)
    }

    /// Finds the extents that a write's blocks go to, and which of the blocks are the volume's own
    /// already. They are pinned until the last write to them ends.
    ///
    /// All that have to be taken are taken at once, or none: whoever waits for more holds none that
    /// others, or it itself, could be waiting for.
    ///
    /// `left`: what the volume was alone with already when looks began to be waited for that have ended.
    fn try_targets(&self, write: &mut SlowWrite<D>, left: &[Candidate]) -> Result<Try, PoolError> {
        let volume = write.volume;
        let state = &mut *self.state.borrow_mut();
        let epoch = state.epoch(volume);
        let mut candidates = Candidates::new();
        let mut all = self.turns.staged.borrow_mut();
        let mut found: ArrayVec<Option<Extent>, WRITE_EXTENTS_MAX> = ArrayVec::new();
        for part in parts_of(write.blocks.clone()) {
            let index = part.start / PER_EXTENT;
            let staged = all.get((volume, index)).and_then(|staged| staged.extent);
            if staged.is_none()
                && let Some(missing) = state.missing_for(volume, leaf_place(index).0)?
            {
                return Ok(Try::Load(missing));
            }
            found.push(match staged {
                Some(extent) => Some(extent),
                None => {
                    let is_left = |extent| self.is_left() || left.contains(&(epoch, extent));
                    let target = state.own_target(volume, index, is_left)?;
                    if let Target::Left(extent) = target {
                        candidates.push((epoch, extent));
                    }
                    target.alone()
                }
            });
        }
        if !candidates.is_empty() {
            return Ok(Try::Left(candidates));
        }
        let count = found.iter().filter(|extent| extent.is_none()).count();
        let mut fresh: ArrayVec<Extent, WRITE_EXTENTS_MAX> = ArrayVec::new();
        if count > 0 {
            let reserved = state.volume(volume)?.unused_reservation();
            match state.try_extents(reserved, count, &mut fresh) {
                Attempt::Got(_) => {}
                Attempt::Load(page) => return Ok(Try::Load(Missing::Counts(page))),
                Attempt::Full => return Err(PoolError::NoSpace),
                Attempt::Wait => return Ok(Try::Wait),
            }
        }
        let mut fresh = fresh.into_iter();
        for (at, part) in parts_of(write.blocks.clone()).enumerate() {
            let taken = found[at].or_else(|| fresh.next());
            let extent = taken.expect("as many as were missing");
            let place = all.place((volume, part.start / PER_EXTENT));
            let staged = all.at(place.expect("its blocks were taken"));
            if staged.extent.is_none() {
                state.pin(extent);
                staged.extent = Some(extent);
            }
            write.extents.push(extent);
            write.own |= u16::from(state.is_own(volume, &part, extent)) << at;
        }
        Ok(Try::Got)
    }

    /// True where slow writes are on their way to an extent of a volume: what they have been given
    /// is where its new blocks go, and nothing else.
    pub fn is_staged(&self, volume: u32, index: u64) -> bool {
        let all = self.turns.staged.borrow();
        let staged = all.get((volume, index));
        staged.is_some_and(|staged| staged.extent.is_some())
    }

    fn unpin(&self, extent: Extent) {
        let mut state = self.state.borrow_mut();
        state.unpin(extent);
        let is_released = !state.extents.released.is_empty();
        drop(state);
        if is_released {
            self.collect_released();
        }
    }
}

/// The extent that new blocks of a volume's extent go to, pinned, and whether these blocks are the
/// volume's own already; `None` where something has to be waited for, or there is no space.
fn find_target(
    state: &mut State,
    volume: u32,
    part: &Range<u64>,
    is_left: impl FnOnce() -> bool,
) -> Option<(Extent, bool)> {
    let index = part.start / PER_EXTENT;
    let missing = state.missing_for(volume, leaf_place(index).0).ok()?;
    if missing.is_some() {
        return None;
    }
    let extent = match state.own_target(volume, index, |_| is_left()).ok()? {
        Target::Own(extent) => extent,
        Target::Left(_) => return None,
        Target::None => {
            let reserved = state.volume(volume).ok()?.unused_reservation();
            let mut fresh: ArrayVec<Extent, 1> = ArrayVec::new();
            state.try_extents(reserved, 1, &mut fresh);
            fresh.pop()?
        }
    };
    state.pin(extent);
    Some((extent, state.is_own(volume, part, extent)))
}

/// Blocks of one extent of a volume lie in `extent` now.
fn map_record(volume: u32, part: &Range<u64>, extent: Extent) -> Record {
    Record::Map {
        volume,
        index: part.start / PER_EXTENT,
        start: u8::try_from(part.start % PER_EXTENT).expect("below an extent's blocks"),
        count: u16::try_from(part.end - part.start).expect("an extent's blocks"),
        extent,
    }
}

/// An extent that a volume is alone with, and the volume's epoch: others come to have it only by a new one.
pub(crate) type Candidate = (u32, Extent);

type Candidates = ArrayVec<Candidate, WRITE_EXTENTS_MAX>;

/// An attempt to get the extents for a write.
enum Try {
    /// They are the write's.
    Got,
    /// This page is needed first.
    Load(Missing),
    /// These are the volume's once looks that are under way have ended.
    Left(Candidates),
    /// Too few are free now, but some will be.
    Wait,
}

/// The parts of a range of blocks that lie in one extent each.
pub(crate) fn parts_of(blocks: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let mut from = blocks.start;
    std::iter::from_fn(move || {
        let part = from..blocks.end.min((from / PER_EXTENT + 1) * PER_EXTENT);
        from = part.end;
        (!part.is_empty()).then_some(part)
    })
}
