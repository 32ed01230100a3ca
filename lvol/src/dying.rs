//! What becomes of deleted volumes and snapshots: their space is given back, and so is what thick volumes have
//! reserved for extents that were shared with them and are theirs alone now.
//!
//! # Step by step
//! 1. The deleted volume's map is dropped, a leaf at a time, by one record each. A crash: the rest is dropped
//!    after it.
//! 2. It has no map any more, and its number stays taken. A crash: this is where dropping goes on.
//! 3. The thick volumes, any of which may have shared something with it, are counted, one after the other, while they
//!    are used: once for all volumes that were deleted when the round began in which this one is. A crash: they are
//!    counted again.
//! 4. Where one has more extents of its own than is known, it is frozen, so that none of its records waits,
//!    and a record says how many. A crash before it is durable: as in 3. After it: counting finds no more.
//! 5. A record each removes the deleted volumes. A crash between them: those that are left are dropped again, and
//!    the thick volumes are counted once more.

use std::{collections::BTreeMap, time::Duration};

use corebay_core::disk::Disk;
use tracing::warn;

use crate::{
    error::PoolError,
    format::record::Record,
    manage::{Pool, VolumeId},
    pool::Shared,
    sync::breathe,
};

/// Leaves that are counted before others get their turn.
const LEAVES_AT_ONCE: u64 = 64;

/// The pause after which a deleted volume's space is given back again where that has failed, and the longest
/// one where it fails for the same reason again and again.
const DROP_AGAIN: Duration = Duration::from_secs(1);
const DROP_AGAIN_MAX: Duration = Duration::from_secs(60);

/// Deleted volumes that are given back together: the thick volumes are counted once for all of them, however
/// many were deleted while the count before that went on.
#[derive(Default)]
struct Round {
    /// Their maps are to be dropped, the last one's next.
    to_drop: Vec<u32>,
    /// Their maps are dropped.
    dropped: Vec<u32>,
    /// What failed for which volume, and the pause after it.
    failures: BTreeMap<u32, (String, Duration)>,
}

impl Round {
    /// The pause after a failure, and whether it is another one than the volume's last.
    fn failed(&mut self, volume: u32, told: &str) -> (Duration, bool) {
        let (pause, is_new) = match self.failures.get(&volume) {
            Some((last, pause)) if last == told => ((*pause * 2).min(DROP_AGAIN_MAX), false),
            _ => (DROP_AGAIN, true),
        };
        self.failures.insert(volume, (told.to_owned(), pause));
        (pause, is_new)
    }
}

/// What is to be done next.
enum Next {
    /// Nothing: the pool is being closed.
    End,
    /// A volume's own extents are to be counted.
    Count(u32),
    /// The next part of a deleted volume's map is to be dropped.
    Drop(u32),
    /// All maps of the round are dropped.
    Remove,
    /// Volumes were deleted that are in no round.
    Begin,
}

impl<D: Disk> Pool<D> {
    /// Gives back the space of deleted volumes, a leaf at a time, until the pool is closed.
    pub(crate) async fn drop_dying(&self) {
        let mut round = Round::default();
        loop {
            let next = self.shared.dying.until(|| self.next_to_drop(&round)).await;
            match next {
                Next::End => return,
                Next::Count(volume) => {
                    let counted = self.count(volume).await;
                    self.pause_after(counted, "own extents", volume, &mut round)
                        .await;
                }
                Next::Drop(volume) => self.drop_next(volume, &mut round).await,
                Next::Remove => self.remove_dropped(&mut round).await,
                Next::Begin => {
                    round.to_drop = self.shared.state.borrow().volumes.dying().collect();
                    round.to_drop.reverse();
                }
            }
        }
    }

    fn next_to_drop(&self, round: &Round) -> Option<Next> {
        if self.is_leaving() {
            return Some(Next::End);
        }
        if let Some(volume) = self.shared.to_recount.borrow_mut().pop_first() {
            return Some(Next::Count(volume));
        }
        match round.to_drop.last() {
            Some(volume) => Some(Next::Drop(*volume)),
            None if !round.dropped.is_empty() => Some(Next::Remove),
            None => self.first_dying().map(|_| Next::Begin),
        }
    }

    fn is_leaving(&self) -> bool {
        self.leaving.get() || self.shared.stopped().is_some()
    }

