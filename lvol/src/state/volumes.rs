//! A pool's volumes: the table of their records, and where each is found by what it is called.
//!
//! Invariants:
//! - The index says of every record that is in memory what the record itself says: whatever changes a name, an
//!   identifier, an origin, an export or the kind goes through [`Volumes::change_known`].
//! - What it costs to find a volume, a free number or a deleted volume does not grow with how many there are
//!   but as a tree's height.
//! - Two volumes may have one name where a pool was forged: the one with the lower number is found.

use std::{collections::BTreeSet, ops::Deref};

use super::table::Table;
use crate::format::{
    export::Export,
    page::{Kind, VolumeRecord},
};

/// The volumes. What only looks at them goes to the table itself.
#[derive(Debug)]
pub(crate) struct Volumes {
    table: Table<VolumeRecord>,
    index: Index,
    /// Numbers below the table's length that name no record.
    gaps: BTreeSet<u32>,
}

/// Which records there are, by what they say. Deleted ones are among `dying` alone.
#[derive(Debug, Default, PartialEq, Eq)]
struct Index {
    names: BTreeSet<(String, u32)>,
    uuids: BTreeSet<([u8; 16], u32)>,
    origins: BTreeSet<(u32, u32)>,
    /// By subsystem and namespace.
    exports: BTreeSet<(String, u32, u32)>,
    dying: BTreeSet<u32>,
}

impl Index {
    fn add(&mut self, id: u32, record: &VolumeRecord) {
        if record.kind == Kind::Dying {
            self.dying.insert(id);
            return;
        }
        self.names.insert((record.name.clone(), id));
        self.uuids.insert((record.uuid, id));
        self.origins.insert((record.origin, id));
        if let Some(Export {
            subsystem, nsid, ..
        }) = &record.export
        {
            self.exports.insert((subsystem.clone(), *nsid, id));
        }
    }

    fn remove(&mut self, id: u32, record: &VolumeRecord) {
        if record.kind == Kind::Dying {
            self.dying.remove(&id);
            return;
        }
        self.names.remove(&(record.name.clone(), id));
        self.uuids.remove(&(record.uuid, id));
        self.origins.remove(&(record.origin, id));
        if let Some(Export {
            subsystem, nsid, ..
        }) = &record.export
        {
            self.exports.remove(&(subsystem.clone(), *nsid, id));
        }
    }
}

impl Deref for Volumes {
    type Target = Table<VolumeRecord>;

    fn deref(&self) -> &Self::Target {
        &self.table
    }
}

impl Volumes {
    /// Those of a table of which no record is in memory yet.
    pub fn new(table: Table<VolumeRecord>) -> Self {
        let gaps = (1..table.len()).filter(|id| !table.exists(*id)).collect();
        Self {
            table,
            index: Index::default(),
            gaps,
        }
    }

    /// The table, for what a checkpoint does to it.
    pub fn table(&mut self) -> &mut Table<VolumeRecord> {
        &mut self.table
    }

    /// The record, to change what no index holds.
    pub fn change(&mut self, id: u32) -> Option<&mut VolumeRecord> {
        self.table.change(id)
    }

    /// Changes what a volume is known by.
    pub fn change_known<R>(
        &mut self,
        id: u32,
        change: impl FnOnce(&mut VolumeRecord) -> R,
    ) -> Option<R> {
        let record = self.table.change(id)?;
        self.index.remove(id, record);
        let changed = change(record);
        self.index.add(id, record);
        Some(changed)
    }

    /// Puts a new record where there is none.
    pub fn put(&mut self, id: u32, record: VolumeRecord) {
        self.gaps.extend(self.table.len().max(1)..id);
        self.gaps.remove(&id);
        self.index.add(id, &record);
        self.table.put(id, record, 1);
    }

    /// Puts the record that was read from its place.
    pub fn install(&mut self, id: u32, record: VolumeRecord) {
        self.index.add(id, &record);
        self.table.install(id, record);
    }

