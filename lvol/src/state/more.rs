//! Blocks that come to extents which are a volume's own already: the most frequent change, many at a time.
//!
//! Invariants:
//! - All references stay as they are, and nothing is allocated: no page comes or goes, and none is copied.
//! - Many records do here what they would do one after the other.

use std::ops::Range;

use super::{
    State,
    apply::{Effect, end_of},
    map::{Way, leaf_place},
};
use crate::{
    error::PoolError,
    format::{
        Extent,
        page::{Entry, NodeId},
        record::Record,
    },
};

/// Blocks that came to an extent.
struct Added {
    /// How many held nothing before.
    gained: u64,
    /// They are written down in the leaf, not in a page of fragments.
    is_in_leaf: bool,
    /// The entry is of another kind now.
    is_whole: bool,
}

impl State {
    /// Makes the changes of the first of these records, as long as they add blocks to extents of one volume
    /// under one leaf that are its own already. How many that were, maybe none; all but the last are
    /// [`Effect::More`], and of that one it is told.
    pub fn map_more(&mut self, records: &[Record]) -> Result<(usize, Effect), PoolError> {
        let none = Ok((0, Effect::Other));
        let Some(Record::Map { volume, index, .. }) = records.first() else {
            return none;
        };
        let (volume, leaf_number) = (*volume, leaf_place(*index).0);
        let owner = (volume, self.epoch(volume));
        let Ok(end) = self.known(volume).map(|record| record.blocks) else {
            return none;
        };
        let Way::Leaf(id, true) = self.way(volume, leaf_number)? else {
            return none;
        };
        if self.leaf(id)?.owner != owner {
            return none;
        }
        self.nodes.take(id);
        let (mut gained, mut done, mut effect) = (0, 0, Effect::More);
        let mut is_touched = false;
        for record in records {
            let Record::Map {
                volume: of,
                index,
                start,
                count,
                extent,
            } = record
            else {
                break;
            };
            let (under, at) = leaf_place(*index);
            let start = usize::from(*start);
            let range = start..start + usize::from(*count);
            let is_within = end_of(*index, &range).is_some_and(|last| last <= end);
            if *of != volume || under != leaf_number || !is_within {
                break;
            }
            let Some(added) = self.add_blocks(id, at, &range, *extent)? else {
                break;
            };
            gained += added.gained;
            done += 1;
            if added.is_in_leaf && !is_touched {
                self.nodes.touch(id);
                is_touched = true;
            }
            if added.is_whole {
                effect = Effect::Other;
                break;
            }
        }
        if done > 0 {
            self.change_volume(volume)?.mapped += gained;
        }
        Ok((done, effect))
    }

    /// More blocks of an extent that is the volume's own. The caller says that the leaf has changed, where it
    /// has. Nothing is done where there is more to it.
    fn add_blocks(
        &mut self,
        id: NodeId,
        at: usize,
        range: &Range<usize>,
        extent: Extent,
    ) -> Result<Option<Added>, PoolError> {
        let leaf = self.leaf_unkept(id)?;
        if leaf.owned >> at & 1 == 0 {
            return Ok(None);
        }
        let partial = match &mut leaf.entries[at] {
            Entry::Partial(partial) if partial.0 == extent => partial,
            Entry::Fragments(page) => {
                let page = *page;
                // It was nobody else's when the volume got its own extent; no epoch has passed since.
                if self.nodes.number(page) != 1 {
                    return Ok(None);
                }
                let gained = self.map_more_fragments(page, range, extent)?;
                return Ok(gained.map(|gained| Added {
                    gained,
                    is_in_leaf: false,
                    is_whole: false,
                }));
            }
            _ => return Ok(None),
        };
        let gained = partial.1.gain(range.clone());
        let is_whole = partial.1.are_all(range);
        if is_whole {
            leaf.entries[at] = Entry::Whole(extent);
        }
        Ok(Some(Added {
            gained,
            is_in_leaf: true,
            is_whole,
        }))
    }

    /// More blocks in an extent that the page refers to already, of one that it still refers to after: no
    /// reference changes. Nothing is done otherwise.
    fn map_more_fragments(
        &mut self,
        page: NodeId,
        range: &Range<usize>,
        extent: Extent,
    ) -> Result<Option<u64>, PoolError> {
        let stored = Extent::to_stored(Some(extent));
        let fragments = self.fragments(page)?;
        let owners = &fragments.owners;
        let old = owners[range.start];
        let alike = range.len() == 1 || owners[range.clone()].iter().all(|owner| *owner == old);
        let elsewhere =
            |owner| owners[..range.start].contains(&owner) || owners[range.end..].contains(&owner);
        // Mostly the block beside is as this one was, and the one that came last is where it was put.
        let is_beside = owners.get(range.end) == Some(&old);
        let stays = old == 0 || old == stored || is_beside || elsewhere(old);
        let hint = usize::from(fragments.hint);
        let is_hinted = owners[hint] == stored && !range.contains(&hint);
        let has_more = || is_hinted || elsewhere(stored);
        if fragments.target != extent || !alike || !stays || !has_more() {
            return Ok(None);
        }
        self.change_fragments(page)?.put(range, extent);
        Ok(Some(if old == 0 { range.len() as u64 } else { 0 }))
    }
}

