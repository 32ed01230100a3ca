//! Orders about where volumes come from: clones that copy what they share, or take the place of what they
//! were made of; snapshots that are sent, and received by this pool or another one.
//!
//! Invariants:
//! - None of these orders changes what any volume or snapshot holds.
//! - A stream that was received in part is nobody's volume. Whether all of it has come is one change: the
//!   volume is there if, and only if, its snapshot is.

use std::rc::Rc;

use corebay_core::{disk::DiskError, rng::Rng};
use corebay_lvol::{
    Identity, ReceiveError, ReceiveOptions, VolumeId,
    error::PoolError,
    format::{page::Kind, stream::StreamFault},
};

use crate::{
    content::LOST,
    operator::{Failure, KEPT_MAX, Operator},
};

/// A snapshot that was sent.
pub struct Stream {
    bytes: Vec<u8>,
    uuid: [u8; 16],
    block_bytes: usize,
    /// The namespace that its blocks are of.
    nsid: u32,
    content: Vec<u64>,
}

/// A volume that is being received: what, and the name of its snapshot.
#[derive(Clone)]
pub struct Receiving {
    stream: Rc<Stream>,
    snapshot: String,
}

impl From<ReceiveError> for Failure {
    fn from(error: ReceiveError) -> Self {
        match error {
            ReceiveError::Pool(error) => error.into(),
            other => Self::Wrong(other.to_string()),
        }
    }
}

impl Operator {
    /// Copies what a clone shares, which then comes from nowhere.
    pub async fn inflate(&mut self, chosen: usize) -> Result<(), Failure> {
        let name = self.name_of(chosen);
        let id = self.find(&name)?;
        if self.pool.volume(id)?.kind != Kind::Volume {
            return Err(Failure::Refused);
        }
        let mut inflate = self.pool.inflate(id)?;
        loop {
            match inflate.step().await {
                Ok(Some(_)) => {}
                Ok(None) => break,
                // The power tore what is to be copied.
                Err(PoolError::Disk(DiskError::UnrecoveredRead)) if self.task.tears => {
                    return Err(Failure::Refused);
                }
                Err(error) => return Err(error.into()),
            }
        }
        drop(inflate);
        if self.pool.origin_of(id).is_some() {
            return Err(Failure::Wrong(format!("{name} still comes from another")));
        }
        self.compare(&name).await
    }

    /// A clone becomes what its origin was, and that a clone of their snapshot.
    pub async fn promote(&mut self, chosen: usize) -> Result<(), Failure> {
        let name = self.name_of(chosen);
        let id = self.find(&name)?;
        let is = |of: VolumeId, kind| self.pool.volume(of).is_ok_and(|record| record.kind == kind);
        let base = self.pool.origin_of(id);
        let base = base.filter(|base| is(id, Kind::Volume) && is(*base, Kind::Snapshot));
        let former = base.and_then(|base| self.pool.origin_of(base));
        let Some((base, former)) = base.zip(former).filter(|(_, former)| *former != id) else {
            return match self.pool.promote(id).await {
                Err(PoolError::WrongKind) => Err(Failure::Refused),
                other => Err(Failure::Wrong(format!("{name} is no clone: {other:?}"))),
            };
        };
        self.pool.promote(id).await?;
        let found = (self.pool.origin_of(base), self.pool.origin_of(former));
        if found != (Some(id), Some(base)) {
            return Err(Failure::Wrong(format!(
                "after {name} took the place of {former:?}, their snapshot is of {found:?}"
            )));
        }
        self.compare(&name).await
    }

    /// Sends a snapshot, for whoever receives it.
    pub async fn send(&mut self, chosen: usize) -> Result<(), Failure> {
        let name = self.name_of(chosen);
        let known = self.with(&name, |kept| {
            let content = kept.content.clone().filter(|_| kept.snapshot);
            Some((content?, kept.nsid))
        });
        // A block that is lost cannot be sent.
        let known = known
            .flatten()
            .filter(|(content, _)| !content.contains(&LOST));
        let Some((content, nsid)) = known else {
            return Err(Failure::Refused);
        };
        let id = self.find(&name)?;
        let uuid = self.pool.volume(id)?.uuid;
        let mut sender = self.pool.send(None, id, 0)?;
        let mut bytes = Vec::new();
        while sender.next(&mut bytes).await? {}
        let stream = Stream {
            bytes,
            uuid,
            block_bytes: self.block_bytes(),
            nsid,
            content,
        };
        *self.task.common.stream.borrow_mut() = Some(Rc::new(stream));
        Ok(())
    }

