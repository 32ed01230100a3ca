//! Making a pool, and opening one: the newest checkpoint, and the journal over it.
//!
//! # Making one, step by step
//! 1. Both superblocks are cleared, durably. A crash leaves the pool that was there before, which may
//!    have only one superblock left, or none.
//! 2. The journals are cleared, so that no batch of an earlier attempt under the same UUID counts. Where
//!    they lie in a mirrored zone, its head names the pool from now on. A crash leaves no pool.
//! 3. An empty state is written as the first checkpoint, as any other. A crash leaves no pool, or
//!    the new one.
//!
//! # Opening one, step by step
//! 1. The newest superblock names the root; a superblock that is damaged or older is written again. Where
//!    it says that the journal lies in a mirrored zone, that zone's head has to name the pool.
//! 2. The root names the tables; of the pages only the volumes' are read, those that lie near each other
//!    together. Maps and counts are read when they are needed.
//! 3. The journal is read from the checkpoint's place on, batch by batch, and each record takes effect
//!    as it did when it was written. It ends where no copy has the next batch.
//! 4. If there was a batch, a checkpoint is made, before any other record is taken: so the next
//!    batch never follows one that only one copy holds. A crash before it is complete leaves
//!    everything as it was, and opening begins again. The same checkpoint says who has the pool now.
//!    It skips one number of a batch: what was torn under that number may be whole elsewhere (on a leg of
//!    a mirror that was not read), and must not count later.

use std::{collections::BTreeSet, rc::Rc};

use corebay_core::disk::Disk;
use tracing::info;

use crate::{
    device::{Device, PoolDisk, TRANSFER_BYTES, copies_at},
    error::PoolError,
    format::{
        COPIES, JournalPlace, Layout, PAGE_BYTES, crc32c,
        page::{Body, COUNTS_PER_PAGE, POINTERS_PER_PIECE, PageBytes, Piece, VolumeRecord},
        record::{Batch, Record},
        root::{Pointer, Root},
        superblock::{JOURNAL_BYTES_MIN, Owner, Superblock},
    },
    journal::Position,
    manage::Pool,
    owner::ImportOptions,
    pool::{PoolContext, Shared},
    state::{State, corrupt, table::Table, volumes::Volumes},
};

const PAGE: u64 = PAGE_BYTES as u64;

/// What a new pool is to be.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// Its name.
    pub name: String,
    /// Its identity, drawn by the caller.
    pub uuid: [u8; 16],
    /// The bytes of its journal, or as the disk's size suggests.
    pub journal_bytes: Option<u64>,
}

/// A root's place has a byte for so many bytes of the disk: more than it needs at first, as it cannot
/// grow with the disk.
const ROOT_SHIFT: u32 = 20;

/// And never less than one for so many.
pub(crate) const ROOT_SHIFT_LEAST: u32 = 24;

const ROOT_BYTES_LEAST: u64 = 64 << 10;
const ROOT_BYTES_MOST: u64 = 16 << 20;

/// The least bytes of a root's place for a disk of so many.
pub(crate) fn root_bytes_least(bytes: u64) -> u64 {
    (bytes >> ROOT_SHIFT_LEAST).clamp(ROOT_BYTES_LEAST, ROOT_BYTES_MOST)
}

/// The layout for a disk with a mirrored zone of so many bytes, or none. The journal lies in the zone where
/// that has room for a small one.
fn layout_for(
    info: &corebay_core::disk::DiskInfo,
    zone_bytes: u64,
    options: &CreateOptions,
) -> Result<Layout, PoolError> {
    let bytes = info.bytes();
    let wanted = options
        .journal_bytes
        .unwrap_or((bytes / 1024).clamp(JOURNAL_BYTES_MIN, 4 << 20))
        .max(JOURNAL_BYTES_MIN)
        .next_multiple_of(PAGE);
    let in_zone = Layout::journal_bytes_in_zone(zone_bytes);
    let (journal, journal_bytes) = match in_zone >= JOURNAL_BYTES_MIN {
        true => (JournalPlace::Zone, wanted.min(in_zone)),
        false => (JournalPlace::Disk, wanted),
    };
    let root = (bytes >> ROOT_SHIFT).clamp(ROOT_BYTES_LEAST, ROOT_BYTES_MOST);
    let layout = Layout {
        block_size: info.block_size,
        disk_blocks: info.blocks,
        root_bytes: root.next_multiple_of(PAGE),
        journal_bytes,
        journal,
    };
    Ok(layout)
}