#[cfg(test)]
mod tests {
    use arrayvec::ArrayVec;
    use corebay_core::rng::Rng;

    use super::*;
    use crate::state::extents::Attempt;

    fn empty() -> State {
        let mut state = State::of_8_gib();
        let create = Record::Create {
            volume: 1,
            blocks: 80 * 256 - 3,
            thick: false,
            uuid: [2; 16],
            name: "v".to_owned(),
        };
        state.apply(&create).unwrap();
        state
    }

    /// Everything that the two ways could disagree in.
    fn shown(state: &State) -> String {
        let views: Vec<_> = (0..80).map(|index| state.view(1, index)).collect();
        let references: Vec<_> = (0..200).map(|at| state.references(Extent(at))).collect();
        let mapped = state.volume(1).unwrap().mapped;
        let counts = (state.extents.unreferenced, state.extents.busy);
        format!("{views:?} {references:?} {mapped} {counts:?}")
    }

    fn taken(state: &mut State) -> Extent {
        let mut found = ArrayVec::<_, 1>::new();
        match state.try_extents(0, 1, &mut found) {
            Attempt::Got(extent) => extent,
            other => panic!("{other:?}"),
        }
    }

    /// What follows from a write after all that `one` has done; `many` gives out the same extents.
    fn next_map(one: &mut State, many: &mut State, rng: &mut Rng) -> Record {
        // The end of one leaf and the beginning of the next; few, so that extents become whole.
        let index = 60 + rng.below(8);
        let own = |state: &mut State| state.own_target(1, index, |_| true).unwrap().alone();
        let extent = own(one).unwrap_or_else(|| {
            let extent = taken(one);
            assert_eq!(extent, taken(many));
            extent
        });
        own(many);
        let count = [1, 1, 1, 7, 40][usize::try_from(rng.below(5)).unwrap()];
        Record::Map {
            volume: 1,
            index,
            start: u8::try_from(rng.below(257 - count)).unwrap(),
            count: u16::try_from(count).unwrap(),
            extent,
        }
    }

    fn next_other(rng: &mut Rng, round: usize, snapshots: &mut u32) -> Record {
        // Without snapshots extents become whole, and with them few.
        if round < 400 || rng.below(2) == 0 {
            return Record::Unmap {
                volume: 1,
                first: (60 + 4 * rng.below(2)) * 256 + rng.below(512),
                blocks: 1 + rng.below(500),
                keep: rng.below(2) == 0,
            };
        }
        *snapshots += 1;
        Record::Share {
            volume: 1 + *snapshots,
            source: 1,
            snapshot: true,
            uuid: [3; 16],
            name: "s".to_owned(),
        }
    }

    #[test]
    fn many_at_once_do_what_they_do_one_after_the_other() {
        let (mut many, mut one) = (empty(), empty());
        let mut rng = Rng::from_seed(5);
        let (mut together, mut whole, mut snapshots) = (0, 0, 0);
        for round in 0..600 {
            let mut records: Vec<Record> = Vec::new();
            if rng.below(20) == 0 {
                records.push(next_other(&mut rng, round, &mut snapshots));
                one.apply_other(&records[0]).unwrap();
            } else {
                for _ in 0..1 + rng.below(30) {
                    records.push(next_map(&mut one, &mut many, &mut rng));
                    one.apply_other(&records[records.len() - 1]).unwrap();
                }
            }
            let mut rest = &records[..];
            while !rest.is_empty() {
                let (done, effect) = many.apply_first(rest).unwrap();
                together += usize::from(done > 1);
                whole += usize::from(done > 1 && effect == Effect::Other);
                rest = &rest[done..];
            }
            assert_eq!(shown(&one), shown(&many));
        }
        assert!(
            together > 500 && whole > 5 && snapshots > 2,
            "{together} {whole} {snapshots}"
        );
    }

    #[test]
    fn a_record_beyond_all_numbers_is_refused() {
        let mut state = empty();
        for (index, start) in [
            (u64::MAX >> 8, 255),
            (u64::MAX >> 8, 0),
            (u64::MAX, 0),
            (79, 253),
        ] {
            let record = Record::Map {
                volume: 1,
                index,
                start,
                count: 1,
                extent: Extent(1),
            };
            assert!(state.apply(&record).is_err());
        }
    }
}