    /// Receives the snapshot that was sent last, by whichever pool, unless it is here.
    pub async fn receive(&mut self, rng: &mut Rng) -> Result<(), Failure> {
        let stream = self.task.common.stream.borrow().clone();
        let fits = stream.filter(|stream| stream.block_bytes == self.block_bytes());
        let (Some(stream), true) = (fits, self.kept() + 2 <= KEPT_MAX) else {
            return Err(Failure::Refused);
        };
        let records = self.pool.volumes();
        let here = records
            .into_iter()
            .find(|(_, record)| record.uuid == stream.uuid);
        if let Some((_, here)) = here {
            // It can be received once it is not here any more.
            return match self.place_of(&here.name) {
                Some(place) => self.delete(place).await,
                None => Err(Failure::Refused),
            };
        }
        let (volume, snapshot) = (self.identity(rng), self.identity(rng));
        let receiving = Receiving {
            stream: stream.clone(),
            snapshot: snapshot.name.clone(),
        };
        for (identity, is_snapshot) in [(&volume, false), (&snapshot, true)] {
            self.expect(identity, is_snapshot, Some(stream.content.clone()));
            self.with(&identity.name, |kept| {
                kept.nsid = stream.nsid;
                kept.receiving = (!is_snapshot).then(|| receiving.clone());
            });
        }
        let received = match rng.once_in(4) {
            true => self.receive_twice(&volume, &receiving, rng).await,
            false => {
                let all = &stream.bytes;
                self.take(&volume, &receiving, all, rng).await
            }
        };
        let received = received.map_err(Failure::from);
        if received.is_err() {
            if self.is_cut_off() {
                return received;
            }
            self.give_up(&volume.name, &snapshot.name).await?;
            return received;
        }
        self.end_receiving(&volume.name, &snapshot.name).await
    }

    /// A stream that breaks off, and all of it again.
    async fn receive_twice(
        &self,
        volume: &Identity,
        receiving: &Receiving,
        rng: &mut Rng,
    ) -> Result<(), ReceiveError> {
        let all = &receiving.stream.bytes;
        let part = &all[..rng.below(all.len() as u64) as usize];
        match self.take(volume, receiving, part, rng).await {
            Err(ReceiveError::Stream(StreamFault::Truncated)) => {}
            other => return other,
        }
        self.take(volume, receiving, all, rng).await
    }

    async fn take(
        &self,
        volume: &Identity,
        receiving: &Receiving,
        bytes: &[u8],
        rng: &mut Rng,
    ) -> Result<(), ReceiveError> {
        let mut receiver = self.pool.receive(&ReceiveOptions {
            volume: volume.clone(),
            snapshot: Some(receiving.snapshot.clone()),
            rename: |_, _| None,
        });
        let mut left = bytes;
        while !left.is_empty() {
            let count = 1 + rng.below(left.len() as u64) as usize;
            let (next, rest) = left.split_at(count);
            receiver.push(next).await?;
            left = rest;
        }
        receiver.finish().await
    }

    /// Both are there from now on.
    async fn end_receiving(&self, volume: &str, snapshot: &str) -> Result<(), Failure> {
        for name in [volume, snapshot] {
            self.with(name, |kept| {
                kept.uncertain = false;
                kept.receiving = None;
            });
            self.compare(name).await?;
        }
        Ok(())
    }

    /// What was received in part is to be gone.
    async fn give_up(&self, volume: &str, snapshot: &str) -> Result<(), Failure> {
        if let Some(id) = self.pool.find(volume) {
            self.pool.abort_receive(id).await?;
        }
        self.forget(volume);
        self.forget(snapshot);
        Ok(())
    }

    /// A new life looks what became of a volume that was being received.
    pub async fn settle_receiving(&self, name: &str, of: &Receiving) -> Result<(), Failure> {
        let found = self.pool.find(name);
        let record = found.map(|id| self.pool.volume(id)).transpose()?;
        let has_snapshot = self.pool.find(&of.snapshot).is_some();
        let complete = record
            .as_ref()
            .is_some_and(|record| record.receiving.is_none());
        if complete != has_snapshot {
            return Err(Failure::Wrong(format!(
                "of the received {name} and its snapshot one is there: {record:?}"
            )));
        }
        match record {
            Some(record) if record.receiving.is_some() => {
                // It goes on, or is given up.
                let mut rng = Rng::from_seed(of.stream.bytes.len() as u64 ^ self.seed());
                if rng.once_in(2) {
                    return self.give_up(name, &of.snapshot).await;
                }
                let volume = Identity {
                    name: name.to_owned(),
                    uuid: record.uuid,
                };
                let all = &of.stream.bytes;
                match self.take(&volume, of, all, &mut rng).await {
                    Ok(()) => self.end_receiving(name, &of.snapshot).await,
                    Err(error) if self.is_cut_off() => Err(error.into()),
                    Err(error) => {
                        self.give_up(name, &of.snapshot).await?;
                        Err(error.into())
                    }
                }
            }
            Some(_) => self.end_receiving(name, &of.snapshot).await,
            None => {
                self.forget(name);
                self.forget(&of.snapshot);
                Ok(())
            }
        }
    }
}
