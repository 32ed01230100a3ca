//! Raw images: a volume's content into a file, and a file's into a volume, with holes kept as holes.
//!
//! Invariants:
//! - The pool's side runs on the pool's core and never waits for a file; the file's side
//!   ([`SparseFile`]) runs on a thread that may. Pieces go between them, of bounded size.
//! - What reads as zeroes is not written: neither to a file, where it becomes a hole, nor to a volume,
//!   where it is deallocated.

use std::{fs::File, io, os::unix::fs::FileExt, rc::Rc};

use corebay_core::{
    disk::{Disk, DiskError, Durability},
    units::Lba,
};
use rustix::fs::{SeekFrom, seek};

use crate::{
    device::TRANSFER_BYTES,
    error::PoolError,
    manage::{Pool, VolumeId},
    pool::Shared,
    volume::Volume,
};

/// Bytes of an image; the rest of it reads as zeroes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where they lie, from the image's start.
    pub at: u64,
    /// At most 64 KiB.
    pub bytes: Vec<u8>,
}

/// Gives what a volume holds, in pieces.
pub struct ImageReader<D: Disk> {
    shared: Rc<Shared<D>>,
    volume: Volume<D>,
    id: u32,
    blocks: u64,
    position: u64,
}

/// Puts pieces into a volume.
pub struct ImageWriter<D: Disk> {
    shared: Rc<Shared<D>>,
    volume: Volume<D>,
}

impl<D: Disk> Pool<D> {
    /// Reads a snapshot as an image, or a volume that nobody writes meanwhile.
    ///
    /// # Errors
    /// Where there is none.
    pub fn read_image(&self, id: VolumeId) -> Result<ImageReader<D>, PoolError> {
        Ok(ImageReader {
            blocks: self.volume(id)?.blocks,
            shared: self.shared.clone(),
            volume: self.open(id)?,
            id: id.0,
            position: 0,
        })
    }

    /// Writes an image to a volume. What no piece touches stays as it is: zeroes, in a new volume.
    ///
    /// # Errors
    /// Where there is none.
    pub fn write_image(&self, id: VolumeId) -> Result<ImageWriter<D>, PoolError> {
        Ok(ImageWriter {
            shared: self.shared.clone(),
            volume: self.open(id)?,
        })
    }
}

impl<D: Disk> ImageReader<D> {
    /// The image's bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.volume.info().block_size.bytes_of(self.blocks)
    }

    /// False: a volume has at least a block.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where the next piece is looked for, in bytes.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.volume.info().block_size.bytes_of(self.position)
    }

    /// The next piece that is not zeroes; `None` where none is left.
    ///
    /// # Errors
    /// Where the volume cannot be read.
    pub async fn next(&mut self) -> Result<Option<Piece>, PoolError> {
        let block_size = self.volume.info().block_size;
        let most = block_size.blocks_in(TRANSFER_BYTES as u64);
        loop {
            let all = (self.id, self.blocks);
            let found = self.shared.next_change(None, all, self.position, most);
            let Some(found) = found.await? else {
                self.position = self.blocks;
                return Ok(None);
            };
            let len = usize::try_from(block_size.bytes_of(found.blocks)).expect("a piece");
            let (buffer, _share) = self.shared.device.stream_buffer(len).await;
            let into = std::slice::from_ref(&buffer);
            self.volume.read(Lba(found.first), into).await?;
            self.position = found.first + found.blocks;
            let bytes = buffer.bytes().to_vec();
            if bytes.iter().any(|byte| *byte != 0) {
                let at = block_size.bytes_of(found.first);
                return Ok(Some(Piece { at, bytes }));
            }
        }
    }
}