impl<D: Disk> Pool<D> {
    /// Makes a pool on a disk, whatever lay there, and opens it. Where the disk has a mirrored zone, the
    /// journal lies there.
    ///
    /// # Errors
    /// Where the disk is too small or fails.
    pub async fn create(
        context: &PoolContext,
        disk: impl Into<PoolDisk<D>>,
        options: &CreateOptions,
    ) -> Result<Self, PoolError> {
        Self::make(context, disk.into(), options, None).await
    }

    pub(crate) async fn make(
        context: &PoolContext,
        disk: PoolDisk<D>,
        options: &CreateOptions,
        owner: Option<Owner>,
    ) -> Result<Self, PoolError> {
        if options.name.is_empty() || options.name.len() > crate::format::NAME_BYTES_MAX {
            return Err(PoolError::BadName);
        }
        let device = Device::new(disk, context.buffers.clone());
        let layout = layout_for(&device.disk.info(), device.zone_bytes(), options)?;
        let mut state = State::new(layout, options.uuid, options.name.clone());
        state.owner = owner;
        if state.available(0) == 0 {
            return Err(PoolError::TooSmall);
        }
        device.clear(&layout, options.uuid).await?;
        let shared = Shared::new(&context.reactor, device, state, 0);
        shared.journal.applied.set(Position {
            sequence: 1,
            page: 0,
        });
        shared.checkpoint().await?;
        Self::start(context, Rc::new(shared))
    }

    /// Opens the pool on a disk, whoever has it, and leaves it theirs: for tools and tests.
    /// [`import_as`](Self::import_as) is what an appliance does.
    ///
    /// # Errors
    /// Where there is none, or it cannot be trusted.
    pub async fn import(
        context: &PoolContext,
        disk: impl Into<PoolDisk<D>>,
    ) -> Result<Self, PoolError> {
        Self::open_on(context, disk.into(), &ImportOptions::default()).await
    }

    pub(crate) async fn open_on(
        context: &PoolContext,
        disk: PoolDisk<D>,
        options: &ImportOptions,
    ) -> Result<Self, PoolError> {
        let device = Device::new(disk, context.buffers.clone());
        let shared = read(context, device, options).await?;
        let batches = shared.replay().await?;
        if let Some(owner) = &options.owner {
            shared.state.borrow_mut().owner = Some(owner.clone());
        }
        if batches > 0 || options.owner.is_some() {
            shared.skip_batch();
            shared.checkpoint().await?;
        }
        if batches > 0 {
            info!(
                "pool {}: {batches} batches of its journal replayed",
                shared.name()
            );
        }
        Self::start(context, Rc::new(shared))
    }
}

/// The newest checkpoint of the pool on a disk.
pub(crate) async fn read<D: Disk>(
    context: &PoolContext,
    device: Device<D>,
    options: &ImportOptions,
) -> Result<Shared<D>, PoolError> {
    let superblock = device.read_superblock(|found| options.allow(found)).await?;
    let layout = superblock.layout;
    let info = device.disk.info();
    if info.block_size != layout.block_size {
        let (now, then) = (info.block_size, layout.block_size);
        return Err(PoolError::OtherBlocks { now, then });
    }
    if info.blocks < layout.disk_blocks {
        let (now, then) = (info.blocks, layout.disk_blocks);
        return Err(PoolError::WrongDisk(format!(
            "it is smaller than the pool: it has {now} blocks, not {then}"
        )));
    }
    let damaged = device.look_at_zone(&layout, superblock.uuid).await?;
    if !device.read_only.get() {
        device.repaired(damaged);
    }
    let root = read_root(&device, &superblock).await?;
    let state = read_state(&device, &superblock, root).await?;
    let shared = Shared::new(&context.reactor, device, state, superblock.generation);
    shared.journal.applied.set(Position {
        sequence: superblock.journal_sequence,
        page: superblock.journal_page,
    });
    Ok(shared)
}

