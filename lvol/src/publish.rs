//! How the home core keeps the [flat maps](crate::flat) true.
//!
//! Invariants:
//! - An entry is brought up to date when a record has taken effect, before anybody is told: whoever was
//!   answered finds what was promised, on every core.
//! - A slot that no entry names any more is released like an extent, and used again once no look from
//!   before is left.
//! - Entries name at most so many slots ([`SlotLimits`]), but for one operation's: beyond that the entry that
//!   has named one for the longest is forgotten, and is found again where it is asked for.

use std::{
    ops::Range,
    sync::{Arc, atomic::Ordering},
};

use corebay_core::disk::Disk;

use crate::{
    bits::{Bits, masks},
    error::PoolError,
    flat::{FlatVolume, Kind, OWN_MAX, Slots, Word, segment_entry},
    format::{
        BLOCKS_PER_EXTENT, Extent,
        page::{Fragments, Kind as VolumeKind},
        record::Record,
    },
    pool::Shared,
    state::{State, apply::Effect, map::View},
};

/// A place that an entry of a flat map may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    Partial(u64),
    Fragments(u64),
}

/// An extent of a volume: the volume's number and the extent's. No volume has the number 0.
type Owner = (u32, u32);

const NOBODY: Owner = (0, 0);

/// Numbers of slots.
#[derive(Debug, Default)]
struct Numbers {
    free: Vec<u64>,
    /// Whose entry names each slot.
    owners: Vec<Owner>,
    /// How many have an owner.
    used: usize,
    /// Where the search for one that is given back goes on: slots are taken behind it again, so those
    /// before it were taken the longest ago.
    hand: usize,
}

impl Numbers {
    fn take(&mut self, owner: Owner) -> u64 {
        self.used += 1;
        if let Some(number) = self.free.pop() {
            self.owners[at(number)] = owner;
            return number;
        }
        self.owners.push(owner);
        self.owners.len() as u64 - 1
    }

    fn leave(&mut self, number: u64) {
        self.owners[at(number)] = NOBODY;
        self.used -= 1;
    }

    /// Whose slot is to be given back where there are more than `most`; not that of `spared`.
    fn oldest_beyond(&mut self, most: usize, spared: Owner) -> Option<Owner> {
        if self.used <= most {
            return None;
        }
        for _ in 0..self.owners.len() {
            self.hand = (self.hand + 1) % self.owners.len();
            let owner = self.owners[self.hand];
            if owner != NOBODY && owner != spared {
                return Some(owner);
            }
        }
        None
    }
}

fn at(number: u64) -> usize {
    usize::try_from(number).expect("a slot's number")
}

/// How many slots entries may name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SlotLimits {
    pub partial: usize,
    pub fragments: usize,
}

impl Default for SlotLimits {
    /// About 400 and 520 MiB.
    fn default() -> Self {
        Self {
            partial: 8 << 20,
            fragments: 512 << 10,
        }
    }
}

/// The home core's side of the flat maps.
#[derive(Default)]
pub(crate) struct Flat {
    volumes: Vec<Option<Arc<FlatVolume>>>,
    partial: Numbers,
    fragments: Numbers,
    pub limits: SlotLimits,
    /// Slots that no entry names any more.
    pub released: Vec<Slot>,
}

impl Flat {
    pub fn volume(&self, id: u32) -> Option<&Arc<FlatVolume>> {
        self.volumes.get(id as usize)?.as_ref()
    }

    /// All volumes that some core may have open.
    pub fn volumes(&self) -> impl Iterator<Item = &Arc<FlatVolume>> {
        self.volumes.iter().flatten()
    }

    /// Nobody can be looking at it any more.
    pub fn free(&mut self, slot: Slot) {
        match slot {
            Slot::Partial(slot) => self.partial.free.push(slot),
            Slot::Fragments(slot) => self.fragments.free.push(slot),
        }
    }

