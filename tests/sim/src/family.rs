//! Orders about where volumes come from: clones that copy what they share, or take the place of what they
//! were made of; snapshots that are sent, and received by this pool or another one.
//!
//! Invariants:
//! - None of these orders changes what any volume or snapshot holds.
//! - A stream that was received in part is nobody's volume. Whether all of it has come is one change: the
//!   volume is there if, and only if, its snapshot is.
//! - The difference between two snapshots makes of a volume that holds the first one what the second one
//!   holds. It is taken by no volume that was changed, and given up it has changed none.

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
    trace::event,
};

/// A snapshot that was sent, or what it differs in from another one.
pub struct Stream {
    /// The UUID and the content of that one.
    base: Option<([u8; 16], Vec<u64>)>,
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

/// What a volume was received as.
#[derive(Clone, Copy)]
pub struct Received {
    /// The UUID of the snapshot.
    uuid: [u8; 16],
    /// Something was done to the volume since.
    touched: bool,
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
        self.touch(&name);
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

    /// Something is done to a volume, which may have been received.
    pub fn touch(&self, name: &str) {
        self.with(name, |kept| {
            kept.received = kept.received.map(|received| Received {
                touched: true,
                ..received
            });
        });
    }

    /// A snapshot that somebody has received; its UUID, and what it holds.
    fn base(&self, but: VolumeId) -> Option<(VolumeId, [u8; 16], Vec<u64>)> {
        let received = self.task.common.received.borrow();
        let all = self.pool.volumes().into_iter();
        let mut known = all.filter(|(id, record)| *id != but && received.contains(&record.uuid));
        known.find_map(|(id, record)| {
            let held = self.with(&record.name, |kept| {
                kept.content.clone().filter(|_| kept.snapshot)
            });
            Some((id, record.uuid, held.flatten()?))
        })
    }