    pub fn remove(&mut self, id: u32) {
        if let Some(record) = self.table.body(id) {
            self.index.remove(id, record);
            self.gaps.insert(id);
        }
        self.table.remove(id);
    }

    /// The lowest number after this one that no record has.
    pub fn free_after(&self, beyond: u32) -> u32 {
        let first = beyond + 1;
        let gap = self.gaps.range(first..).next().copied();
        gap.unwrap_or(first.max(self.table.len()))
    }

    /// The volume or snapshot of this name.
    pub fn named(&self, name: &str) -> Option<u32> {
        let from = (name.to_owned(), 0);
        let (found, id) = self.index.names.range(from..).next()?;
        (found == name).then_some(*id)
    }

    /// Those that have this UUID.
    pub fn of_uuid(&self, uuid: [u8; 16]) -> impl Iterator<Item = u32> + '_ {
        let range = (uuid, 0)..=(uuid, u32::MAX);
        self.index.uuids.range(range).map(|(_, id)| *id)
    }

    /// Those that say that they come from this one, itself too where it comes from nowhere.
    pub fn of_origin(&self, origin: u32) -> impl Iterator<Item = u32> + '_ {
        let range = (origin, 0)..=(origin, u32::MAX);
        self.index.origins.range(range).map(|(_, id)| *id)
    }

    /// All that are exported.
    pub fn exported(&self) -> impl Iterator<Item = u32> + '_ {
        self.index.exports.iter().map(|(.., id)| *id)
    }

    /// Those that are exported in a subsystem: their namespaces, from the lowest on, and the volumes.
    pub fn exported_in<'a>(&'a self, nqn: &'a str) -> impl Iterator<Item = (u32, u32)> + 'a {
        let from = (nqn.to_owned(), 0, 0);
        let all = self.index.exports.range(from..);
        all.take_while(move |(subsystem, ..)| subsystem == nqn)
            .map(|(_, nsid, id)| (*nsid, *id))
    }

    /// Those that were deleted and are not removed yet.
    pub fn dying(&self) -> impl Iterator<Item = u32> + '_ {
        self.index.dying.iter().copied()
    }
}

#[cfg(test)]
impl Volumes {
    /// True where the index says what looking at all records says.
    pub fn is_indexed(&self) -> bool {
        let mut slow = Index::default();
        for id in self.table.ids() {
            slow.add(id, self.table.body(id).expect("it is in memory"));
        }
        let gaps = (1..self.table.len()).filter(|id| !self.table.exists(*id));
        slow == self.index && gaps.collect::<BTreeSet<u32>>() == self.gaps
    }
}

#[cfg(test)]
mod tests {
    use corebay_core::rng::Rng;

    use super::*;
    use crate::{
        format::{record::Record, root::Pointer},
        state::State,
        walk::tests::change,
    };

    const NQNS: [&str; 3] = ["nqn.a", "nqn.ab", "nqn.b"];

    fn pick(among: &[u32], rng: &mut Rng) -> u32 {
        among[usize::try_from(rng.below(among.len() as u64)).unwrap()]
    }

    /// A change of what one of the volumes is known by.
    fn renaming(living: &[u32], rng: &mut Rng) -> Record {
        let volume = pick(living, rng);
        let few = u8::try_from(rng.below(6)).unwrap();
        match rng.below(4) {
            0 => Record::Rename {
                volume,
                name: format!("v{few}"),
            },
            1 => Record::Identity {
                volume,
                uuid: [few; 16],
                nguid: [0; 16],
                eui64: [0; 8],
            },
            2 => Record::Origin {
                volume,
                origin: pick(living, rng),
            },
            _ => {
                let export = Export {
                    subsystem: NQNS[usize::from(few) % 3].to_owned(),
                    nsid: 1 + u32::from(few),
                    allow_any_host: true,
                    ..Export::default()
                };
                let bytes = if few == 5 { None } else { export.encode() };
                Record::Export {
                    volume,
                    bytes: bytes.unwrap_or_default(),
                }
            }
        }
    }

