//! Receiving a snapshot, or the difference to one that is here, from a stream of frames.
//!
//! Invariants:
//! - A volume that is being received is nobody's: it cannot be opened, shared or resized until all of
//!   the stream was there and right. Then a snapshot of it is taken that has the sent one's UUID, in
//!   one batch with the end of that state.
//! - How far it has come is recorded after the data before that point are durable. After a crash or
//!   a broken connection the sender goes on from there; what comes twice is written twice.
//! - A difference is put only on a volume whose content is the snapshot that it is the difference to.

use std::{fmt, sync::atomic::Ordering};

use corebay_core::{
    disk::{Disk, DiskError, Durability},
    units::Lba,
};

use crate::{
    error::PoolError,
    format::{
        page::{Kind, Receiving, VolumeRecord},
        record::Record,
        stream::{Begin, Frame, FrameReader, StreamFault},
    },
    manage::{Identity, Pool, VolumeId},
    volume::Volume,
};

/// Bytes of data after which it is recorded how far a stream has come.
const MARK_BYTES: u64 = 16 << 20;

/// Where a stream goes.
#[derive(Clone, Debug)]
pub struct ReceiveOptions {
    /// The volume: made anew where the stream is a whole snapshot, else the one that has its base.
    pub volume: Identity,
    /// What the snapshot is called here, if that is said.
    pub snapshot: Option<String>,
    /// Else what it is called, of the volume's name and of what it was called where it came from: that may
    /// be any text. `None` refuses it.
    pub rename: fn(&str, &str) -> Option<String>,
}

/// Why a stream was not received, or not to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReceiveError {
    /// The stream is not what it should be.
    Stream(StreamFault),
    /// The pool refused or failed.
    Pool(PoolError),
    /// Its blocks have another size than the pool's.
    OtherBlockSize,
    /// It begins behind what was received: it is to be sent from this block on.
    Gap(u64),
    /// The snapshot that it is the difference to is not here.
    NoBase,
    /// The volume was changed since the snapshot that the stream is the difference to: roll it back.
    Changed,
    /// The volume is receiving another stream; abort that one first.
    OtherStream,
    /// The snapshot is here already.
    AlreadyThere(VolumeId),
}

impl fmt::Display for ReceiveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stream(fault) => write!(f, "{fault}"),
            Self::Pool(error) => write!(f, "{error}"),
            Self::OtherBlockSize => write!(f, "the stream's blocks have another size"),
            Self::Gap(next) => write!(f, "the stream has to be sent from block {next} on"),
            Self::NoBase => write!(f, "the snapshot that it is the difference to is not here"),
            Self::Changed => write!(f, "the volume was changed since its snapshot"),
            Self::OtherStream => write!(f, "the volume is receiving another stream"),
            Self::AlreadyThere(_) => write!(f, "the snapshot is here already"),
        }
    }
}

impl std::error::Error for ReceiveError {}

impl From<PoolError> for ReceiveError {
    fn from(error: PoolError) -> Self {
        Self::Pool(error)
    }
}

impl From<DiskError> for ReceiveError {
    fn from(error: DiskError) -> Self {
        Self::Pool(error.into())
    }
}

/// Puts a stream into a pool, as its bytes come in.
pub struct Receiver<D: Disk> {
    pool: Pool<D>,
    options: ReceiveOptions,
    frames: FrameReader,
    /// The volume, from the stream's first frame on.
    going: Option<(VolumeId, Volume<D>, Begin)>,
    position: u64,
    unmarked_bytes: u64,
}

impl<D: Disk> Pool<D> {
    /// Begins to receive a stream.
    #[must_use]
    pub fn receive(&self, options: &ReceiveOptions) -> Receiver<D> {
        Receiver {
            pool: self.clone(),
            options: options.clone(),
            frames: FrameReader::default(),
            going: None,
            position: 0,
            unmarked_bytes: 0,
        }
    }

    /// Gives up a stream that was not received to its end: the volume has the content again that it had
    /// before, or is deleted where it was made for the stream.
    ///
    /// # Errors
    /// Where it is not receiving, or is at it right now, or a thick volume's space could not be kept.
    pub async fn abort_receive(&self, id: VolumeId) -> Result<(), PoolError> {
        let _control = self.control().await?;
        let record = self.volume(id)?;
        let state = record.receiving.ok_or(PoolError::WrongKind)?;
        if state.from == [0; 16] {
            return self.delete_locked(id).await;
        }
        if self
            .shared
            .flat_volume(id.0)
            .counts
            .handles
            .load(Ordering::SeqCst)
            > 0
        {
            return Err(PoolError::Busy);
        }
        let (base, _) = self
            .snapshot_of_uuid(state.from)
            .ok_or(PoolError::NotFound)?;
        let over = Record::Receive {
            volume: id.0,
            state: None,
        };
        self.roll_back_locked(id, base, Some(over)).await
    }

