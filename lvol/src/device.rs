//! A pool's disk: reads and writes of metadata, each in two copies.
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
        COPIES, Layout, PAGE_BYTES, SUPERBLOCK_AT, crc32c,
        page::{Body, PageBytes},
        superblock::Superblock,
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

/// A disk that a pool lies on.
pub(crate) struct Device<D> {
    pub disk: Rc<D>,
    buffers: BufferPool,
    streams: Rc<Permits>,
    /// Copies that were damaged and have been written again.
    pub repairs: Cell<u64>,
    /// Nothing is written: damaged copies stay as they are.
    pub read_only: Cell<bool>,
}

impl<D: Disk> Device<D> {
    pub fn new(disk: D, buffers: BufferPool) -> Self {
        Self {
            disk: Rc::new(disk),
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

    /// Reads bytes, of which there are at most [`TRANSFER_BYTES`].
    pub async fn read(&self, at: u64, len: usize) -> Result<Vec<u8>, DiskError> {
        let buffer = self.buffers.allocate(len).await;
        let result = self.disk.read(self.lba(at), std::slice::from_ref(&buffer));
        result.await?;
        let bytes = buffer.bytes().to_vec();
        Ok(bytes)
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
        let mut buffer = self.buffers.allocate(bytes.len()).await;
        buffer.bytes_mut().copy_from_slice(bytes);
        let from = std::slice::from_ref(&buffer);
        self.disk.write(self.lba(at), from, durability).await
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

    /// Writes both superblocks, one after the other, so that one of them is whole at any time.
    pub async fn write_superblocks(&self, superblock: &Superblock) -> Result<(), DiskError> {
        for at in SUPERBLOCK_AT {
            self.write(at, &superblock.encode(), Durability::Durable)
                .await?;
        }
        Ok(())
    }

    /// Makes room for a new pool: there is none afterwards.
    pub async fn clear(&self, layout: &Layout) -> Result<(), DiskError> {
        self.erase().await?;
        let journal = [layout.journal_at(0), layout.journal_at(1)];
        let zeroes = vec![0; TRANSFER_BYTES];
        let mut from = 0;
        while from < layout.journal_bytes {
            let part = (layout.journal_bytes - from).min(TRANSFER_BYTES as u64);
            let part = &zeroes[..usize::try_from(part).expect("at most TRANSFER_BYTES")];
            let at = journal.map(|at| at + from);
            self.write_copies(at, part).await?;
            from += TRANSFER_BYTES as u64;
        }
        Ok(())
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
                self.repairs.set(self.repairs.get() + 1);
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
        self.repairs.set(self.repairs.get() + 1);
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
        page.await?
            .ok_or_else(|| PoolError::Corrupt(format!("both copies of page {number} at {}", at[0])))
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