    fn living(state: &State) -> Vec<u32> {
        let all = state.volumes.ids();
        all.filter(|id| state.known(*id).is_ok()).collect()
    }

    /// Everything that is asked of the index, by looking at all records.
    fn compare(state: &State, seed: u64) {
        let volumes = &state.volumes;
        assert!(volumes.is_indexed(), "seed {seed}");
        let living = living(state);
        let of = |id: &u32| volumes.body(*id).unwrap();
        let those = |is_it: &dyn Fn(&VolumeRecord) -> bool| -> Vec<u32> {
            living.iter().copied().filter(|id| is_it(of(id))).collect()
        };
        for few in 0..6_u8 {
            let name = format!("v{few}");
            let named = those(&|record| record.name == name);
            assert_eq!(volumes.named(&name), named.first().copied());
            let found: Vec<u32> = volumes.of_uuid([few; 16]).collect();
            assert_eq!(found, those(&|record| record.uuid == [few; 16]));
        }
        for nqn in NQNS {
            let of_it = |record: &VolumeRecord| {
                let export = record.export.as_ref();
                export.is_some_and(|export| export.subsystem == nqn)
            };
            let mut slow: Vec<(u32, u32)> = those(&of_it)
                .into_iter()
                .map(|id| (of(&id).export.as_ref().unwrap().nsid, id))
                .collect();
            slow.sort_unstable();
            assert_eq!(volumes.exported_in(nqn).collect::<Vec<_>>(), slow);
        }
        let is_dying = |id: &u32| of(id).kind == Kind::Dying;
        let dying: Vec<u32> = volumes.ids().filter(is_dying).collect();
        assert_eq!(volumes.dying().collect::<Vec<_>>(), dying);
        for id in 0..volumes.len() + 3 {
            let found: Vec<u32> = volumes.of_origin(id).collect();
            assert_eq!(found, those(&|record| record.origin == id));
            let free = (id + 1..).find(|id| !volumes.exists(*id)).unwrap();
            assert_eq!(volumes.free_after(id), free);
        }
    }

    #[test]
    fn what_is_found_is_what_looking_at_all_volumes_finds() {
        let (mut exported, mut dying) = (0, 0);
        for seed in 0..40 {
            let (mut state, mut rng, mut last) = (State::of_8_gib(), Rng::from_seed(seed), 0);
            for _ in 0..120 {
                let living = living(&state);
                match living.is_empty() || rng.below(2) == 0 {
                    true => change(&mut state, None, &mut last, &mut rng),
                    false => state.apply(&renaming(&living, &mut rng)).unwrap(),
                }
                compare(&state, seed);
                exported += state.volumes.exported().count();
                dying += state.volumes.dying().count();
            }
        }
        assert!(exported > 1000 && dying > 1000, "{exported} {dying}");
    }

    #[test]
    fn numbers_that_a_checkpoint_has_left_free_are_used_again() {
        let pointer = |location: u64| Pointer {
            location: location.into(),
            ..Pointer::default()
        };
        let pointers = [0, 7, 0, 0, 9].map(pointer);
        let pieces = vec![pointer(3)];
        let mut volumes = Volumes::new(Table::load(pieces, pointers.into_iter()));
        let record = |name: &str| VolumeRecord::new(Kind::Volume, [1; 16], name);
        for (id, name) in [(1, "a"), (4, "b")] {
            volumes.install(id, record(name));
        }
        let mut free = Vec::new();
        for _ in 0..3 {
            free.push(volumes.free_after(0));
            volumes.put(free[free.len() - 1], record("c"));
        }
        assert_eq!(free, [2, 3, 5]);
        volumes.put(9, record("d"));
        assert_eq!((volumes.free_after(5), volumes.free_after(8)), (6, 10));
        assert!(volumes.is_indexed());
        assert_eq!((volumes.named("b"), volumes.named("e")), (Some(4), None));
    }
}