    /// Refuses to take away the snapshot that a stream is the difference to while that stream is received: it
    /// could not be given up any more.
    pub(crate) fn refuse_base(&self, record: &VolumeRecord) -> Result<(), PoolError> {
        if record.kind != Kind::Snapshot {
            return Ok(());
        }
        let state = self.shared.state.borrow();
        let is_its_base = |id| {
            let receiving = state.volumes.body(id).and_then(|other| other.receiving);
            receiving.is_some_and(|stream| stream.from == record.uuid && stream.from != [0; 16])
        };
        match state.volumes.ids().any(is_its_base) {
            true => Err(PoolError::BaseOfStream),
            false => Ok(()),
        }
    }

    fn snapshot_of_uuid(&self, uuid: [u8; 16]) -> Option<(VolumeId, VolumeRecord)> {
        let state = self.shared.state.borrow();
        let found = |id| Some((VolumeId(id), state.volumes.body(id)?.clone()));
        let of_it = state.volumes.of_uuid(uuid).filter_map(found);
        let mut snapshots = of_it.filter(|(_, record)| record.kind == Kind::Snapshot);
        snapshots.next()
    }
}

impl<D: Disk> Receiver<D> {
    /// Takes more of the stream's bytes; the snapshot, once the last of them have come. After an error
    /// nothing more is taken: what has come stays, and a new receiver goes on.
    ///
    /// # Errors
    /// Where the stream is not right, or does not suit, or the pool fails.
    pub async fn push(&mut self, mut bytes: &[u8]) -> Result<Option<VolumeId>, ReceiveError> {
        let mut done = None;
        while let Some(frame) = self.frames.next(&mut bytes).map_err(ReceiveError::Stream)? {
            match frame {
                Frame::Begin(begin) => self.begin(begin).await?,
                Frame::Data { first, bytes } => self.write(first, &bytes).await?,
                Frame::Zeroes { first, blocks } => {
                    self.volume()?.deallocate(Lba(first), blocks).await?;
                    self.position = first + blocks;
                }
                Frame::End { .. } => done = Some(self.end().await?),
            }
        }
        Ok(done)
    }

    /// The bytes have ended: was that all?
    ///
    /// # Errors
    /// [`StreamFault::Truncated`] where it was not. How far it came is recorded.
    pub async fn finish(mut self) -> Result<(), ReceiveError> {
        if self.frames.has_ended() {
            return Ok(());
        }
        if self.going.is_some() {
            self.mark().await?;
        }
        Err(ReceiveError::Stream(StreamFault::Truncated))
    }

    /// All blocks before this one are there.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// What the stream is about, once that is known.
    #[must_use]
    pub fn about(&self) -> Option<&Begin> {
        self.going.as_ref().map(|(_, _, begin)| begin)
    }

    fn volume(&self) -> Result<&Volume<D>, ReceiveError> {
        let going = self.going.as_ref();
        let (_, volume, _) = going.ok_or(ReceiveError::Stream(StreamFault::NotAStream))?;
        Ok(volume)
    }

    async fn begin(&mut self, begin: Begin) -> Result<(), ReceiveError> {
        let pool = self.pool.clone();
        let _control = pool.control().await?;
        if begin.block_size != pool.shared.state.borrow().layout.block_size {
            return Err(ReceiveError::OtherBlockSize);
        }
        let id = match pool.find(&self.options.volume.name) {
            None => self.begin_new(&begin).await?,
            Some(id) => self.begin_on(id, &begin).await?,
        };
        if pool.volume(id)?.blocks != begin.blocks {
            pool.resize_locked(id, begin.blocks, true).await?;
        }
        let flat = pool.shared.flat_volume(id.0);
        let volume = Volume::open_received(pool.core(), flat);
        self.position = begin.start;
        self.going = Some((id, volume, begin));
        Ok(())
    }

    /// The name that the snapshot gets, which nobody has.
    fn snapshot_name(&self, begin: &Begin) -> Result<Identity, PoolError> {
        let options = &self.options;
        let renamed = || (options.rename)(&options.volume.name, &begin.name);
        let identity = Identity {
            name: options
                .snapshot
                .clone()
                .or_else(renamed)
                .ok_or(PoolError::BadName)?,
            uuid: begin.to,
        };
        self.pool.check_identity(&identity)?;
        Ok(identity)
    }

