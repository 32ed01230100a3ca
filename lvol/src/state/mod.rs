//! The state of a pool in memory: tables of pages, extents, volumes.
//!
//! Invariants:
//! - What a checkpoint writes is this state between two records; what is not on the disk (owned
//!   marks, busy extents, pins) can be forgotten at any time.
//! - Nothing here does I/O. What a record needs in memory is loaded before it is applied
//!   ([`State::missing_for`]).
//! - Leaves and pages of fragments that have not changed leave memory when there are too many
//!   ([`State::evict`]); never while somebody is between finding them there and using them.

pub(crate) mod apply;
pub(crate) mod diff;
pub(crate) mod extents;
pub(crate) mod map;
pub(crate) mod more;
pub(crate) mod own;
pub(crate) mod places;
pub(crate) mod share;
pub(crate) mod table;
pub(crate) mod volumes;

use self::{extents::Extents, places::Places, table::Table, volumes::Volumes};
use crate::{
    error::PoolError,
    format::{
        Extent, Layout, VOLUMES_MAX,
        page::{COUNTS_PER_PAGE, Counts, Entry, Node, NodeId, POINTERS_PER_PIECE, VolumeRecord},
        record::Record,
        root::Root,
        superblock::{Owner, Thresholds},
    },
};

/// The most pages that change between two checkpoints, in a pool of many extents.
const DIRTY_PAGES_MAX: u64 = 4096;
const DIRTY_PAGES_MIN: u64 = 24;

/// Pages that a record adds at most: the way to a leaf anew, the leaf, two pages of fragments. Of counts and
/// pieces of tables it may change any number; there is a place for each of these.
const PAGES_ADDED_MOST: usize = 8;

/// For so many reserved extents a page is kept: a leaf for each 64 of them, and nodes above it.
const LEAVES_OF_RESERVED: u64 = 56;

/// Pages that a record may change, as a guess for how many records may wait.
pub(crate) const PAGES_PER_RECORD: usize = 2;

/// Who has to leave how much of the space for metadata to the others, in quarters of
/// [`State::dirty_hard`]: nobody takes what those below rely on.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Spared {
    /// Who maps extents that it was given.
    Mapping = 3,
    /// Who is given extents that it has reserved.
    Reserved = 4,
    /// What hosts deallocate of maps that are shared.
    Unmap = 5,
    /// New volumes and snapshots.
    Volumes = 6,
    /// Data.
    Data = 8,
}

pub(crate) fn corrupt(what: &str) -> PoolError {
    PoolError::Corrupt(what.to_owned())
}

/// A page that has to be read before a record can be applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    Node(NodeId),
    Counts(u32),
}

/// The state.
#[derive(Debug)]
pub(crate) struct State {
    pub layout: Layout,
    pub uuid: [u8; 16],
    pub name: String,
    /// The machine that has the pool.
    pub owner: Option<Owner>,
    /// The next checkpoint is the pool's last one before it is closed.
    pub clean: bool,
    pub thresholds: Thresholds,
    /// What the next volume's serial is counted from.
    pub serials: u64,
    pub nodes: Table<Node>,
    pub counts: Table<Counts>,
    pub volumes: Volumes,
    pub extents: Extents,
    pub places: Places,
    /// Numbers of nodes that are free.
    pub free_nodes: Vec<NodeId>,
    /// How often pages were dropped from memory.
    pub evictions: u64,
    /// How often each volume was shared since the pool was opened.
    pub epochs: Vec<u32>,
    /// A count of a node or of an extent has fallen to one since this was last taken: somebody may be alone
    /// with what others are still looking at.
    pub fell_to_one: bool,
    /// Whose own extents are being counted.
    pub recount: Option<own::Recount>,
}

