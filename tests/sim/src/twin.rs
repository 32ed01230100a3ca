//! Clones that share blocks with their volume alone, and are written and read where hosts work: what one of
//! the two gives up is the other's own, who writes it in place.
//!
//! Invariant: a read of either gives what that one held at some time while it was read, also where the disk
//! reads so late that the blocks have become the other's.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
    time::Duration,
};

use corebay_core::rng::Rng;

use crate::{
    content::LOST,
    operator::{Failure, Operator},
};

/// The most writes of a clone in a row.
const WRITES_MAX: u64 = 8;

/// The longest pause before each of them: hosts write, too.
const PAUSE_MICROS_MAX: u64 = 2_000;

impl Operator {
    /// Makes a clone of the volume as it is now, of a snapshot that goes at once, and writes it.
    pub async fn make_twin(&mut self, rng: &mut Rng) -> Result<(), Failure> {
        let snapshot = self.take_unseen(rng).await?;
        let identity = self.identity(rng);
        let name = identity.name.clone();
        self.expect(&identity, false, None);
        let permitted = self.with(&snapshot, |kept| kept.permitted());
        self.with(&name, |kept| kept.permit(permitted.unwrap_or_default()));
        let source = self.find(&snapshot)?;
        if let Err(error) = self.pool.clone_volume(source, &identity).await {
            self.forget_failed(&name);
            return Err(error.into());
        }
        self.with(&name, |kept| kept.uncertain = false);
        if let Some(place) = self.place_of(&snapshot) {
            self.delete(place).await?;
        }
        let hot = self.task.common.plan.workload.hot_blocks;
        let blocks = self.pool.volume(self.find(&name)?)?.blocks.min(hot);
        for _ in 0..1 + rng.below(WRITES_MAX) {
            let pause = Duration::from_micros(rng.below(PAUSE_MICROS_MAX));
            self.pause(pause).await;
            let at = rng.below(blocks);
            match rng.once_in(2) {
                true => self.write_block(&name, at).await?,
                false => self.write_beside_a_read(&name, at).await?,
            }
        }
        Ok(())
    }

    /// Writes a block of a clone while all of it is read.
    async fn write_beside_a_read(&self, name: &str, at: u64) -> Result<(), Failure> {
        let permitted = || self.with(name, |kept| kept.permitted()).unwrap_or_default();
        let before = permitted();
        let (found, written) = both(self.read(name), self.write_block(name, at)).await;
        let (found, after) = (found?, permitted());
        let may_be = |at: usize, value| {
            let of = |all: &[Vec<u64>]| all.get(at).is_none_or(|of| of.contains(value));
            *value == LOST || of(&before) || of(&after)
        };
        let mut all = found.iter().enumerate();
        match all.find(|(at, value)| !may_be(*at, value)) {
            Some((at, value)) => Err(Failure::Wrong(format!(
                "block {at} of {name} reads as {value:#x} amid a write, which it never was"
            ))),
            None => written,
        }
    }
}

/// Waits for both.
async fn both<A, B>(one: impl Future<Output = A>, other: impl Future<Output = B>) -> (A, B) {
    let (mut one, mut other) = (pin!(one), pin!(other));
    let (mut first, mut second) = (None, None);
    poll_fn(|context| {
        if first.is_none()
            && let Poll::Ready(ended) = one.as_mut().poll(context)
        {
            first = Some(ended);
        }
        if second.is_none()
            && let Poll::Ready(ended) = other.as_mut().poll(context)
        {
            second = Some(ended);
        }
        match first.is_some() && second.is_some() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    })
    .await;
    match (first, second) {
        (Some(first), Some(second)) => (first, second),
        _ => unreachable!("both have ended"),
    }
}