    fn leave(&mut self, word: Word) {
        match word.kind {
            Kind::Partial => {
                self.partial.leave(word.number);
                self.released.push(Slot::Partial(word.number));
            }
            Kind::Fragments => {
                self.fragments.leave(word.number);
                self.released.push(Slot::Fragments(word.number));
            }
            Kind::Unknown | Kind::Hole | Kind::Whole => {}
        }
    }

    /// Slots that entries name.
    pub fn slots(&self) -> usize {
        self.partial.used + self.fragments.used
    }

    /// Forgets entries where too many name slots, but for the one of `spared`.
    fn give_back(&mut self, spared: Owner) {
        let limits = self.limits;
        while let Some((volume, index)) = (self.partial.oldest_beyond(limits.partial, spared))
            .or_else(|| self.fragments.oldest_beyond(limits.fragments, spared))
        {
            let known = self.volume(volume).cloned();
            let known = known.expect("entries go with their volume");
            let entry = known.entry(index.into());
            known.set_entry(index.into(), Word::UNKNOWN);
            self.leave(entry);
        }
    }

    /// Adds blocks to those that lie in the volume's own extent, which `own` says; false, with nothing done,
    /// where the entry does not say of this extent that it is the volume's.
    fn show_more(slots: &Slots, entry: Word, blocks: Range<usize>, own: Word) -> bool {
        match entry.kind {
            Kind::Partial => {
                let slot = slots.partial(entry.number);
                if slot[0].load(Ordering::Relaxed) != own.bits() {
                    return false;
                }
                // Nobody else writes them.
                let add = |word: usize, mask| {
                    let place = &slot[1 + word];
                    place.store(place.load(Ordering::Relaxed) | mask, Ordering::Release);
                };
                match blocks.len() {
                    1 => add(blocks.start / 64, 1 << (blocks.start % 64)),
                    _ => masks(blocks).for_each(|(word, mask)| add(word, mask)),
                }
                true
            }
            Kind::Fragments => {
                let slot = slots.fragments(entry.number);
                if slot.target.load(Ordering::Relaxed) != own.bits() {
                    return false;
                }
                let holder = Extent::to_stored(Some(Extent(own.number)));
                let holder = u32::try_from(holder).expect("fewer than 2^32 extents");
                for place in &slot.holders[blocks] {
                    place.store(holder, Ordering::Release);
                }
                true
            }
            Kind::Unknown | Kind::Hole | Kind::Whole => false,
        }
    }

    /// Makes an entry say what the state says.
    fn show(&mut self, slots: &Slots, volume: &FlatVolume, index: u64, view: View<'_>) {
        let before = volume.entry(index);
        let present = volume.own.load(Ordering::Relaxed);
        let owner = (volume.id, u32::try_from(index).expect("fewer than 2^32"));
        let word = |kind, own, number| Word { kind, own, number };
        let generation = |own| if own { present } else { 0 };
        let after = match view {
            View::Missing => Word::UNKNOWN,
            View::Hole => word(Kind::Hole, 0, 0),
            View::Single(extent, valid, own) if valid == Bits::ALL => {
                word(Kind::Whole, generation(own), extent.0)
            }
            View::Single(extent, valid, own) => {
                let of = word(Kind::Whole, generation(own), extent.0);
                // In its place only while it is of the same extent: a reader takes the extent first.
                let keep = before.kind == Kind::Partial
                    && Word::of(slots.partial(before.number)[0].load(Ordering::Relaxed)).number
                        == extent.0;
                let number = if keep {
                    before.number
                } else {
                    self.partial.take(owner)
                };
                let slot = slots.partial(number);
                for (place, bits) in slot[1..].iter().zip(valid.0) {
                    place.store(bits, Ordering::Release);
                }
                slot[0].store(of.bits(), Ordering::Release);
                word(Kind::Partial, 0, number)
            }
            View::Fragments(fragments, own) => {
                let number = match before.kind {
                    Kind::Fragments => before.number,
                    _ => self.fragments.take(owner),
                };
                show_fragments(slots, number, fragments, generation(own));
                word(Kind::Fragments, 0, number)
            }
        };
        if after != before {
            volume.set_entry(index, after);
            self.leave(before);
            self.give_back(owner);
        }
    }
}

