//! How many of a volume's extents lie in an extent of the pool that is the volume's own: what a thick volume
//! has reserved is the rest.
//!
//! Invariants:
//! - [`VolumeRecord::own_extents`](crate::format::page::VolumeRecord) is never more than that, so what is
//!   reserved is enough. What the volume itself changes is followed at once. What others do can only make
//!   more extents its own (the last who shared them is deleted): that is found by counting anew.
//! - Where a write is on its way to an extent that nothing refers to, what it replaces is not known as the
//!   volume's own: it would have been given that instead. So a record that first refers to an extent always
//!   uses up what was reserved for it. A write that was given up while its record was on its way, and is
//!   followed by another one to the same place, is counted beside that.
//! - Counting goes on while the volume is changed: what changes under a leaf that was counted is followed.
//!   A share of the volume, which takes all of its own away, ends the counting, as does its removal.

use super::{State, corrupt, map::Way};
use crate::{
    error::PoolError,
    format::{
        BLOCKS_PER_EXTENT,
        page::{Entry, Kind},
    },
};

/// A count under way.
#[derive(Debug)]
pub(crate) struct Recount {
    volume: u32,
    /// Leaves before this one are counted.
    next: u64,
    own: u64,
}

/// How many more extents of a volume lie in one of its own.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct More {
    /// Of those that are known.
    pub known: i64,
    /// Of all that there are.
    pub there: i64,
}

impl State {
    /// So many more extents of a volume, under one leaf, lie in one of its own.
    pub(super) fn change_own(
        &mut self,
        volume: u32,
        leaf: u64,
        more: More,
    ) -> Result<(), PoolError> {
        if let Some(recount) = &mut self.recount
            && recount.volume == volume
            && leaf < recount.next
        {
            recount.own = recount.own.saturating_add_signed(more.there);
        }
        if more.known == 0 {
            return Ok(());
        }
        self.change_reservation(volume, |record| {
            // Nothing to subtract from: they were not counted.
            record.own_extents = record.own_extents.saturating_add_signed(more.known);
        })
    }

    /// What was counted, in place of what was known.
    pub(super) fn set_own(&mut self, volume: u32, own: u64) -> Result<(), PoolError> {
        let record = self.known(volume)?;
        let all = record.blocks.div_ceil(BLOCKS_PER_EXTENT as u64);
        if record.kind != Kind::Volume || own > all {
            return Err(corrupt("a volume's own extents"));
        }
        self.change_reservation(volume, |record| record.own_extents = own)
    }

    /// Begins to count a volume's own extents.
    pub fn begin_recount(&mut self, volume: u32) {
        self.recount = Some(Recount {
            volume,
            next: 0,
            own: 0,
        });
    }

    pub(super) fn forget_recount(&mut self, volume: u32) {
        if self
            .recount
            .as_ref()
            .is_some_and(|count| count.volume == volume)
        {
            self.recount = None;
        }
    }

    /// This leaf is counted next: those before it were counted, or there are none.
    pub fn recount_reaches(&mut self, volume: u32, leaf: u64) {
        if let Some(recount) = &mut self.recount
            && recount.volume == volume
        {
            recount.next = leaf;
        }
    }

    /// Counts those under a leaf, all before which was counted. What it refers to is in memory.
    pub fn recount_leaf(&mut self, volume: u32, leaf: u64) -> Result<(), PoolError> {
        let own = match self.way(volume, leaf)? {
            Way::Leaf(id, true) => self.own_under(&self.leaf(id)?.entries)?,
            _ => 0,
        };
        if let Some(recount) = &mut self.recount
            && recount.volume == volume
        {
            recount.own += own;
            recount.next = leaf + 1;
        }
        Ok(())
    }

    /// All leaves that there are have been counted.
    pub fn recount_is_over(&mut self, volume: u32) {
        self.recount_reaches(volume, u64::MAX);
    }

    fn own_under(&self, entries: &[Entry]) -> Result<u64, PoolError> {
        let mut own = 0;
        for entry in entries {
            own += u64::from(self.target_of(entry)?.is_some());
        }
        Ok(own)
    }

    /// What was counted, where it is more than what is known.
    pub fn recounted(&self, volume: u32) -> Option<u64> {
        let recount = self.recount.as_ref();
        let recount = recount.filter(|recount| recount.volume == volume)?;
        let record = self.known(volume).ok()?;
        let is_more = record.kind == Kind::Volume && recount.own > record.own_extents;
        is_more.then_some(recount.own)
    }

