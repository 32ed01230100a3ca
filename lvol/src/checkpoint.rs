//! Checkpoints: the state written down, so that the journal can begin anew.
//!
//! # A checkpoint, step by step
//! 1. In one go, between two records: every page that has changed since the last checkpoint gets a
//!    free place, and so do the pieces of tables that name them. This is the checkpoint's point in time. From
//!    here on records change pages in memory for the next checkpoint; the bytes of a page or a piece are taken
//!    before one changes it, and of all others a few in each turn of the core
//!    ([`Table`](crate::state::table)). A crash: the old checkpoint and the whole journal are there.
//! 2. Pages, pieces and the root are written, twice each, to places that the old checkpoint does not
//!    use; the root goes to the slot that the old one does not use. A crash: as above.
//! 3. The disk is flushed. A crash: as above.
//! 4. The first superblock is written durably. A crash that tears it leaves the second one, and the
//!    old checkpoint; one that does not leaves two superblocks, of which the newer counts: the
//!    new checkpoint, and the journal from the place on that it names.
//! 5. The second superblock is written durably. Before this, neither the places of the old
//!    checkpoint nor its part of the journal are used again, because the older superblock may be the
//!    only one that is left.
//! 6. What only the old checkpoint used is free.

use corebay_core::disk::Disk;
use tracing::error;

use crate::{
    device::{TRANSFER_BYTES, copies_at},
    error::PoolError,
    format::{
        COPIES, Extent, PAGE_BYTES, SUPERBLOCK_AT, crc32c,
        page::PageBytes,
        root::{Root, TABLES},
        superblock::Superblock,
    },
    journal::Position,
    pool::Shared,
    state::{State, extents::Attempt, table::Taken},
    sync::breathe,
};

/// Pages that are taken before others get their turn.
const PAGES_AT_ONCE: usize = 64;

/// A checkpoint that is being taken.
pub(crate) struct Sealing {
    /// With no pieces yet.
    root: Root,
    pieces: [usize; TABLES],
    superblock: Superblock,
    /// Places that are free once it is done.
    pub leaving: Vec<u64>,
    journal_pages: u64,
}

/// What a checkpoint writes.
pub(crate) struct Sealed {
    tables: [Taken; TABLES],
    root: Vec<u8>,
    pub superblock: Superblock,
    pub leaving: Vec<u64>,
    journal_pages: u64,
}

impl State {
    /// Begins to take all that has changed, as it is now. There are places enough.
    pub fn begin_seal(&mut self, generation: u64, journal: Position) -> Result<Sealing, PoolError> {
        let Self {
            nodes,
            counts,
            volumes,
            places,
            ..
        } = self;
        nodes.begin_taking(|| places.take());
        counts.begin_taking(|| places.take());
        volumes.table().begin_taking(|| places.take());
        let mut leaving = std::mem::take(&mut nodes.left);
        leaving.append(&mut counts.left);
        leaving.append(&mut volumes.table().left);
        places.leave(leaving.len());
        let pieces = [
            nodes.pieces_len(),
            counts.pieces_len(),
            volumes.pieces_len(),
        ];
        let chunks = places.chunks.clone();
        let root_len = Root::bytes_for(pieces.iter().sum(), chunks.len());
        if root_len > self.layout.root_bytes {
            return Err(PoolError::TooMany);
        }
        let root = Root {
            generation,
            chunks,
            pieces: Default::default(),
            lens: [nodes.len(), counts.len(), volumes.len()],
        };
        let superblock = Superblock {
            uuid: self.uuid,
            name: self.name.clone(),
            generation,
            layout: self.layout,
            journal_sequence: journal.sequence,
            journal_page: journal.page,
            root_len: u32::try_from(root_len).map_err(|_| PoolError::TooMany)?,
            root_crc: 0,
            owner: self.owner.clone(),
            clean: self.clean,
            thresholds: self.thresholds,
            serials: self.serials,
        };
        Ok(Sealing {
            root,
            pieces,
            superblock,
            leaving,
            journal_pages: 0,
        })
    }

    /// Takes so many more pages at most; how many. None are left where it is fewer.
    pub fn seal_some(&mut self, most: usize) -> usize {
        let mut done = self.nodes.take_some(most);
        done += self.counts.take_some(most - done);
        done + self.volumes.table().take_some(most - done)
    }

    /// All is taken.
    pub fn end_seal(&mut self, sealing: Sealing) -> Sealed {
        let tables = [
            self.nodes.end_taking(),
            self.counts.end_taking(),
            self.volumes.table().end_taking(),
        ];
        let mut root = sealing.root;
        root.pieces = [
            self.nodes.pieces(),
            self.counts.pieces(),
            self.volumes.pieces(),
        ];
        for (pieces, len) in root.pieces.iter_mut().zip(sealing.pieces) {
            // Those that came since are the next one's.
            pieces.truncate(len);
        }
        let mut root = root.encode();
        let mut superblock = sealing.superblock;
        superblock.root_crc = crc32c(&root);
        assert_eq!(root.len(), superblock.root_len as usize, "the root's bytes");
        root.resize(root.len().next_multiple_of(PAGE_BYTES), 0);
        Sealed {
            tables,
            root,
            superblock,
            leaving: sealing.leaving,
            journal_pages: sealing.journal_pages,
        }
    }