fn show_fragments(slots: &Slots, number: u64, fragments: &Fragments, own: u64) {
    let slot = slots.fragments(number);
    for (place, owner) in slot.holders.iter().zip(&fragments.owners) {
        let owner = u32::try_from(*owner).expect("fewer than 2^32 extents");
        if place.load(Ordering::Relaxed) != owner {
            place.store(owner, Ordering::Release);
        }
    }
    let target = Word {
        kind: Kind::Whole,
        own,
        number: fragments.target.0,
    };
    slot.target.store(target.bits(), Ordering::Release);
}

impl<D: Disk> Shared<D> {
    /// What all cores know of a volume.
    pub fn flat_volume(&self, id: u32) -> Arc<FlatVolume> {
        let mut flat = self.flat.borrow_mut();
        if let Some(known) = flat.volume(id) {
            return known.clone();
        }
        let at = id as usize;
        if flat.volumes.len() <= at {
            flat.volumes.resize(at + 1, None);
        }
        let made = Arc::new(FlatVolume::new(id));
        flat.volumes[at] = Some(made.clone());
        drop(flat);
        self.refresh(&self.state.borrow(), id);
        made
    }

    /// Handles of volumes that are open, on all cores.
    pub fn open_handles(&self) -> u32 {
        let flat = self.flat.borrow();
        let handles = flat
            .volumes()
            .map(|v| v.counts.handles.load(Ordering::SeqCst));
        handles.sum()
    }

    /// Brings what is known of an extent of a volume up to date.
    pub fn publish(&self, volume: u32, index: u64) {
        self.publish_from(&self.state.borrow(), volume, index);
        if !self.flat.borrow().released.is_empty() {
            self.collect_released();
        }
    }

    fn publish_from(&self, state: &State, volume: u32, index: u64) {
        let flat = &mut *self.flat.borrow_mut();
        if let Some(known) = flat.volume(volume).cloned() {
            let view = state.view(volume, index);
            flat.show(&self.common.slots, &known, index, view);
        }
    }

    /// Brings up to date what is known of a volume as a whole.
    fn refresh(&self, state: &State, id: u32) {
        let flat = self.flat.borrow();
        let Some(volume) = flat.volume(id) else {
            return;
        };
        let record = state.volume(id).ok();
        let record = record.filter(|record| record.kind != VolumeKind::Dying);
        volume.gone.store(record.is_none(), Ordering::SeqCst);
        let Some(record) = record else { return };
        let read_only = record.read_only || record.kind != VolumeKind::Volume;
        volume.read_only.store(read_only, Ordering::SeqCst);
        let receiving = record.receiving.is_some();
        volume.receiving.store(receiving, Ordering::SeqCst);
        volume.blocks.store(record.blocks, Ordering::SeqCst);
        volume.counts.mapped.store(record.mapped, Ordering::Relaxed);
        volume.qos.set(&record.limits);
    }

    /// The volume owns nothing for itself alone any more.
    fn next_generation(&self, id: u32) {
        let flat = self.flat.borrow();
        let Some(volume) = flat.volume(id).cloned() else {
            return;
        };
        drop(flat);
        let next = volume.own.load(Ordering::Relaxed) + 1;
        if next > OWN_MAX {
            self.forget(&volume);
        }
        let next = if next > OWN_MAX { 1 } else { next };
        volume.own.store(next, Ordering::SeqCst);
    }

    fn forget(&self, volume: &FlatVolume) {
        let mut flat = self.flat.borrow_mut();
        for word in volume.forget() {
            flat.leave(word);
        }
    }

    /// Records have taken effect: the flat maps follow. All but the last are [`Effect::More`] of one volume, and
    /// lie under one leaf.
    pub fn follow(&self, state: &State, records: &[Record], effect: Effect) {
        let (more, other) = match effect {
            Effect::More => (records, None),
            Effect::Other => (&records[..records.len() - 1], records.last()),
        };
        if let Some(Record::Map { volume, .. }) = more.first() {
            self.show_all(state, *volume, more);
        }
        if let Some(other) = other {
            self.follow_other(state, other);
        }
    }

