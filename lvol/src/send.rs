//! Sending a snapshot, or the difference between two, as a stream of frames.
//!
//! Invariants:
//! - Snapshots do not change, and those that are being sent are open, so nobody deletes them: the same
//!   snapshots always make the same changes, and a stream that broke off goes on at any block.
//! - What both snapshots share is neither read nor sent; the walk costs what differs.
//! - A frame is made when it is asked for: whoever takes slowly makes nobody wait and nothing pile up.

use std::rc::Rc;

use corebay_core::{disk::Disk, units::Lba};

use crate::{
    error::PoolError,
    format::{
        BLOCKS_PER_EXTENT,
        page::{Kind, LEAF_EXTENTS},
        stream::{Begin, Frame, FrameWriter, PAYLOAD_BYTES_MAX},
    },
    manage::{Pool, VolumeId},
    pool::Shared,
    state::Missing,
    sync::breathe,
    volume::Volume,
};

const BLOCKS_PER_LEAF: u64 = (LEAF_EXTENTS * BLOCKS_PER_EXTENT) as u64;

/// Blocks in which a snapshot differs from another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub first: u64,
    pub blocks: u64,
    /// They hold something; else they read as zeroes now.
    pub data: bool,
}

impl<D: Disk> Shared<D> {
    /// The first blocks from `at` on in which `to` differs from `from`; without that, which hold
    /// something. At most `most` of them, within the smaller of `from`'s size and the rest of `to`.
    pub(crate) async fn next_change(
        &self,
        from: Option<(u32, u64)>,
        to: (u32, u64),
        at: u64,
        most: u64,
    ) -> Result<Option<Change>, PoolError> {
        let mut block = at;
        loop {
            let leaf = self.next_different_leaf(from.map(|from| from.0), to.0, block);
            let Some(leaf) = leaf.await? else {
                return Ok(None);
            };
            block = block.max(leaf * BLOCKS_PER_LEAF);
            let end = to.1.min((leaf + 1) * BLOCKS_PER_LEAF);
            while block < end {
                let now = self.run(to.0, block, end.min(block + most)).await?;
                let (mut blocks, mut before) = (now.blocks as u64, None);
                if let Some((from, size)) = from.filter(|(_, size)| block < *size) {
                    let run = self.run(from, block, size.min(block + blocks)).await?;
                    (blocks, before) = (blocks.min(run.blocks as u64), run.extent);
                }
                if now.extent != before {
                    return Ok(Some(Change {
                        first: block,
                        blocks,
                        data: now.extent.is_some(),
                    }));
                }
                block += blocks;
            }
            if block >= to.1 {
                return Ok(None);
            }
            breathe(&self.reactor).await;
        }
    }

    async fn next_different_leaf(
        &self,
        from: Option<u32>,
        to: u32,
        block: u64,
    ) -> Result<Option<u64>, PoolError> {
        let leaf = block / BLOCKS_PER_LEAF;
        loop {
            let found = self.state.borrow().next_difference(from, to, leaf)?;
            match found {
                Ok(leaf) => return Ok(leaf),
                Err(node) => self.load(Missing::Node(node)).await?,
            }
        }
    }
}

/// What a sender has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SendProgress {
    /// All blocks before this one are sent.
    pub position: u64,
    /// The snapshot's blocks.
    pub blocks: u64,
    /// Blocks that were sent as data.
    pub data_blocks: u64,
}

/// Makes the stream of a snapshot, frame by frame.
pub struct Sender<D: Disk> {
    shared: Rc<Shared<D>>,
    /// The snapshots, open, with their numbers and sizes.
    from: Option<(Volume<D>, (u32, u64))>,
    to: (Volume<D>, (u32, u64)),
    begin: Option<Begin>,
    writer: FrameWriter,
    position: u64,
    data_blocks: u64,
    ended: bool,
}

impl<D: Disk> Pool<D> {
    /// Sends a snapshot; with `from` only what differs from that one, to a receiver that has it. `start`
    /// is 0, or where an interrupted receiver wants to go on ([`Receiving::next`]).
    ///
    /// [`Receiving::next`]: crate::format::page::Receiving::next
    ///
    /// # Errors
    /// Where one is not a snapshot, or `start` lies beyond the end.
    pub fn send(
        &self,
        from: Option<VolumeId>,
        to: VolumeId,
        start: u64,
    ) -> Result<Sender<D>, PoolError> {
        let record = self.volume(to)?;
        let base = from.map(|from| self.volume(from)).transpose()?;
        let kinds = [Some(&record), base.as_ref()];
        if kinds.iter().flatten().any(|of| of.kind != Kind::Snapshot) {
            return Err(PoolError::WrongKind);
        }
        if start > record.blocks {
            return Err(PoolError::BadSize);
        }
        let block_size = self.shared.state.borrow().layout.block_size;
        let begin = Begin {
            block_size,
            blocks: record.blocks,
            start,
            from: base.as_ref().map_or([0; 16], |base| base.uuid),
            to: record.uuid,
            name: record.name,
        };
        let from = match (from, base) {
            (Some(id), Some(base)) => Some((self.open(id)?, (id.0, base.blocks))),
            _ => None,
        };
        Ok(Sender {
            shared: self.shared.clone(),
            from,
            to: (self.open(to)?, (to.0, record.blocks)),
            begin: Some(begin),
            writer: FrameWriter::default(),
            position: start,
            data_blocks: 0,
            ended: false,
        })
    }
}

impl<D: Disk> Sender<D> {
    /// Adds the next frame's bytes to `out`; false where the stream has ended, and nothing was added.
    ///
    /// # Errors
    /// Where the snapshot cannot be read. The stream has no end then.
    pub async fn next(&mut self, out: &mut Vec<u8>) -> Result<bool, PoolError> {
        if self.ended {
            return Ok(false);
        }
        let frame = match self.begin.take() {
            Some(begin) => Frame::Begin(begin),
            None => self.next_frame().await?,
        };
        self.ended = matches!(frame, Frame::End { .. });
        self.writer.write(&frame, out);
        Ok(true)
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> SendProgress {
        SendProgress {
            position: self.position,
            blocks: self.to.1.1,
            data_blocks: self.data_blocks,
        }
    }

    async fn next_frame(&mut self) -> Result<Frame, PoolError> {
        let block_size = self.shared.state.borrow().layout.block_size;
        let most = block_size.blocks_in(PAYLOAD_BYTES_MAX as u64);
        let from = self.from.as_ref().map(|from| from.1);
        loop {
            let to = self.to.1;
            let change = self.shared.next_change(from, to, self.position, most);
            let Some(change) = change.await? else {
                self.position = to.1;
                let data_blocks = self.data_blocks;
                return Ok(Frame::End { data_blocks });
            };
            let Change { first, blocks, .. } = change;
            let mut bytes = Vec::new();
            if change.data {
                let len = block_size.bytes_of(blocks);
                let len = usize::try_from(len).expect("a frame's bytes");
                let (buffer, _share) = self.shared.device.stream_buffer(len).await;
                let into = std::slice::from_ref(&buffer);
                self.to.0.read(Lba(first), into).await?;
                bytes.extend_from_slice(&buffer.bytes());
            }
            self.position = first + blocks;
            if bytes.iter().any(|byte| *byte != 0) {
                self.data_blocks += blocks;
                return Ok(Frame::Data { first, bytes });
            }
            // What the receiver begins with is empty, unless it has another snapshot.
            if from.is_some() {
                return Ok(Frame::Zeroes { first, blocks });
            }
        }
    }
}