    /// Makes more places where the next checkpoint needs them: `Ok` names a page of counts to load.
    pub fn make_places(&mut self) -> Result<Option<u32>, PoolError> {
        while self.places.free() < self.places_needed() {
            let mut pair = [Extent(0); COPIES];
            for at in 0..COPIES {
                match self.find_extent() {
                    Attempt::Got(extent) => pair[at] = extent,
                    other => {
                        pair[..at].iter().for_each(|extent| self.free(*extent));
                        return match other {
                            Attempt::Load(page) => Ok(Some(page)),
                            _ => Err(PoolError::NoSpace),
                        };
                    }
                }
            }
            for extent in pair {
                self.add_reference(extent)?;
            }
            let layout = self.layout;
            self.places.add_chunk(pair, &layout);
        }
        Ok(None)
    }
}

impl<D: Disk> Shared<D> {
    /// Makes checkpoints when they are wanted, until the pool is closed.
    pub async fn make_checkpoints(&self) {
        loop {
            self.checkpoint_wanted
                .until(|| (self.checkpoint_due.get() || self.stopped().is_some()).then_some(()))
                .await;
            // Whoever closed the pool has waited for the last one.
            if self.stopped().is_some() {
                return;
            }
            if let Err(error) = self.checkpoint().await {
                error!(
                    "pool {}: checkpoint: {error}; it takes no more changes",
                    self.name()
                );
                self.fail();
                return;
            }
        }
    }

    /// Makes a checkpoint. Called by one task at a time.
    pub async fn checkpoint(&self) -> Result<(), PoolError> {
        // From when pages get their places until all of them are written nobody looks there.
        let _stay = self.places_stay.acquire(1).await;
        loop {
            let missing = self.state.borrow_mut().make_places()?;
            let Some(page) = missing else { break };
            self.load(crate::state::Missing::Counts(page)).await?;
        }
        self.checkpoint_due.set(false);
        self.checkpoint_under_way.set(true);
        let generation = self.generation.get() + 1;
        let journal_pages = self.journal.used_pages.get();
        let mut sealing = {
            let applied = self.journal.applied.get();
            self.state.borrow_mut().begin_seal(generation, applied)?
        };
        sealing.journal_pages = journal_pages;
        self.journal.metadata_room.set(0);
        self.journal.sure_room.set(0);
        while self.state.borrow_mut().seal_some(PAGES_AT_ONCE) == PAGES_AT_ONCE {
            breathe(&self.reactor).await;
        }
        let sealed = self.state.borrow_mut().end_seal(sealing);
        self.write_sealed(&sealed).await?;
        let mut state = self.state.borrow_mut();
        state.places.release_left(&sealed.leaving);
        drop(state);
        self.generation.set(generation);
        self.checkpoint_under_way.set(false);
        let journal = &self.journal;
        journal
            .used_pages
            .set(journal.used_pages.get() - sealed.journal_pages);
        journal.progress.notify();
        self.checkpoint_done.notify();
        Ok(())
    }