impl State {
    /// The state of a new pool.
    pub fn new(layout: Layout, uuid: [u8; 16], name: String) -> Self {
        let mut state = Self {
            layout,
            uuid,
            name,
            owner: None,
            clean: false,
            thresholds: Thresholds::default(),
            serials: 0,
            nodes: Table::new(),
            counts: Table::new(),
            volumes: Volumes::new(Table::new()),
            extents: Extents::default(),
            places: Places::default(),
            free_nodes: Vec::new(),
            evictions: 0,
            epochs: Vec::new(),
            fell_to_one: false,
            recount: None,
        };
        // Number 0 is nobody.
        state.nodes.grow(1);
        state.volumes.table().grow(1);
        state.grow_extents(0, layout.extents());
        state
    }

    /// A checkpoint is due once so many pages have changed.
    pub fn dirty_soft(&self) -> usize {
        let pages = self.layout.extents() / 64;
        let pages = pages.clamp(DIRTY_PAGES_MIN, DIRTY_PAGES_MAX);
        usize::try_from(pages).expect("few")
    }

    /// No more pages than these change before a checkpoint has been made.
    pub fn dirty_hard(&self) -> usize {
        self.dirty_soft() * 2
    }

    pub fn dirty_pages(&self) -> usize {
        self.nodes.dirty_pages() + self.counts.dirty_pages() + self.volumes.dirty_pages()
    }

    /// True where everything that a node refers to can be there.
    pub fn is_sane_node(&self, node: &Node) -> bool {
        let known = |id: NodeId| self.nodes.exists(id) && self.nodes.number(id) > 0;
        let within = |extent: Extent| extent.0 < self.layout.extents();
        match node {
            Node::Inner(children) => children.iter().all(|id| *id == 0 || known(*id)),
            Node::Leaf(leaf) => leaf.entries.iter().all(|entry| match entry {
                Entry::Fragments(page) => known(*page),
                other => other.single().is_none_or(|(extent, _)| within(extent)),
            }),
            Node::Fragments(fragments) => {
                let owners = fragments.owners.iter().copied();
                within(fragments.target) && owners.filter_map(Extent::from_stored).all(within)
            }
        }
    }

    /// True where a page of counts agrees with what its table says of it.
    pub fn is_sane_counts(&self, page: u32, counts: &Counts) -> bool {
        let first = u64::from(page) * COUNTS_PER_PAGE as u64;
        let len = self.layout.extents().saturating_sub(first);
        let len = usize::try_from(len)
            .unwrap_or(usize::MAX)
            .min(COUNTS_PER_PAGE);
        let free = counts.references[..len].iter().filter(|count| **count == 0);
        free.count() == self.counts.number(page) as usize
    }

    /// Places that the next checkpoint needs.
    pub fn places_needed(&self) -> usize {
        self.nodes.places_needed() + self.counts.places_needed() + self.volumes.places_needed()
    }

    /// True where the root would have no room for the pages that these and the changes under way may
    /// add: only what frees pages is changed then.
    pub fn root_is_full(&self, records: usize) -> bool {
        let more = records * PAGES_PER_RECORD + self.dirty_hard() * 2;
        let numbers = more.saturating_sub(self.free_nodes.len());
        let tables = [
            self.nodes.len() as usize + numbers,
            self.counts.len() as usize,
            self.volumes.len() as usize + records,
        ];
        let pieces: usize = tables
            .map(|len| len.div_ceil(POINTERS_PER_PIECE))
            .iter()
            .sum();
        let pages = self.layout.pages_per_extent() as usize;
        let needed = self.places_needed() + more + pieces + self.counts.len() as usize;
        let places = needed.saturating_sub(self.places.free());
        let chunks = self.places.chunks.len() + places.div_ceil(pages);
        Root::bytes_for(pieces, chunks) > self.layout.root_bytes
    }

    /// Drops leaves and fragments from memory that can be read again, so that about `most` are left.
    /// No checkpoint is being written, and nobody relies on pages that they have found.
    pub fn evict(&mut self, most: usize) {
        // Some more, so that it is not done for each page that is read.
        let least = most - most / 8;
        let inner = |node: &Node| !matches!(node, Node::Inner(_));
        if self.nodes.held() > most && self.nodes.evict(least, inner) > 0 {
            self.evictions += 1;
        }
    }

