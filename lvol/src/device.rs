//! A pool's disk, and the mirrored zone beside it: reads and writes of metadata, each in two copies.
//!
//! Invariants:
//! - Whatever is read is checked against its checksum before it is used; a copy that fails is
//!   written again from the other one.
//! - The buffers come from a pool whose holders wait for the disk alone, so that metadata move also
//!   where hosts' data have taken all other memory. Streams and images wait for more than the disk
//!   while they hold one: they have a share of them.

use std::{cell::Cell, rc::Rc};

use corebay_core::{
    buffer::{Buffer, BufferPool},
    disk::{Disk, DiskError, Durability},
    sync::{Permit, Permits},
};

use tracing::warn;

use crate::{
    error::PoolError,
    format::{
        COPIES, JournalPlace, Layout, PAGE_BYTES, SUPERBLOCK_AT, crc32c,
        page::{Body, PageBytes},
        superblock::Superblock,
        zone::{ZONE_HEAD_AT, is_zone_head, zone_head},
    },
    state::{corrupt, places::Places},
    sync::both,
};

/// The most bytes that are read or written at once.
pub(crate) const TRANSFER_BYTES: usize = 64 << 10;

/// Buffers that streams and images have at most, half of all where these are 1 MiB.
const STREAM_BUFFERS: usize = 8;

/// Streams and images that may wait for one.
const STREAM_WAITERS: usize = 64;

/// What a pool lies on. A disk by itself is one, too.
#[derive(Debug)]
pub struct PoolDisk<D> {
    /// The disk.
    pub disk: D,
    /// A small disk of the same block size beside it, on which small durable writes cost less: the
    /// mirrored zone of an array. It is the pool's alone.
    pub zone: Option<D>,
}

impl<D> From<D> for PoolDisk<D> {
    fn from(disk: D) -> Self {
        Self { disk, zone: None }
    }
}

/// A disk that a pool lies on.
pub(crate) struct Device<D> {
    pub disk: Rc<D>,
    zone: Option<D>,
    buffers: BufferPool,
    streams: Rc<Permits>,
    /// Copies that were damaged and have been written again.
    pub repairs: Cell<u64>,
    /// Nothing is written: damaged copies stay as they are.
    pub read_only: Cell<bool>,
}

impl<D: Disk> Device<D> {
    pub fn new(PoolDisk { disk, zone }: PoolDisk<D>, buffers: BufferPool) -> Self {
        Self {
            disk: Rc::new(disk),
            zone,
            buffers,
            streams: Permits::new(STREAM_BUFFERS, STREAM_WAITERS),
            repairs: Cell::new(0),
            read_only: Cell::new(false),
        }
    }

    fn lba(&self, at: u64) -> corebay_core::units::Lba {
        corebay_core::units::Lba(self.disk.info().block_size.blocks_in(at))
    }

    /// A buffer of at most [`TRANSFER_BYTES`].
    pub async fn buffer(&self, len: usize) -> Buffer {
        self.buffers.allocate(len).await
    }

    /// The same, for who waits for volumes while it is held: of the share that is for these.
    pub async fn stream_buffer(&self, len: usize) -> (Buffer, Permit) {
        let share = self.streams.acquire(1).await;
        (self.buffer(len).await, share)
    }

    /// The bytes of the mirrored zone; 0 where there is none.
    pub fn zone_bytes(&self) -> u64 {
        self.zone.as_ref().map_or(0, |zone| zone.info().bytes())
    }

    /// What the journal lies on. That it is there was looked at when the pool was made or opened.
    fn journal_disk(&self, layout: &Layout) -> Result<&D, DiskError> {
        match layout.journal {
            JournalPlace::Disk => Ok(&self.disk),
            JournalPlace::Zone => self.zone.as_ref().ok_or(DiskError::Gone),
        }
    }

    /// Reads bytes, of which there are at most [`TRANSFER_BYTES`].
    pub async fn read(&self, at: u64, len: usize) -> Result<Vec<u8>, DiskError> {
        self.read_on(&self.disk, at, len).await
    }

    async fn read_on(&self, disk: &D, at: u64, len: usize) -> Result<Vec<u8>, DiskError> {
        let buffer = self.buffers.allocate(len).await;
        let result = disk.read(self.lba(at), std::slice::from_ref(&buffer));
        result.await?;
        let bytes = buffer.bytes().to_vec();
        Ok(bytes)
    }

    /// Reads a part of a copy of the journal, of at most [`TRANSFER_BYTES`].
    pub async fn read_journal(
        &self,
        layout: &Layout,
        copy: usize,
        offset: u64,
        len: usize,
    ) -> Result<Vec<u8>, DiskError> {
        let at = layout.journal_at(copy) + offset;
        self.read_on(self.journal_disk(layout)?, at, len).await
    }