    async fn write_sealed(&self, sealed: &Sealed) -> Result<(), PoolError> {
        let layout = sealed.superblock.layout;
        let pages = sealed.tables.iter().flatten();
        let mut pages: Vec<(u64, &PageBytes)> = pages.map(|(at, page)| (*at, page)).collect();
        pages.sort_unstable_by_key(|(at, _)| *at);
        let mut rest = &pages[..];
        while !rest.is_empty() {
            let at = copies_at(&self.state.borrow().places, rest[0].0, &layout)?;
            let follows = |number: &usize| {
                let place = rest[*number].0;
                let there = copies_at(&self.state.borrow().places, place, &layout);
                let offset = (*number * PAGE_BYTES) as u64;
                there == Ok([at[0] + offset, at[1] + offset])
            };
            let most = rest.len().min(TRANSFER_BYTES / PAGE_BYTES);
            let count = (0..most).take_while(follows).count();
            let (now, later) = rest.split_at(count);
            let bytes: Vec<u8> = now.iter().flat_map(|(_, page)| **page).collect();
            self.write_again(async || self.device.write_copies(at, &bytes).await)
                .await?;
            self.metadata_written
                .set(self.metadata_written.get() + bytes.len() as u64);
            rest = later;
        }
        let generation = sealed.superblock.generation;
        let root_at = [layout.root_at(0, generation), layout.root_at(1, generation)];
        self.write_again(async || self.device.write_copies(root_at, &sealed.root).await)
            .await?;
        #[cfg(corebay_fault)]
        let early = corebay_core::fault::is(corebay_core::fault::Fault::PoolSuperblockEarly);
        #[cfg(not(corebay_fault))]
        let early = false;
        if !early {
            self.device.flush().await?;
        }
        for at in SUPERBLOCK_AT {
            self.write_again(async || self.device.write_superblock(at, &sealed.superblock).await)
                .await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashMap};

    use corebay_core::rng::Rng;

    use super::*;
    use crate::{
        format::{
            page::{Body, POINTERS_PER_PIECE, Piece},
            root::Pointer,
        },
        state::table::Table,
        walk::tests::change,
    };

    type Pages = Vec<Option<(u32, PageBytes)>>;

    /// What a table holds: which pages there are, their numbers and bytes. All are in memory.
    fn held<B: Body>(table: &Table<B>) -> Pages {
        let page = |id| table.body(id).map(|body| body.encode(u64::from(id)));
        let all = 0..table.len();
        all.map(|id| page(id).map(|page| (table.number(id), page)))
            .collect()
    }

    fn all_held(state: &State) -> [Pages; TABLES] {
        [
            held(&state.nodes),
            held(&state.counts),
            held(&state.volumes),
        ]
    }

    type Medium = HashMap<u64, PageBytes>;

    fn page_at(medium: &Medium, pointer: &Pointer) -> PageBytes {
        let page = medium[&pointer.location.get()];
        assert_eq!(crc32c(&page), pointer.crc.get());
        page
    }

    /// What the medium holds by a root, and the places that this takes.
    fn written(medium: &Medium, root: &Root) -> ([Pages; TABLES], BTreeSet<u64>) {
        let (mut tables, mut places) = (<[Vec<_>; TABLES]>::default(), BTreeSet::new());
        for (table, found) in tables.iter_mut().enumerate() {
            for (number, piece) in root.pieces[table].iter().enumerate() {
                assert!(places.insert(piece.location.get()));
                let Piece(pointers) = Piece::parse(&page_at(medium, piece), number as u64).unwrap();
                let len = root.lens[table] as usize - number * POINTERS_PER_PIECE;
                for pointer in &pointers[..len.min(POINTERS_PER_PIECE)] {
                    let is_there = pointer.location.get() != 0;
                    assert!(!is_there || places.insert(pointer.location.get()));
                    let page = is_there.then(|| page_at(medium, pointer));
                    found.push(page.map(|page| (pointer.number.get(), page)));
                }
            }
        }
        (tables, places)
    }

    #[test]
    fn what_is_sealed_is_one_point_in_time_and_is_taken_a_few_pages_at_a_time() {
        let (mut amid, mut pieces, mut beyond) = (0, 0, 0);
        for seed in 0..12 {
            let (mut state, mut rng, mut last) = (State::of_8_gib(), Rng::from_seed(seed), 0);
            let mut medium = Medium::new();
            // Nodes lie on both sides of a piece's end.
            state.nodes.grow(POINTERS_PER_PIECE as u32 - 4);
            for generation in 1..14 {
                for _ in 0..rng.below(60) {
                    change(&mut state, None, &mut last, &mut rng);
                }
                assert_eq!(state.make_places(), Ok(None));
                beyond += usize::from(state.nodes.pieces_len() > 1);
                let expected = all_held(&state);
                let sealing = state.begin_seal(generation, Position::default());
                let sealing = sealing.unwrap();
                loop {
                    let most = 1 + usize::try_from(rng.below(5)).unwrap();
                    let taken = state.seal_some(most);
                    assert!(taken <= most);
                    pieces += 1;
                    if taken < most {
                        break;
                    }
                    for _ in 0..rng.below(4) {
                        change(&mut state, None, &mut last, &mut rng);
                        amid += 1;
                    }
                }
                let sealed = state.end_seal(sealing);
                medium.extend(sealed.tables.iter().flatten().copied());
                let len = sealed.superblock.root_len as usize;
                assert_eq!(crc32c(&sealed.root[..len]), sealed.superblock.root_crc);
                let root = Root::parse(&sealed.root[..len], state.layout.extents()).unwrap();
                let (found, places) = written(&medium, &root);
                assert!(found == expected, "seed {seed}, checkpoint {generation}");
                state.places.release_left(&sealed.leaving);
                // What it names is given to nobody else.
                let free = |place: &u64| state.places.mark_used(*place);
                assert!(!places.iter().any(free), "seed {seed}");
                medium.retain(|place, _| places.contains(place));
            }
        }
        assert!(
            amid > 500 && pieces > 500 && beyond > 100,
            "{amid} {pieces} {beyond}"
        );
    }
}