    /// Extents that must stay free for metadata while somebody takes others.
    pub fn extents_for_metadata(&self, for_whom: Spared) -> u64 {
        self.extents_for_pages(for_whom, 0)
    }

    /// The same where records may add so many pages. What has changed counts as if it were as much as
    /// ever may: who is refused does not depend on when the last checkpoint was. Counts and pieces do so,
    /// too: a copy of a leaf refers to extents all over the pool.
    fn extents_for_pages(&self, for_whom: Spared, more: usize) -> u64 {
        let hard = self.dirty_hard();
        let changed = self.nodes.dirty_pages() + self.volumes.dirty_pages();
        let pieces = self.nodes.pieces_len() + self.counts.pieces_len() + self.volumes.pieces_len();
        let fixed = self.counts.len() as usize + pieces;
        // In a small pool these are few, and lie in what is spared anyway.
        let fixed = fixed.saturating_sub(hard / 8);
        let needed = changed.max(hard) + fixed + hard * for_whom as usize / 4 + more;
        let reserved = self.extents.reserved;
        let maps = reserved / LEAVES_OF_RESERVED + reserved.min(PAGES_ADDED_MOST as u64);
        let missing = (needed as u64 + maps).saturating_sub(self.places.free_soon() as u64);
        2 * missing.div_ceil(self.layout.pages_per_extent())
    }

    /// Whether so many records that may add pages, `added` the last of them, leave space enough for all
    /// that has to be written down. A pool without that space could neither make its checkpoint nor be
    /// opened again.
    pub fn has_space_for_pages(&self, records: usize, added: &[Record]) -> bool {
        let needed = self.extents_needed(records, added);
        self.extents.unreferenced - self.extents.busy >= needed
    }

    /// Whether a record will be taken once all writes that are on their way to free extents, which may be
    /// reserved as well, have arrived there. Where none are, nothing is to be waited for.
    pub fn has_space_soon(&self, record: &Record) -> bool {
        let needed = self.extents_needed(1, std::slice::from_ref(record));
        self.extents.busy > 0 && self.extents.unreferenced >= needed && !self.root_is_full(1)
    }

    fn extents_needed(&self, records: usize, added: &[Record]) -> u64 {
        let all = |of: fn(&Record) -> bool| added.iter().all(of);
        let promised = self.extents.reserved + self.extents.promised;
        let (for_whom, kept) = match () {
            // Who maps has been given its extents already, which may be reserved ones.
            () if all(|record| matches!(record, Record::Map { .. })) => (Spared::Mapping, 0),
            () if all(|record| matches!(record, Record::Unmap { .. })) => (Spared::Unmap, promised),
            () => (Spared::Volumes, promised),
        };
        kept + self.extents_for_pages(for_whom, records * PAGES_ADDED_MOST)
    }

    /// The same for records of any kind: none of them would be refused.
    pub fn has_ample_space(&self, records: usize) -> bool {
        let promised = self.extents.reserved + self.extents.promised;
        let needed = self.extents_for_pages(Spared::Volumes, records * PAGES_ADDED_MOST);
        self.extents.unreferenced - self.extents.busy >= promised + needed
    }

    pub fn volume(&self, id: u32) -> Result<&VolumeRecord, PoolError> {
        self.volumes.body(id).ok_or(PoolError::NotFound)
    }

    /// Refuses a number for a new volume that is taken, or that no volume has.
    pub fn check_free_id(&self, volume: u32) -> Result<(), PoolError> {
        match (1..VOLUMES_MAX).contains(&volume) && !self.volumes.exists(volume) {
            true => Ok(()),
            false => Err(corrupt("a new volume's number")),
        }
    }

    pub fn new_serial(&mut self) -> u64 {
        self.serials = self.serials.wrapping_add(1);
        self.serials
    }

    pub fn epoch(&self, volume: u32) -> u32 {
        self.epochs.get(volume as usize).copied().unwrap_or(1)
    }