async fn read_root<D: Disk>(
    device: &Device<D>,
    superblock: &Superblock,
) -> Result<Root, PoolError> {
    let layout = superblock.layout;
    let generation = superblock.generation;
    let len = superblock.root_len as usize;
    let at = [layout.root_at(0, generation), layout.root_at(1, generation)];
    let root = device.read_copies(at, len.next_multiple_of(PAGE_BYTES), |bytes| {
        let bytes = &bytes[..len];
        (crc32c(bytes) == superblock.root_crc).then(|| bytes.to_vec())
    });
    let bytes = root
        .await?
        .ok_or_else(|| corrupt("both copies of the root"))?;
    let root = Root::parse(&bytes, layout.extents()).filter(|root| root.generation == generation);
    root.ok_or_else(|| corrupt("the root's fields"))
}

async fn read_state<D: Disk>(
    device: &Device<D>,
    superblock: &Superblock,
    root: Root,
) -> Result<State, PoolError> {
    let layout = superblock.layout;
    let mut state = State::new(layout, superblock.uuid, superblock.name.clone());
    state.owner.clone_from(&superblock.owner);
    state.thresholds = superblock.thresholds;
    state.serials = superblock.serials;
    let mut extents = BTreeSet::new();
    for pair in &root.chunks {
        if !pair.iter().all(|extent| extents.insert(*extent)) {
            return Err(corrupt("an extent of metadata is named twice"));
        }
        state.places.add_chunk(*pair, &layout);
    }
    let places = root.chunks.len() as u64 * layout.pages_per_extent();
    if root
        .pieces
        .iter()
        .map(|pieces| pieces.len() as u64)
        .sum::<u64>()
        > places
    {
        return Err(corrupt("more pieces of tables than places for them"));
    }
    let [nodes, counts, volumes] = root.pieces;
    let [node_len, count_len, volume_len] = root.lens;
    state.nodes = read_table(device, &state, nodes, node_len).await?;
    state.counts = read_table(device, &state, counts, count_len).await?;
    state.volumes = Volumes::new(read_table(device, &state, volumes, volume_len).await?);
    let all = state
        .nodes
        .places()
        .chain(state.counts.places())
        .chain(state.volumes.places());
    let all: Vec<u64> = all.collect();
    if !all.into_iter().all(|place| state.places.mark_used(place)) {
        return Err(corrupt("two pages have one place"));
    }
    let free = |id: &u32| *id != 0 && !state.nodes.exists(*id);
    state.free_nodes = (0..state.nodes.len()).filter(free).collect();
    let pages = layout.extents().div_ceil(COUNTS_PER_PAGE as u64);
    let most = |page: u32| {
        let before = u64::from(page) * COUNTS_PER_PAGE as u64;
        (layout.extents() - before).min(COUNTS_PER_PAGE as u64)
    };
    let sane = |page: u32| match (u64::from(state.counts.number(page)), most(page)) {
        (free, most) if state.counts.exists(page) => free <= most,
        // Nothing was ever taken of it.
        (free, most) => free == most,
    };
    if u64::from(state.counts.len()) != pages || !(0..state.counts.len()).all(sane) {
        return Err(corrupt("the table of counts"));
    }
    let counted = (0..state.counts.len()).map(|page| u64::from(state.counts.number(page)));
    state.extents.unreferenced = counted.sum();
    state.extents.reserved = 0;
    let mut wanted = Vec::new();
    for id in state.volumes.ids() {
        let place = state.volumes.place(id);
        let (place, crc) = place.ok_or_else(|| corrupt("a volume's place"))?;
        wanted.push(Wanted {
            at: copies_at(&state.places, place, &layout)?,
            crc,
            number: u64::from(id),
        });
    }
    let mut records: Vec<(u32, VolumeRecord)> = Vec::with_capacity(wanted.len());
    let put = |number, record| records.push((u32::try_from(number).expect("an id"), record));
    read_pages(device, wanted, put).await?;
    for (id, record) in records {
        let rooted = record.root == 0 || state.nodes.number(record.root) > 0;
        if !rooted {
            return Err(corrupt("a volume's map is not there"));
        }
        state.extents.reserved += record.unused_reservation();
        state.volumes.install(id, record);
    }
    Ok(state)
}