    /// Sends a snapshot, for whoever receives it; of one where another one was received, perhaps only what
    /// the two differ in.
    pub async fn send(&mut self, rng: &mut Rng) -> Result<(), Failure> {
        let mut known = Vec::new();
        self.with_all(|kept| {
            // A block that is lost cannot be sent.
            let content = kept
                .content
                .as_ref()
                .filter(|content| !content.contains(&LOST));
            if let (true, Some(content)) = (kept.snapshot, content) {
                known.push((kept.name().to_owned(), content.clone(), kept.nsid));
            }
        });
        let chosen = rng.below(known.len().max(1) as u64) as usize;
        if known.is_empty() {
            return Err(Failure::Refused);
        }
        let (name, content, nsid) = known.swap_remove(chosen);
        let id = self.find(&name)?;
        let uuid = self.pool.volume(id)?.uuid;
        let base = self.base(id).filter(|_| !rng.once_in(4));
        let mut sender = self.pool.send(base.as_ref().map(|base| base.0), id, 0)?;
        let mut bytes = Vec::new();
        while sender.next(&mut bytes).await? {}
        let stream = Stream {
            base: base.map(|(_, uuid, content)| (uuid, content)),
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
        let Some(stream) = fits else {
            return Err(Failure::Refused);
        };
        if self.kept() > KEPT_MAX {
            // First there has to be space.
            let place = rng.below(self.kept() as u64) as usize;
            return self.delete(place).await;
        }
        let records = self.pool.volumes();
        let here = records
            .into_iter()
            .find(|(_, record)| record.uuid == stream.uuid);
        if let Some((_, here)) = here {
            // It can be received once it is not here any more.
            let place = self.place_of(&here.name).ok_or(Failure::Refused)?;
            self.delete(place).await?;
        }
        match &stream.base {
            Some((base, _)) => self.receive_difference(&stream, *base, rng).await,
            None => self.receive_whole(stream, rng).await,
        }
    }

    async fn receive_whole(&self, stream: Rc<Stream>, rng: &mut Rng) -> Result<(), Failure> {
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
        let received = self.take_all(&volume, &receiving, rng).await;
        self.end_receiving(&volume.name, &receiving, received).await
    }

    /// Receives what two snapshots differ in onto the volume that the first one was received as.
    async fn receive_difference(
        &self,
        stream: &Rc<Stream>,
        base: [u8; 16],
        rng: &mut Rng,
    ) -> Result<(), Failure> {
        let records = self.pool.volumes();
        let has_base = records
            .iter()
            .any(|(_, record)| record.kind == Kind::Snapshot && record.uuid == base);
        let known = records.into_iter().find_map(|(_, record)| {
            let received = self.with(&record.name, |kept| kept.received);
            let received = received.flatten().filter(|as_whom| as_whom.uuid == base)?;
            Some((record, received.touched))
        });
        let (volume, touched) = match known {
            Some((record, touched)) => {
                let (name, uuid) = (record.name, record.uuid);
                (Identity { name, uuid }, touched)
            }
            None => (self.identity(rng), false),
        };
        let is_there = self.place_of(&volume.name).is_some();
        let receiving = Receiving {
            stream: stream.clone(),
            snapshot: self.identity(rng).name,
        };
        if is_there {
            let snapshot = Identity {
                name: receiving.snapshot.clone(),
                uuid: [0; 16],
            };
            self.expect(&snapshot, true, Some(stream.content.clone()));
            self.with(&snapshot.name, |kept| kept.nsid = stream.nsid);
            self.with(&volume.name, |kept| {
                kept.receiving = Some(receiving.clone())
            });
        }
        let received = self.take_all(&volume, &receiving, rng).await;
        let words = [
            event::ADMIN,
            u64::from(is_there),
            u64::from(received.is_ok()),
        ];
        self.task.common.trace.note(words, || {
            let (name, how) = (
                &volume.name,
                if touched { "was changed" } else { "was not" },
            );
            format!("{name}, which {how}, is to take a difference: {received:?}")
        });
        let refused = match &received {
            Err(ReceiveError::NoBase) => !is_there || !has_base,
            Err(ReceiveError::Changed) => touched,
            Ok(()) if !is_there => {
                return Err(Failure::Wrong("a difference makes a volume".into()));
            }
            _ => false,
        };
        if refused {
            self.give_up(&volume.name, &receiving).await?;
            return Err(Failure::Refused);
        }
        self.end_receiving(&volume.name, &receiving, received).await
    }

    /// All of a stream, now and then after a part of it.
    async fn take_all(
        &self,
        volume: &Identity,
        receiving: &Receiving,
        rng: &mut Rng,
    ) -> Result<(), ReceiveError> {
        let all = &receiving.stream.bytes;
        if !rng.once_in(4) {
            return self.take(volume, receiving, all, rng).await;
        }
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

    /// What comes of a stream that was received, or was not.
    async fn end_receiving(
        &self,
        volume: &str,
        of: &Receiving,
        received: Result<(), ReceiveError>,
    ) -> Result<(), Failure> {
        match received {
            Ok(()) => self.accept(volume, of).await,
            Err(error) if self.is_cut_off() => Err(error.into()),
            Err(error) => {
                self.give_up(volume, of).await?;
                Err(error.into())
            }
        }
    }

    /// Both are there from now on, and hold what was sent.
    async fn accept(&self, volume: &str, of: &Receiving) -> Result<(), Failure> {
        let Receiving { stream, snapshot } = of;
        let was = self.with(volume, |kept| kept.content.replace(stream.content.clone()));
        if let Some((_, base)) = &stream.base
            && was.flatten().as_ref() != Some(base)
        {
            return Err(Failure::Wrong(format!(
                "{volume} was changed, and takes a difference"
            )));
        }
        self.task.common.received.borrow_mut().insert(stream.uuid);
        // A volume of an earlier copy of the snapshot that is here no more takes no difference.
        let earlier = |as_whom: &Received| as_whom.uuid == stream.uuid;
        self.with_all(|kept| kept.received = kept.received.filter(|as_whom| !earlier(as_whom)));
        self.with(volume, |kept| {
            kept.nsid = stream.nsid;
            kept.received = Some(Received {
                uuid: stream.uuid,
                touched: false,
            });
        });
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
    async fn give_up(&self, volume: &str, of: &Receiving) -> Result<(), Failure> {
        if let Some(id) = self.pool.find(volume)
            && self.pool.volume(id)?.receiving.is_some()
        {
            self.pool.abort_receive(id).await?;
        }
        self.forget(&of.snapshot);
        if of.stream.base.is_none() {
            self.forget(volume);
            return Ok(());
        }
        // It holds what it held before.
        self.with(volume, |kept| kept.receiving = None);
        match self.place_of(volume) {
            Some(_) => self.compare(volume).await,
            None => Ok(()),
        }
    }

    /// A new life looks what became of a volume that was being received.
    pub async fn settle_receiving(&self, name: &str, of: &Receiving) -> Result<(), Failure> {
        let found = self.pool.find(name);
        let record = found.map(|id| self.pool.volume(id)).transpose()?;
        let has_snapshot = self.pool.find(&of.snapshot).is_some();
        let is_difference = of.stream.base.is_some();
        match record {
            Some(record) if record.receiving.is_some() && !has_snapshot => {
                // It goes on, or is given up.
                let mut rng = Rng::from_seed(of.stream.bytes.len() as u64 ^ self.seed());
                if rng.once_in(2) {
                    return self.give_up(name, of).await;
                }
                let volume = Identity {
                    name: name.to_owned(),
                    uuid: record.uuid,
                };
                let all = &of.stream.bytes;
                let received = self.take(&volume, of, all, &mut rng).await;
                self.end_receiving(name, of, received).await
            }
            Some(record) if record.receiving.is_none() && has_snapshot => {
                self.accept(name, of).await
            }
            // It has not begun.
            Some(record) if record.receiving.is_none() && is_difference => {
                self.give_up(name, of).await
            }
            None if !has_snapshot && !is_difference => self.give_up(name, of).await,
            record => Err(Failure::Wrong(format!(
                "of the received {name} and its snapshot one is there: {record:?}"
            ))),
        }
    }
}