    /// Volumes that may have more own extents than is known once another one's map has been dropped: those that
    /// reserve some. Where volumes come from does not tell what they share: an inflated one's snapshots
    /// still share with others.
    pub fn to_recount(&self) -> Vec<u32> {
        let reserves = |id: &u32| {
            self.volumes.body(*id).is_some_and(|record| {
                record.kind == Kind::Volume && record.root != 0 && record.unused_reservation() > 0
            })
        };
        self.volumes.ids().filter(reserves).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use corebay_core::rng::Rng;

    use super::*;
    use crate::{
        format::{Extent, record::Record},
        state::map::{View, owners_of},
        walk::tests::{EXTENTS, LEAVES, change},
    };

    /// By looking at all maps of all volumes: how many extents each has of which nobody else's map says
    /// anything.
    fn own_of_each(state: &State) -> HashMap<u32, u64> {
        let mut users: HashMap<Extent, HashSet<u32>> = HashMap::new();
        let mut targets: HashMap<u32, Vec<Extent>> = HashMap::new();
        for volume in state.volumes.ids() {
            targets.insert(volume, Vec::new());
            for index in EXTENTS {
                let (all, target) = match state.view(volume, index) {
                    View::Missing => panic!("all is in memory"),
                    View::Hole => continue,
                    View::Single(extent, ..) => (vec![extent], extent),
                    View::Fragments(page, _) => (owners_of(page), page.target),
                };
                if all.contains(&target) {
                    targets.get_mut(&volume).unwrap().push(target);
                }
                for extent in all {
                    users.entry(extent).or_default().insert(volume);
                }
            }
        }
        let alone = |extent: &&Extent| users[*extent].len() == 1;
        let own = |targets: Vec<Extent>| targets.iter().filter(alone).count() as u64;
        // What was deleted reserves nothing.
        targets
            .into_iter()
            .filter(|(volume, _)| state.known(*volume).is_ok())
            .map(|(volume, targets)| (volume, own(targets)))
            .collect()
    }

    fn known_of(state: &State, volume: u32) -> u64 {
        state.volume(volume).unwrap().own_extents
    }

    #[test]
    fn what_is_known_is_never_too_much_and_what_is_counted_is_all() {
        let (mut gains, mut amid) = (0, 0);
        for seed in 0..60 {
            let (mut state, mut rng, mut last) = (State::of_8_gib(), Rng::from_seed(seed), 0);
            for _ in 0..30 {
                for _ in 0..rng.below(12) {
                    change(&mut state, None, &mut last, &mut rng);
                }
                let ids: Vec<u32> = state.volumes.ids().collect();
                let pick = usize::try_from(rng.below(ids.len().max(1) as u64)).unwrap();
                let Some(volume) = ids.get(pick).copied() else {
                    continue;
                };
                state.begin_recount(volume);
                let mut is_alone = true;
                for leaf in 0..LEAVES {
                    if state.volume(volume).is_err() || state.recount.is_none() {
                        break;
                    }
                    state.recount_leaf(volume, leaf).unwrap();
                    for _ in 0..rng.below(3) * rng.below(2) {
                        change(&mut state, None, &mut last, &mut rng);
                        is_alone = false;
                    }
                }
                let all = own_of_each(&state);
                for (volume, own) in &all {
                    assert!(known_of(&state, *volume) <= *own, "seed {seed}: {volume}");
                }
                state.recount_is_over(volume);
                if let Some(own) = state.recounted(volume) {
                    assert!(own <= all[&volume], "seed {seed}: {volume}");
                    state.apply(&Record::Recount { volume, own }).unwrap();
                    gains += 1;
                    amid += u32::from(!is_alone);
                }
                let is_volume = state.known(volume).is_ok_and(|v| v.kind == Kind::Volume);
                if is_alone && is_volume {
                    let known = known_of(&state, volume);
                    assert_eq!(known, all[&volume], "seed {seed}: {volume}");
                }
            }
        }
        assert!(gains > 50 && amid > 10, "{gains} {amid}");
    }

    /// Writes that were given an extent, and whose records have not taken effect.
    #[derive(Default)]
    struct OnTheirWay(HashMap<(u32, u64), Extent>);

    fn own_target(state: &mut State, volume: u32, index: u64) -> Option<Extent> {
        let target = state.own_target(volume, index, |_| true);
        target.unwrap().alone()
    }

    impl OnTheirWay {
        fn begin(&mut self, state: &mut State, volume: u32, index: u64) {
            if self.0.contains_key(&(volume, index)) {
                return;
            }
            let mut extent = own_target(state, volume, index);
            if extent.is_none() {
                let mut fresh = arrayvec::ArrayVec::<_, 1>::new();
                state.try_extents(0, 1, &mut fresh);
                extent = fresh.pop();
            }
            state.pin(extent.unwrap());
            self.0.insert((volume, index), extent.unwrap());
        }

        /// One of the records for the place takes effect. True where the volume had something of its own
        /// there all the same.
        fn record(&self, state: &mut State, (volume, index): (u32, u64), rng: &mut Rng) -> bool {
            let extent = self.0[&(volume, index)];
            let (is_new, known) = (state.references(extent) == Some(0), known_of(state, volume));
            let beside = is_new && own_target(state, volume, index).is_some();
            let map = Record::Map {
                volume,
                index,
                start: u8::try_from(rng.below(4) * 64).unwrap(),
                count: 64,
                extent,
            };
            state.apply(&map).unwrap();
            assert_eq!(known_of(state, volume), known + u64::from(is_new));
            beside
        }

        fn end(&mut self, state: &mut State, place: (u32, u64)) {
            state.unpin(self.0.remove(&place).unwrap());
        }
    }

    fn of_volume(volume: u32, name: &str, source: Option<u32>) -> Record {
        let (uuid, name) = ([3; 16], name.to_owned());
        match source {
            Some(source) => Record::Share {
                volume,
                source,
                snapshot: false,
                uuid,
                name,
            },
            None => Record::Create {
                volume,
                blocks: 4 * 256,
                thick: true,
                uuid,
                name,
            },
        }
    }

    /// What others leave to a volume while its write to another extent is on its way.
    #[test]
    fn each_extent_that_is_first_referred_to_was_reserved() {
        let mut beside = 0;
        for seed in 0..100 {
            let (mut state, mut rng) = (State::of_8_gib(), Rng::from_seed(seed));
            state.apply(&of_volume(1, "thick", None)).unwrap();
            let mut writes = OnTheirWay::default();
            for index in 0..4 {
                writes.begin(&mut state, 1, index);
                writes.record(&mut state, (1, index), &mut rng);
                writes.end(&mut state, (1, index));
            }
            state.apply(&of_volume(2, "clone", Some(1))).unwrap();
            for _ in 0..60 {
                let place = (1 + rng.below(2) as u32, rng.below(4));
                let is_begun = writes.0.contains_key(&place);
                match rng.below(5) {
                    0 => writes.begin(&mut state, place.0, place.1),
                    1 | 2 if is_begun => {
                        beside += u32::from(writes.record(&mut state, place, &mut rng));
                    }
                    3 if is_begun => writes.end(&mut state, place),
                    4 => {
                        let unmap = Record::Unmap {
                            volume: place.0,
                            first: place.1 * 256 + rng.below(2) * 64,
                            blocks: 64 * (1 + rng.below(3)),
                            keep: rng.below(2) == 0,
                        };
                        state.apply(&unmap).unwrap();
                    }
                    _ => {}
                }
                let released = std::mem::take(&mut state.extents.released);
                released.into_iter().for_each(|extent| state.free(extent));
                for (volume, own) in own_of_each(&state) {
                    assert!(known_of(&state, volume) <= own, "seed {seed}: {volume}");
                }
            }
        }
        assert!(beside > 20, "{beside}");
    }

    fn write(state: &mut State, volume: u32, index: u64) {
        let mut writes = OnTheirWay::default();
        writes.begin(state, volume, index);
        writes.record(state, (volume, index), &mut Rng::from_seed(1));
        writes.end(state, (volume, index));
    }

    #[test]
    fn a_leaf_that_is_made_behind_the_count_is_followed() {
        let mut state = State::of_8_gib();
        let mut create = of_volume(1, "thick", None);
        if let Record::Create { blocks, .. } = &mut create {
            *blocks = LEAVES * 64 * 256;
        }
        state.apply(&create).unwrap();
        write(&mut state, 1, 130);
        state.apply(&of_volume(2, "clone", Some(1))).unwrap();
        state.apply(&Record::Delete { volume: 2 }).unwrap();
        state
            .apply(&Record::Drop {
                volume: 2,
                keep: false,
            })
            .unwrap();
        state.begin_recount(1);
        let leaf = state.next_leaf(1, 0).unwrap().unwrap();
        assert_eq!(leaf, Some(2));
        state.recount_reaches(1, 2);
        // While a page is read that is needed to count under leaf 2.
        write(&mut state, 1, 3);
        state.recount_leaf(1, 2).unwrap();
        state.recount_is_over(1);
        assert_eq!(state.recounted(1), Some(2));
    }

    #[test]
    fn a_count_is_of_the_volume_that_it_was_begun_for() {
        let mut state = State::of_8_gib();
        state.apply(&of_volume(1, "thick", None)).unwrap();
        write(&mut state, 1, 3);
        state.begin_recount(1);
        state.recount_leaf(1, 0).unwrap();
        state.apply(&Record::Delete { volume: 1 }).unwrap();
        let (volume, keep) = (1, false);
        state.apply(&Record::Drop { volume, keep }).unwrap();
        // Another one gets its number.
        state.apply(&of_volume(1, "other", None)).unwrap();
        state.recount_is_over(1);
        assert_eq!(state.recounted(1), None);
    }

    #[test]
    fn a_count_that_cannot_be_is_refused() {
        let (mut state, mut rng, mut last) = (State::of_8_gib(), Rng::from_seed(1), 0);
        while state.volumes.ids().count() == 0 {
            change(&mut state, None, &mut last, &mut rng);
        }
        let volume = state.volumes.ids().next().unwrap();
        let all = state.volume(volume).unwrap().blocks.div_ceil(256);
        for (volume, own) in [(volume, all + 1), (volume, u64::MAX), (99, 0)] {
            assert!(state.apply(&Record::Recount { volume, own }).is_err());
        }
    }
}