/// A table, by its pieces.
async fn read_table<D: Disk, B: Body>(
    device: &Device<D>,
    state: &State,
    pieces: Vec<Pointer>,
    len: u32,
) -> Result<Table<B>, PoolError> {
    if (len as usize).div_ceil(POINTERS_PER_PIECE) != pieces.len() {
        return Err(corrupt("a table's length"));
    }
    let mut pointers = vec![Pointer::default(); pieces.len() * POINTERS_PER_PIECE];
    let mut wanted = Vec::with_capacity(pieces.len());
    for (number, piece) in pieces.iter().enumerate() {
        wanted.push(Wanted {
            at: copies_at(&state.places, piece.location.get(), &state.layout)?,
            crc: piece.crc.get(),
            number: number as u64,
        });
    }
    let put = |number: u64, piece: Piece| {
        let first = usize::try_from(number).expect("a piece's number") * POINTERS_PER_PIECE;
        pointers[first..first + POINTERS_PER_PIECE].copy_from_slice(&*piece.0);
    };
    read_pages(device, wanted, put).await?;
    pointers.truncate(len as usize);
    Ok(Table::load(pieces, pointers.into_iter()))
}

/// A page that is to be read.
struct Wanted {
    at: [u64; COPIES],
    crc: u32,
    number: u64,
}

/// Pages with no more than so many bytes between them are read together.
const GAP_BYTES: u64 = 4 * PAGE;

/// Reads pages in the order in which they lie, those that lie near each other by one read of the first
/// copy. What that does not give is read by itself, and mended.
async fn read_pages<D: Disk, B: Body>(
    device: &Device<D>,
    mut wanted: Vec<Wanted>,
    mut take: impl FnMut(u64, B),
) -> Result<(), PoolError> {
    wanted.sort_unstable_by_key(|page| page.at[0]);
    let mut rest = &wanted[..];
    while let [first, ..] = rest {
        let from = first.at[0];
        let near = |pair: &&[Wanted]| {
            let (before, next) = (pair[0].at[0], pair[1].at[0]);
            next - before <= PAGE + GAP_BYTES && next + PAGE - from <= TRANSFER_BYTES as u64
        };
        let count = 1 + rest.windows(2).take_while(near).count();
        let (now, later) = rest.split_at(count);
        let len = now[count - 1].at[0] + PAGE - from;
        let len = usize::try_from(len).expect("at most TRANSFER_BYTES");
        let bytes = device.read(from, len).await.unwrap_or_default();
        for page in now {
            let start = usize::try_from(page.at[0] - from).expect("at most TRANSFER_BYTES");
            let there = bytes.get(start..start + PAGE_BYTES);
            let there: Option<&PageBytes> = there.and_then(|bytes| bytes.try_into().ok());
            let good = there.filter(|there| crc32c(*there) == page.crc);
            let body = match good.and_then(|there| B::parse(there, page.number)) {
                Some(body) => body,
                None => device.read_page(page.at, page.crc, page.number).await?,
            };
            take(page.number, body);
        }
        rest = later;
    }
    Ok(())
}

impl<D: Disk> Shared<D> {
    /// Applies the journal over the checkpoint; how many batches there were.
    pub async fn replay(&self) -> Result<u64, PoolError> {
        let layout = self.state.borrow().layout;
        let mut copies = Vec::new();
        let len = usize::try_from(layout.journal_bytes).expect("checked");
        for copy in 0..COPIES {
            // A copy that cannot be read has no batches.
            copies.push(self.read_journal(&layout, copy, len).await?);
        }
        let mut batches = 0;
        while let Some((batch, page)) = self.next_batch(&copies)? {
            for record in &batch.records {
                self.replay_record(record).await?;
            }
            let released = std::mem::take(&mut self.state.borrow_mut().extents.released);
            released
                .iter()
                .for_each(|extent| self.state.borrow_mut().free(*extent));
            let mut position = self.journal.applied.get();
            position.sequence += 1;
            position.page = page + batch.pages;
            self.journal.applied.set(position);
            batches += 1;
        }
        self.refuse_gap(&copies)?;
        Ok(batches)
    }