impl<D: Disk> ImageWriter<D> {
    /// Writes a piece. Its last block is filled with zeroes where the piece ends within it; blocks of
    /// zeroes are deallocated.
    ///
    /// # Errors
    /// [`DiskError::OutOfRange`] where it does not begin with a block or lies beyond the volume.
    pub async fn write(&self, piece: &Piece) -> Result<(), DiskError> {
        let block_size = self.volume.info().block_size;
        let size = block_size.bytes();
        if !piece.at.is_multiple_of(size as u64) {
            return Err(DiskError::OutOfRange);
        }
        let mut bytes = piece.bytes.clone();
        bytes.resize(bytes.len().next_multiple_of(size), 0);
        let mut blocks = bytes.chunks_exact(size).peekable();
        let mut at = block_size.blocks_in(piece.at);
        while let Some(first) = blocks.next() {
            let is_zero = |block: &[u8]| block.iter().all(|byte| *byte == 0);
            let zero = is_zero(first);
            let mut run = first.to_vec();
            while run.len() < TRANSFER_BYTES
                && let Some(block) = blocks.next_if(|block| is_zero(block) == zero)
            {
                run.extend_from_slice(block);
            }
            let count = block_size.blocks_in(run.len() as u64);
            if zero {
                self.volume.deallocate(Lba(at), count).await?;
            } else {
                let device = &self.shared.device;
                let (mut buffer, _share) = device.stream_buffer(run.len()).await;
                buffer.bytes_mut().copy_from_slice(&run);
                let from = std::slice::from_ref(&buffer);
                self.volume.write(Lba(at), from, Durability::Cached).await?;
            }
            at += count;
        }
        Ok(())
    }

    /// All pieces are written: makes them survive a loss of power.
    ///
    /// # Errors
    /// Where the disk fails.
    pub async fn finish(self) -> Result<(), DiskError> {
        self.volume.flush().await
    }
}

/// An image's file. Its methods wait for the file system: they belong on a thread of their own.
#[derive(Debug)]
pub struct SparseFile {
    file: File,
    len: u64,
    position: u64,
    /// Up to here there are data, as far as is known.
    data_end: u64,
}

impl SparseFile {
    /// An image that is read from its start.
    ///
    /// # Errors
    /// Where the file's length cannot be found out.
    pub fn open(file: File) -> io::Result<Self> {
        let len = seek(&file, SeekFrom::End(0))?;
        Ok(Self {
            file,
            len,
            position: 0,
            data_end: 0,
        })
    }

    /// An image that is written: the file is emptied, and as long as the image from then on.
    ///
    /// # Errors
    /// Where the file cannot be that long.
    pub fn create(file: File, len: u64) -> io::Result<Self> {
        file.set_len(0)?;
        file.set_len(len)?;
        Ok(Self {
            file,
            len,
            position: 0,
            data_end: 0,
        })
    }

    /// The image's bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// The image has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The next piece that is no hole; `None` at the end. Pieces begin at multiples of 4 KiB.
    ///
    /// # Errors
    /// Where the file cannot be read, or has become shorter.
    pub fn read(&mut self) -> io::Result<Option<Piece>> {
        if self.position >= self.data_end && !self.next_data()? {
            return Ok(None);
        }
        let most = (self.data_end - self.position).min(TRANSFER_BYTES as u64);
        let mut bytes = vec![0; usize::try_from(most).expect("a piece")];
        self.file.read_exact_at(&mut bytes, self.position)?;
        let at = self.position;
        self.position += most;
        Ok(Some(Piece { at, bytes }))
    }

    /// Finds the next data; false where there are none.
    fn next_data(&mut self) -> io::Result<bool> {
        if self.position >= self.len {
            return Ok(false);
        }
        let start = match seek(&self.file, SeekFrom::Data(self.position)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => return Ok(false),
            // A file system, or a device, that does not tell: all of it are data.
            Err(rustix::io::Errno::INVAL) => {
                self.data_end = self.len;
                return Ok(true);
            }
            Err(error) => return Err(error.into()),
        };
        let end = seek(&self.file, SeekFrom::Hole(start))?;
        // File systems may cut finer than blocks are.
        self.position = start / 4096 * 4096;
        self.data_end = end.next_multiple_of(4096).min(self.len);
        Ok(self.position < self.len)
    }

    /// Writes a piece; what none covers stays a hole.
    ///
    /// # Errors
    /// Where it lies beyond the image, or the file cannot be written.
    pub fn write(&mut self, piece: &Piece) -> io::Result<()> {
        let end = piece.at.checked_add(piece.bytes.len() as u64);
        if end.is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.file.write_all_at(&piece.bytes, piece.at)
    }

    /// Makes what was written survive a loss of power.
    ///
    /// # Errors
    /// Where the file system fails.
    pub fn finish(self) -> io::Result<()> {
        self.file.sync_all()
    }
}