    pub fn new_epoch(&mut self, volume: u32) {
        let at = volume as usize;
        if self.epochs.len() <= at {
            self.epochs.resize(at + 1, 1);
        }
        self.epochs[at] += 1;
        self.forget_recount(volume);
    }
}

#[cfg(test)]
impl State {
    /// A new pool on a disk of 8 GiB.
    pub(crate) fn of_8_gib() -> Self {
        let block_size = corebay_core::units::BlockSize::B4096;
        let layout = Layout {
            block_size,
            disk_blocks: block_size.blocks_in(8 << 30),
            root_bytes: 64 << 10,
            journal_bytes: 128 << 10,
            journal: crate::format::JournalPlace::Disk,
        };
        Self::new(layout, [1; 16], "pool".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use corebay_core::units::BlockSize;

    use super::*;
    use crate::{format::record::Record, journal::Position, state::extents::Attempt};

    #[test]
    fn there_is_a_place_for_all_that_one_record_may_change() {
        for bytes in [16 << 20, 64 << 30, 100 << 40] {
            let layout = Layout {
                block_size: BlockSize::B4096,
                disk_blocks: BlockSize::B4096.blocks_in(bytes),
                root_bytes: 1 << 20,
                journal_bytes: 128 << 10,
                journal: crate::format::JournalPlace::Disk,
            };
            let state = State::new(layout, [1; 16], "pool".to_owned());
            let kept = state.extents_for_metadata(Spared::Mapping) / 2 * layout.pages_per_extent();
            let counts = state.counts.len() as usize + state.counts.pieces_len();
            assert!(kept as usize >= state.dirty_hard() + counts, "{bytes}");
        }
    }

    #[test]
    fn what_is_taken_while_the_root_has_room_can_always_be_written() {
        let layout = Layout {
            block_size: BlockSize::B4096,
            disk_blocks: BlockSize::B4096.blocks_in(64 << 30),
            root_bytes: 1536,
            journal_bytes: 128 << 10,
            journal: crate::format::JournalPlace::Disk,
        };
        let mut state = State::new(layout, [1; 16], "pool".to_owned());
        let create = Record::Create {
            volume: 1,
            blocks: 1 << 36,
            thick: false,
            uuid: [2; 16],
            name: "v".to_owned(),
        };
        state.apply(&create).unwrap();
        let (mut taken, mut generation) = (0, 0);
        // Each in a leaf of its own.
        while !state.root_is_full(1) {
            let mut found = arrayvec::ArrayVec::<_, 1>::new();
            let Attempt::Got(extent) = state.try_extents(0, 1, &mut found) else {
                panic!("there is space");
            };
            let map = Record::Map {
                volume: 1,
                index: taken * 64,
                start: 0,
                count: 1,
                extent,
            };
            state.apply(&map).unwrap();
            taken += 1;
            if state.dirty_pages() >= state.dirty_soft() {
                assert_eq!(state.make_places(), Ok(None));
                generation += 1;
                let sealing = state.begin_seal(generation, Position::default());
                let sealing = sealing.expect("the root has room");
                while state.seal_some(99) == 99 {}
                let sealed = state.end_seal(sealing);
                // Nobody is refused because a checkpoint is being written just now.
                let meanwhile = state.extents_for_pages(Spared::Volumes, 0);
                state.places.release_left(&sealed.leaving);
                assert_eq!(meanwhile, state.extents_for_pages(Spared::Volumes, 0));
            }
        }
        assert!(taken > 1000, "{taken}");
        // Where it is the root that has no room, whoever gives space back waits for nobody.
        let unmap = Record::Unmap {
            volume: 1,
            first: 0,
            blocks: 1,
            keep: false,
        };
        let mut found = arrayvec::ArrayVec::<_, 1>::new();
        state.try_extents(0, 1, &mut found);
        assert!(
            state.extents.busy > 0 && state.has_space_for_pages(1, std::slice::from_ref(&unmap))
        );
        assert!(!state.has_space_soon(&unmap));
        assert_eq!(state.make_places(), Ok(None));
        let last = state.begin_seal(generation + 1, Position::default());
        assert!(last.is_ok());
    }
}