    /// Tells of a failure, and waits before the next attempt. What stops the pool as a whole is told there. All
    /// else may pass, and concerns perhaps this volume alone.
    async fn pause_after(
        &self,
        done: Result<(), PoolError>,
        what: &str,
        volume: u32,
        round: &mut Round,
    ) {
        let Err(error) = done else {
            round.failures.remove(&volume);
            return;
        };
        if self.shared.stopped().is_some() {
            return;
        }
        let told = self.failure(what, volume, &error);
        let (pause, is_new) = round.failed(volume, &told);
        if is_new {
            warn!("{told}; it is tried again");
        }
        let waiting = || self.shared.state.borrow().volumes.dying().count();
        let (before, now) = (waiting(), self.shared.reactor.now());
        let (soonest, end) = (now.plus(DROP_AGAIN), now.plus(pause));
        let is_over = || {
            let now = self.shared.reactor.now();
            // What was deleted meanwhile, or is to be counted, has nothing to do with it.
            let has_more = || waiting() != before || !self.shared.to_recount.borrow().is_empty();
            now >= end || (now >= soonest && has_more())
        };
        while !is_over() && !self.is_leaving() {
            self.shared.reactor.sleep(DROP_AGAIN / 20).await;
        }
    }

    /// Drops the next part of a deleted volume's map. Where that fails, the volume is left to the next round.
    async fn drop_next(&self, volume: u32, round: &mut Round) {
        let root = self.shared.state.borrow().volume(volume).map(|v| v.root);
        let done = match root {
            Ok(0) => {
                round.dropped.extend(round.to_drop.pop());
                return;
            }
            Ok(_) => self.change(&[Record::Drop { volume, keep: true }]).await,
            Err(error) => Err(error),
        };
        if done.is_err() {
            round.to_drop.pop();
        }
        self.pause_after(done, "space", volume, round).await;
    }

    /// Counts what others have of their own now, and gives back the numbers of volumes that have no map any more.
    async fn remove_dropped(&self, round: &mut Round) {
        let concerned = self.shared.state.borrow().to_recount();
        for other in concerned {
            // Who asks from here on wants what is not counted yet.
            self.shared.to_recount.borrow_mut().remove(&other);
            let counted = self.count(other).await;
            if self.is_leaving() {
                return;
            }
            // It has more reserved than it needs, as before.
            if let Err(error) = counted {
                warn!("{}", self.failure("own extents", other, &error));
            }
        }
        for volume in std::mem::take(&mut round.dropped) {
            let keep = false;
            let done = self.change(&[Record::Drop { volume, keep }]).await;
            if self.is_leaving() {
                return;
            }
            self.pause_after(done, "number", volume, round).await;
        }
    }

    /// What failed, in words.
    fn failure(&self, what: &str, volume: u32, error: &PoolError) -> String {
        let pool = self.shared.name();
        let state = self.shared.state.borrow();
        let name = state.volume(volume).map_or("", |record| &record.name);
        format!("pool {pool}: the {what} of \"{name}\" (volume {volume}): {error}")
    }

    /// Others may have given up what they shared with these volumes, or they are thick from now on: they are
    /// counted soon. A crash before that leaves more reserved than is needed.
    pub(crate) fn count_soon(&self, volumes: impl IntoIterator<Item = u32>) {
        self.shared.to_recount.borrow_mut().extend(volumes);
        self.shared.dying.notify();
    }

    /// Counts a volume's own extents anew, and says so where there are more of them than is known.
    pub(crate) async fn count(&self, volume: u32) -> Result<(), PoolError> {
        if self.volume(VolumeId(volume)).is_err() {
            return Ok(());
        }
        let _counting = self.shared.recounting.acquire(1).await;
        self.shared.state.borrow_mut().begin_recount(volume);
        if !self.count_leaves(volume).await? {
            return Ok(());
        }
        // Nobody shares it from here on.
        let _control = self.control().await?;
        let gained = || self.shared.state.borrow().recounted(volume);
        if gained().is_none() {
            return Ok(());
        }
        let _frozen = self.shared.freeze(volume).await;
        self.shared.drained().await;
        match gained() {
            Some(own) => self.change(&[Record::Recount { volume, own }]).await,
            None => Ok(()),
        }
    }

    /// Counts under all leaves of a volume; false where it was stopped.
    async fn count_leaves(&self, volume: u32) -> Result<bool, PoolError> {
        let shared: &Shared<D> = &self.shared;
        let (mut leaf, mut looked_at) = (0, 0);
        let mut needs = shared.needs();
        while let Some(next) = shared.next_leaf(volume, leaf).await? {
            // What comes to be before it while pages are read is followed.
            leaf = next;
            shared.state.borrow_mut().recount_reaches(volume, next);
            let missing = shared.state.borrow_mut().missing_for(volume, next)?;
            if let Some(missing) = missing {
                needs.load(missing).await?;
                continue;
            }
            needs = shared.needs();
            shared.state.borrow_mut().recount_leaf(volume, next)?;
            leaf = next + 1;
            looked_at += 1;
            if looked_at % LEAVES_AT_ONCE == 0 {
                breathe(&shared.reactor).await;
            }
            if self.is_leaving() {
                return Ok(false);
            }
        }
        shared.state.borrow_mut().recount_is_over(volume);
        Ok(true)
    }
}
