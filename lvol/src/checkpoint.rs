//! Checkpoints: the state written down, so that the journal can begin anew.
//!
//! # A checkpoint, step by step
//! 1. In one go, between two records: every page that has changed since the last checkpoint gets a
//!    free place and its bytes are taken; so are the pieces of tables that name them, and the root.
//!    From here on records change pages in memory for the next checkpoint. A crash: the old
//!    checkpoint and the whole journal are there.
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
        page::{POINTERS_PER_PIECE, PageBytes, Piece},
        root::{Pointer, Root},
        superblock::Superblock,
    },
    journal::Position,
    pool::Shared,
    state::{State, extents::Attempt},
};

/// What a checkpoint writes.
pub(crate) struct Sealed {
    pages: Vec<(u64, PageBytes)>,
    root: Vec<u8>,
    pub superblock: Superblock,
    /// Places that are free once it is done.
    pub leaving: Vec<u64>,
    journal_pages: u64,
}

fn piece_of(pointers: &[Pointer]) -> Piece {
    let mut all = [Pointer::default(); POINTERS_PER_PIECE];
    all[..pointers.len()].copy_from_slice(pointers);
    Piece(Box::new(all))
}

impl State {
    /// Takes all that has changed. There are places enough.
    pub fn seal(&mut self, generation: u64, journal: Position) -> Result<Sealed, PoolError> {
        let mut pages = Vec::new();
        let Self {
            nodes,
            counts,
            volumes,
            places,
            ..
        } = self;
        let mut write = |page: PageBytes| {
            let place = places.take();
            let crc = crc32c(&page);
            pages.push((place, page));
            (place, crc)
        };
        nodes.seal(&mut write, piece_of);
        counts.seal(&mut write, piece_of);
        volumes.seal(&mut write, piece_of);
        let mut leaving = std::mem::take(&mut nodes.left);
        leaving.append(&mut counts.left);
        leaving.append(&mut volumes.left);
        places.leave(leaving.len());
        let root = Root {
            generation,
            chunks: places.chunks.clone(),
            pieces: [nodes.pieces(), counts.pieces(), volumes.pieces()],
            lens: [nodes.len(), counts.len(), volumes.len()],
        };
        let mut root = root.encode();
        let root_len = u32::try_from(root.len()).map_err(|_| PoolError::TooMany)?;
        if u64::from(root_len) > self.layout.root_bytes {
            return Err(PoolError::TooMany);
        }
        let superblock = Superblock {
            uuid: self.uuid,
            name: self.name.clone(),
            generation,
            layout: self.layout,
            journal_sequence: journal.sequence,
            journal_page: journal.page,
            root_len,
            root_crc: crc32c(&root),
            owner: self.owner.clone(),
            clean: self.clean,
            thresholds: self.thresholds,
            serials: self.serials,
        };
        root.resize(root.len().next_multiple_of(PAGE_BYTES), 0);
        Ok(Sealed {
            pages,
            root,
            superblock,
            leaving,
            journal_pages: 0,
        })
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
        let mut sealed = {
            let applied = self.journal.applied.get();
            self.state.borrow_mut().seal(generation, applied)?
        };
        sealed.journal_pages = journal_pages;
        self.journal.metadata_room.set(0);
        self.journal.sure_room.set(0);
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
        let mut rest = &sealed.pages[..];
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
            let bytes: Vec<u8> = now.iter().flat_map(|(_, page)| *page).collect();
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