    async fn begin_new(&self, begin: &Begin) -> Result<VolumeId, ReceiveError> {
        if begin.from != [0; 16] {
            return Err(ReceiveError::NoBase);
        }
        if begin.start != 0 {
            return Err(ReceiveError::Gap(0));
        }
        if let Some((snapshot, _)) = self.pool.snapshot_of_uuid(begin.to) {
            return Err(ReceiveError::AlreadyThere(snapshot));
        }
        self.snapshot_name(begin)?;
        self.pool.check_identity(&self.options.volume)?;
        let volume = self.pool.free_id(0)?;
        let Identity { name, uuid } = self.options.volume.clone();
        let made = [
            Record::Create {
                volume,
                blocks: begin.blocks,
                thick: false,
                uuid,
                name,
            },
            Record::Receive {
                volume,
                state: Some(Receiving::new(begin.from, begin.to, 0)),
            },
        ];
        self.pool.change(&made).await?;
        Ok(VolumeId(volume))
    }

    async fn begin_on(&self, id: VolumeId, begin: &Begin) -> Result<VolumeId, ReceiveError> {
        if self.pool.volume(id)?.kind != Kind::Volume {
            return Err(PoolError::WrongKind.into());
        }
        let flat = self.pool.shared.flat_volume(id.0);
        // Whoever opens it meanwhile finds one of the two.
        flat.receiving.store(true, Ordering::SeqCst);
        let taken = match flat.counts.handles.load(Ordering::SeqCst) {
            0 => self.take(id, begin).await,
            _ => Err(PoolError::Busy.into()),
        };
        let receiving = self.pool.volume(id)?.receiving.is_some();
        flat.receiving.store(receiving, Ordering::SeqCst);
        taken
    }

    async fn take(&self, id: VolumeId, begin: &Begin) -> Result<VolumeId, ReceiveError> {
        // What other cores have asked for goes on though nobody waits for it any more.
        let _frozen = self.pool.freeze([id.0]).await;
        self.pool.shared.drained().await;
        let record = self.pool.volume(id)?;
        if let Some(state) = record.receiving {
            return match (state.from, state.to) == (begin.from, begin.to) {
                false => Err(ReceiveError::OtherStream),
                true if begin.start > state.next() => Err(ReceiveError::Gap(state.next())),
                true => Ok(id),
            };
        }
        if let Some((snapshot, _)) = self.pool.snapshot_of_uuid(begin.to) {
            return Err(ReceiveError::AlreadyThere(snapshot));
        }
        if begin.from == [0; 16] {
            return Err(PoolError::Exists.into());
        }
        let base = self.pool.snapshot_of_uuid(begin.from);
        let (_, base) = base.ok_or(ReceiveError::NoBase)?;
        if (record.root, record.blocks) != (base.root, base.blocks) {
            return Err(ReceiveError::Changed);
        }
        if begin.start != 0 {
            return Err(ReceiveError::Gap(0));
        }
        self.snapshot_name(begin)?;
        let state = Some(Receiving::new(begin.from, begin.to, 0));
        let volume = id.0;
        self.pool
            .change(&[Record::Receive { volume, state }])
            .await?;
        Ok(id)
    }

    async fn write(&mut self, first: u64, bytes: &[u8]) -> Result<(), ReceiveError> {
        let device = &self.pool.shared.device;
        let (mut buffer, _share) = device.stream_buffer(bytes.len()).await;
        buffer.bytes_mut().copy_from_slice(bytes);
        let volume = self.volume()?;
        let block_size = volume.info().block_size;
        let from = std::slice::from_ref(&buffer);
        volume.write(Lba(first), from, Durability::Cached).await?;
        self.position = first + block_size.blocks_in(bytes.len() as u64);
        self.unmarked_bytes += bytes.len() as u64;
        if self.unmarked_bytes >= MARK_BYTES {
            self.mark().await?;
        }
        Ok(())
    }

    /// Records how far it has come. The batch of that record flushes what was written before.
    async fn mark(&mut self) -> Result<(), ReceiveError> {
        let Some((id, _, begin)) = &self.going else {
            return Ok(());
        };
        let state = Some(Receiving::new(begin.from, begin.to, self.position));
        let volume = id.0;
        self.pool
            .change(&[Record::Receive { volume, state }])
            .await?;
        self.unmarked_bytes = 0;
        Ok(())
    }

    async fn end(&mut self) -> Result<VolumeId, ReceiveError> {
        let pool = self.pool.clone();
        let _control = pool.control().await?;
        let (id, _, begin) = self
            .going
            .as_ref()
            .ok_or(ReceiveError::Stream(StreamFault::NotAStream))?;
        let identity = self.snapshot_name(begin)?;
        let growth = |record: &VolumeRecord| record.growth_when_shared(record.blocks);
        let _promise = pool.promise(pool.with_volume(*id, growth)?)?;
        let snapshot = pool.free_id(0)?;
        pool.change(&[
            Record::Share {
                volume: snapshot,
                source: id.0,
                snapshot: true,
                uuid: identity.uuid,
                name: identity.name,
            },
            Record::Receive {
                volume: id.0,
                state: None,
            },
        ])
        .await?;
        self.going = None;
        Ok(VolumeId(snapshot))
    }
}