    /// Blocks have come to extents of a volume that were its own already.
    fn show_all(&self, state: &State, volume: u32, records: &[Record]) {
        let flat = &mut *self.flat.borrow_mut();
        let Some(known) = flat.volume(volume).cloned() else {
            return;
        };
        let slots = &self.common.slots;
        let own = known.own.load(Ordering::Relaxed);
        // All are under one leaf.
        let mut segment = None;
        for record in records {
            let Record::Map {
                index,
                start,
                count,
                extent,
                ..
            } = record
            else {
                unreachable!("only these have that effect")
            };
            let start = usize::from(*start);
            let blocks = start..start + usize::from(*count);
            let of = Word {
                kind: Kind::Whole,
                own,
                number: extent.0,
            };
            segment = segment.or_else(|| known.segment(*index));
            let entry = segment.map_or(Word::UNKNOWN, |segment| segment_entry(segment, *index));
            if !Flat::show_more(slots, entry, blocks, of) {
                flat.show(slots, &known, *index, state.view(volume, *index));
            }
        }
        if let Ok(record) = state.volume(volume) {
            known.counts.mapped.store(record.mapped, Ordering::Relaxed);
        }
    }

    fn follow_other(&self, state: &State, record: &Record) {
        match record {
            Record::Map { volume, index, .. } => {
                self.publish_from(state, *volume, *index);
                self.refresh_mapped(state, *volume);
            }
            Record::Unmap {
                volume,
                first,
                blocks,
                ..
            } => {
                let per_extent = BLOCKS_PER_EXTENT as u64;
                for index in first / per_extent..(first + blocks).div_ceil(per_extent) {
                    self.publish_from(state, *volume, index);
                }
                self.refresh_mapped(state, *volume);
            }
            Record::Share { source, volume, .. } => {
                self.next_generation(*source);
                self.refresh(state, *volume);
            }
            Record::Rollback { volume, .. } => {
                let known = self.flat.borrow().volume(*volume).cloned();
                if let Some(known) = known {
                    self.forget(&known);
                    self.next_generation(*volume);
                }
                self.refresh(state, *volume);
            }
            Record::Create { volume, .. }
            | Record::Delete { volume }
            | Record::Resize { volume, .. }
            | Record::Receive { volume, .. }
            | Record::Limits { volume, .. }
            | Record::Flags { volume, .. } => {
                if let Record::Delete { .. } = record {
                    let known = self.flat.borrow().volume(*volume).cloned();
                    if let Some(known) = known {
                        self.forget(&known);
                    }
                }
                self.refresh(state, *volume);
                if let Record::Delete { .. } = record
                    && let Some(known) = self.flat.borrow_mut().volumes.get_mut(*volume as usize)
                {
                    // Its number may be another volume's later; who still holds this one finds it gone.
                    *known = None;
                }
            }
            Record::Rename { .. }
            | Record::Attributes { .. }
            | Record::Identity { .. }
            | Record::Export { .. }
            | Record::RenamePool { .. }
            | Record::Thresholds(_)
            | Record::Extend { .. }
            | Record::Origin { .. }
            | Record::Recount { .. }
            | Record::Drop { .. } => {}
        }
    }

    fn refresh_mapped(&self, state: &State, volume: u32) {
        let flat = self.flat.borrow();
        if let (Some(known), Ok(record)) = (flat.volume(volume), state.volume(volume)) {
            known.counts.mapped.store(record.mapped, Ordering::Relaxed);
        }
    }

    /// Reads what is missing, so that other cores find where a block lies.
    pub async fn look_up(&self, volume: u32, block: u64) -> Result<(), PoolError> {
        self.run(volume, block, block + 1).await?;
        self.check_end(volume, &(block..block + 1))?;
        self.publish(volume, block / BLOCKS_PER_EXTENT as u64);
        Ok(())
    }
}