    /// A torn batch with the next number may lie anywhere: it must not count once the next checkpoint is
    /// there.
    fn skip_batch(&self) {
        let mut position = self.journal.applied.get();
        position.sequence += 1;
        self.journal.applied.set(position);
    }

    async fn replay_record(&self, record: &Record) -> Result<(), PoolError> {
        if let Record::Extend { blocks } = record
            && *blocks > self.device.disk.info().blocks
        {
            let now = self.device.disk.info().blocks;
            return Err(PoolError::WrongDisk(format!(
                "it has {now} blocks, not {blocks}"
            )));
        }
        let prepared = self.prepare(record).await;
        prepared
            .and_then(|()| self.state.borrow_mut().apply(record))
            .map_err(|error| match error {
                PoolError::NotFound => corrupt("a record names a volume that is not there"),
                other => other,
            })
    }

    /// Reads a copy of the journal; what cannot be read is left zero.
    async fn read_journal(
        &self,
        layout: &Layout,
        copy: usize,
        len: usize,
    ) -> Result<Vec<u8>, PoolError> {
        let mut bytes = vec![0; len];
        let mut done = 0;
        while done < len {
            let part = (len - done).min(TRANSFER_BYTES);
            let read = self.device.read_journal(layout, copy, done as u64, part);
            match read.await {
                Ok(read) => bytes[done..done + part].copy_from_slice(&read),
                Err(corebay_core::disk::DiskError::UnrecoveredRead) => {
                    self.read_journal_pages(layout, copy, &mut bytes, done..done + part)
                        .await?;
                }
                Err(error) => return Err(error.into()),
            }
            done += part;
        }
        Ok(bytes)
    }

    async fn read_journal_pages(
        &self,
        layout: &Layout,
        copy: usize,
        bytes: &mut [u8],
        range: std::ops::Range<usize>,
    ) -> Result<(), PoolError> {
        for from in range.step_by(PAGE_BYTES) {
            let read = self
                .device
                .read_journal(layout, copy, from as u64, PAGE_BYTES);
            match read.await {
                Ok(read) => bytes[from..from + PAGE_BYTES].copy_from_slice(&read),
                Err(corebay_core::disk::DiskError::UnrecoveredRead) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// The batch that comes next, and its page. One that is whole and means nothing is damage: it was
    /// acknowledged.
    fn next_batch(&self, copies: &[Vec<u8>]) -> Result<Option<(Batch, u64)>, PoolError> {
        let uuid = self.state.borrow().uuid;
        let position = self.journal.applied.get();
        let mut meaningless = false;
        // It lies where the last one ended, or at the beginning where it did not fit there.
        for page in [position.page, 0] {
            let at = usize::try_from(page * PAGE).expect("within the journal");
            for bytes in copies.iter().filter_map(|copy| copy.get(at..)) {
                if Batch::sequence_of(bytes, uuid) == Some(position.sequence) {
                    match Batch::parse(bytes, uuid) {
                        Some(batch) => return Ok(Some((batch, page))),
                        None => meaningless = true,
                    }
                }
            }
        }
        match meaningless {
            true => Err(PoolError::Corrupt(format!(
                "batch {} of the journal has records of no meaning",
                position.sequence
            ))),
            false => Ok(None),
        }
    }

    /// A batch is begun only when the one before it is durable: one that comes after the journal's
    /// end shows that acknowledged records were lost.
    fn refuse_gap(&self, copies: &[Vec<u8>]) -> Result<(), PoolError> {
        let uuid = self.state.borrow().uuid;
        let end = self.journal.applied.get().sequence;
        for copy in copies {
            for at in (0..copy.len()).step_by(PAGE_BYTES) {
                let beyond = Batch::sequence_of(&copy[at..], uuid);
                if beyond.is_some_and(|sequence| sequence > end) {
                    let what = format!("batch {end} of the journal is lost in both copies");
                    return Err(PoolError::Corrupt(what));
                }
            }
        }
        Ok(())
    }
}