    /// Reads any number of bytes.
    pub async fn read_long(&self, at: u64, len: usize) -> Result<Vec<u8>, DiskError> {
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            let part = (len - bytes.len()).min(TRANSFER_BYTES);
            bytes.extend(self.read(at + bytes.len() as u64, part).await?);
        }
        Ok(bytes)
    }

    /// Writes whole pages, of which there are at most [`TRANSFER_BYTES`].
    pub async fn write(
        &self,
        at: u64,
        bytes: &[u8],
        durability: Durability,
    ) -> Result<(), DiskError> {
        self.write_on(&self.disk, at, bytes, durability).await
    }

    async fn write_on(
        &self,
        disk: &D,
        at: u64,
        bytes: &[u8],
        durability: Durability,
    ) -> Result<(), DiskError> {
        let mut buffer = self.buffers.allocate(bytes.len()).await;
        buffer.bytes_mut().copy_from_slice(bytes);
        let from = std::slice::from_ref(&buffer);
        disk.write(self.lba(at), from, durability).await
    }

    /// Writes a part of the journal to both copies, of at most [`TRANSFER_BYTES`].
    pub async fn write_journal(
        &self,
        layout: &Layout,
        offset: u64,
        bytes: &[u8],
        durability: Durability,
    ) -> Result<(), DiskError> {
        let disk = self.journal_disk(layout)?;
        let mut buffer = self.buffers.allocate(bytes.len()).await;
        buffer.bytes_mut().copy_from_slice(bytes);
        let from = std::slice::from_ref(&buffer);
        let at = |copy| self.lba(layout.journal_at(copy) + offset);
        let write = |copy| disk.write(at(copy), from, durability);
        let (first, second) = both(write(0), write(1)).await;
        first.and(second)
    }

    /// Writes the same bytes to two places, of any number.
    pub async fn write_copies(&self, at: [u64; COPIES], bytes: &[u8]) -> Result<(), DiskError> {
        for (number, part) in bytes.chunks(TRANSFER_BYTES).enumerate() {
            let offset = (number * TRANSFER_BYTES) as u64;
            let (first, second) = both(
                self.write(at[0] + offset, part, Durability::Cached),
                self.write(at[1] + offset, part, Durability::Cached),
            )
            .await;
            first.and(second)?;
        }
        Ok(())
    }

    /// What has been written so far survives.
    pub async fn flush(&self) -> Result<(), DiskError> {
        match self.disk.info().volatile_cache {
            true => self.disk.flush().await,
            false => Ok(()),
        }
    }

    /// Writes one of the superblocks. The other one is whole then: they are written one after the other,
    /// each until it is there.
    pub async fn write_superblock(
        &self,
        at: u64,
        superblock: &Superblock,
    ) -> Result<(), DiskError> {
        self.write(at, &superblock.encode(), Durability::Durable)
            .await
    }

    /// Makes room for a new pool: there is none afterwards.
    pub async fn clear(&self, layout: &Layout, pool: [u8; 16]) -> Result<(), DiskError> {
        self.erase().await?;
        let zeroes = vec![0; TRANSFER_BYTES];
        let mut from = 0;
        while from < layout.journal_bytes {
            let part = (layout.journal_bytes - from).min(TRANSFER_BYTES as u64);
            let part = &zeroes[..usize::try_from(part).expect("at most TRANSFER_BYTES")];
            // The first checkpoint flushes the disk alone.
            let durability = match layout.journal {
                JournalPlace::Disk => Durability::Cached,
                JournalPlace::Zone => Durability::Durable,
            };
            self.write_journal(layout, from, part, durability).await?;
            from += TRANSFER_BYTES as u64;
        }
        if layout.journal == JournalPlace::Zone {
            let zone = self.journal_disk(layout)?;
            for at in ZONE_HEAD_AT {
                self.write_on(zone, at, &zone_head(pool), Durability::Durable)
                    .await?;
            }
        }
        Ok(())
    }

    /// Refuses a zone that does not hold the journal of this pool, where that is in one; mends a copy of
    /// the zone's head that is damaged. How many were.
    pub async fn look_at_zone(&self, layout: &Layout, pool: [u8; 16]) -> Result<u64, PoolError> {
        if layout.journal == JournalPlace::Disk {
            return Ok(0);
        }
        let zone = self.zone.as_ref();
        let zone = zone.ok_or(PoolError::NoZone("this disk has none"))?;
        if zone.info().block_size != layout.block_size || zone.info().bytes() < layout.zone_bytes()
        {
            return Err(PoolError::NoZone("this one is smaller"));
        }
        let mut damaged = Vec::new();
        for at in ZONE_HEAD_AT {
            match self.read_on(zone, at, PAGE_BYTES).await {
                Ok(page) if is_zone_head(&page, pool) => {}
                Ok(_) | Err(DiskError::UnrecoveredRead) => damaged.push(at),
                Err(error) => return Err(error.into()),
            }
        }
        if damaged.len() == COPIES {
            return Err(PoolError::NoZone("this one does not hold it"));
        }
        for at in damaged.iter().filter(|_| !self.read_only.get()) {
            self.write_on(zone, *at, &zone_head(pool), Durability::Durable)
                .await?;
        }
        Ok(damaged.len() as u64)
    }

    /// There is no pool any more. A crash in between leaves one superblock, and so the pool.
    pub async fn erase(&self) -> Result<(), DiskError> {
        for at in SUPERBLOCK_AT {
            self.write(at, &[0; PAGE_BYTES], Durability::Durable)
                .await?;
        }
        Ok(())
    }

    /// The newest superblock; once it is allowed, it is written over one that is damaged or older.
    pub async fn read_superblock(
        &self,
        allow: impl Fn(&Superblock) -> Result<(), PoolError>,
    ) -> Result<Superblock, PoolError> {
        let mut found: [Result<Superblock, PoolError>; COPIES] =
            [Err(PoolError::NotAPool), Err(PoolError::NotAPool)];
        for (copy, at) in SUPERBLOCK_AT.into_iter().enumerate() {
            if at + PAGE_BYTES as u64 > self.disk.info().bytes() {
                return Err(PoolError::NotAPool);
            }
            found[copy] = match self.read(at, PAGE_BYTES).await {
                Ok(bytes) => Superblock::parse(&bytes),
                Err(DiskError::UnrecoveredRead) => Err(PoolError::NotAPool),
                Err(error) => return Err(error.into()),
            };
            if let Err(PoolError::NewerFormat(_)) = &found[copy] {
                return found[copy].clone();
            }
        }
        let newest = match &found {
            [Ok(a), Ok(b)] if a.uuid != b.uuid => {
                return Err(corrupt("the superblocks are of two pools"));
            }
            [Ok(a), Ok(b)] => if b.generation > a.generation { b } else { a }.clone(),
            [Ok(one), Err(_)] | [Err(_), Ok(one)] => one.clone(),
            [Err(error), Err(_)] => return Err(error.clone()),
        };
        allow(&newest)?;
        for (copy, at) in SUPERBLOCK_AT.into_iter().enumerate() {
            if found[copy].as_ref() != Ok(&newest) && !self.read_only.get() {
                match found[copy] {
                    // Only older: the power went between the two.
                    Ok(_) => self.repairs.set(self.repairs.get() + 1),
                    Err(_) => self.repaired(1),
                }
                self.write(at, &newest.encode(), Durability::Durable)
                    .await?;
            }
        }
        Ok(newest)
    }

    /// Reads bytes of which there are two copies, of which `good` tells whether they are right;
    /// mends a copy that is not.
    pub async fn read_copies<T>(
        &self,
        at: [u64; COPIES],
        len: usize,
        good: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Option<T>, PoolError> {
        let mut damaged = None;
        let mut failure = None;
        for copy in at {
            match self.read_long(copy, len).await {
                Ok(bytes) => {
                    if let Some(value) = good(&bytes) {
                        if let Some(damaged) = damaged {
                            self.mend(damaged, &bytes).await;
                        }
                        return Ok(Some(value));
                    }
                    damaged = Some(copy);
                }
                Err(DiskError::UnrecoveredRead) => damaged = Some(copy),
                // The other copy may be read nevertheless; this one may be whole.
                Err(error) => failure = Some(error),
            }
        }
        failure.map_or(Ok(None), |error| Err(error.into()))
    }

    /// Writes a damaged copy again. Where that fails it stays as it is: the other one is there.
    async fn mend(&self, at: u64, bytes: &[u8]) {
        if self.read_only.get() {
            return;
        }
        let mut from = at;
        for part in bytes.chunks(TRANSFER_BYTES) {
            if let Err(error) = self.write(from, part, Durability::Cached).await {
                warn!("a damaged copy of metadata at {at} could not be written again: {error}");
                return;
            }
            from += part.len() as u64;
        }
        self.repaired(1);
    }

    /// Counts copies that were written again, and says so at once, then ever more rarely.
    pub fn repaired(&self, copies: u64) {
        let before = self.repairs.get();
        let now = before.saturating_add(copies);
        self.repairs.set(now);
        if now.checked_ilog2() != before.checked_ilog2() {
            warn!(
                copies = now,
                "damaged copies of the pool's metadata were written again"
            );
        }
    }

    /// Reads a page of metadata.
    pub async fn read_page<B: Body>(
        &self,
        at: [u64; COPIES],
        crc: u32,
        number: u64,
    ) -> Result<B, PoolError> {
        let page = self.read_copies(at, PAGE_BYTES, |bytes| {
            let page: &PageBytes = bytes.try_into().ok()?;
            (crc32c(page) == crc).then(|| B::parse(page, number))?
        });
        page.await?.ok_or_else(|| {
            let [first, second] = at;
            let what = format!("both copies of page {number}, at bytes {first} and {second}");
            PoolError::Corrupt(what)
        })
    }
}

/// Where both copies of a place lie.
pub(crate) fn copies_at(
    places: &Places,
    place: u64,
    layout: &Layout,
) -> Result<[u64; COPIES], PoolError> {
    let at = |copy| places.at(place, copy, layout);
    match (at(0), at(1)) {
        (Some(first), Some(second)) => Ok([first, second]),
        _ => Err(corrupt("a page's place is outside the metadata")),
    }
}
