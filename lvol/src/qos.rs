//! Limits of a volume: how many operations and bytes a second hosts may read and write, with bursts.
//!
//! Invariants:
//! - All cores draw from the same buckets, each a single atomic word: no lock, and where nothing is
//!   limited, one load on the fast path.
//! - A bucket is a point in time: when all that was admitted so far would have been done at the rate. An
//!   operation moves it on by its own cost, at once, and may begin once it is no further ahead than the
//!   burst.
//! - Nothing waits here, nor in a volume: that is for who passes on hosts' commands, who holds nothing
//!   meanwhile that others need ([`Disk::admit`]).
//! - An operation larger than a burst is admitted like any other; the next ones wait the longer.
//! - Limits have a generation: another limit holds for those who wait, too.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use corebay_core::{
    disk::{Admission, Cost, Direction, Disk},
    units::Time,
};

use crate::{
    error::PoolError,
    format::{
        limits::{Limits, Rate},
        record::Record,
    },
    manage::{Pool, VolumeId},
};

const NANOS: u128 = 1_000_000_000;

/// One limit.
#[derive(Debug, Default)]
struct Bucket {
    per_second: AtomicU64,
    /// How far ahead it may be, in nanoseconds.
    ahead: AtomicU64,
    /// When all that was admitted would be done.
    done: AtomicU64,
}

impl Bucket {
    /// Sets the limit, and fills the bucket; false where it is so already.
    fn set(&self, rate: Rate) -> bool {
        let ahead = nanos(rate.burst, rate.per_second);
        let before = self.ahead.swap(ahead, Ordering::Relaxed);
        let same = self.per_second.swap(rate.per_second, Ordering::Relaxed) == rate.per_second;
        if same && before == ahead {
            return false;
        }
        self.done.store(0, Ordering::Relaxed);
        true
    }

    /// Admits `units`; the point in time from which on they may be done.
    fn take(&self, units: u64, now: u64) -> u64 {
        let per_second = self.per_second.load(Ordering::Relaxed);
        if per_second == 0 || units == 0 {
            return now;
        }
        let cost = nanos(units, per_second);
        let later = |done: u64| Some(done.max(now).saturating_add(cost));
        let order = Ordering::Relaxed;
        let before = self.done.fetch_update(order, order, later);
        let before = before.unwrap_or_else(|same| same);
        before.saturating_sub(self.ahead.load(Ordering::Relaxed))
    }
}

/// How long `units` take.
fn nanos(units: u64, per_second: u64) -> u64 {
    let nanos = (u128::from(units) * NANOS).div_ceil(u128::from(per_second.max(1)));
    u64::try_from(nanos).unwrap_or(u64::MAX)
}

/// A volume's limits, which all cores share.
#[derive(Debug, Default)]
pub(crate) struct Qos {
    limited: AtomicBool,
    /// Counts changes of the limits.
    generation: AtomicU64,
    read: [Bucket; 2],
    write: [Bucket; 2],
}

impl Qos {
    /// Sets the limits, where they are others than before.
    pub fn set(&self, limits: &Limits) {
        let changed = [
            self.read[0].set(limits.read_operations),
            self.read[1].set(limits.read_bytes),
            self.write[0].set(limits.write_operations),
            self.write[1].set(limits.write_bytes),
        ];
        if changed.contains(&true) {
            self.generation.fetch_add(1, Ordering::Release);
            let limited = *limits != Limits::default();
            self.limited.store(limited, Ordering::Release);
        }
    }

    #[inline]
    pub fn is_limited(&self) -> bool {
        self.limited.load(Ordering::Relaxed)
    }

    /// Changes with the limits.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Counts operations as if they came at `at`.
    pub fn admit(&self, cost: Cost, at: Time) -> Admission {
        // Read first: what is counted by limits that have just changed is counted again.
        let generation = self.generation();
        if !self.is_limited() {
            return Admission {
                from: at,
                generation,
            };
        }
        let buckets = match cost.direction {
            Direction::Read => &self.read,
            Direction::Write => &self.write,
        };
        let operations = buckets[0].take(cost.operations, at.0);
        let from = Time(operations.max(buckets[1].take(cost.bytes, at.0)));
        Admission { from, generation }
    }
}

impl<D: Disk> Pool<D> {
    /// Limits what hosts read from and write to a volume, on all cores together; from the next operation
    /// on, and for those that wait already.
    ///
    /// # Errors
    /// Where there is no such volume.
    pub async fn set_limits(&self, id: VolumeId, limits: &Limits) -> Result<(), PoolError> {
        let _control = self.control().await?;
        if self.volume(id)?.limits == *limits {
            return Ok(());
        }
        self.change(&[Record::Limits {
            volume: id.0,
            limits: *limits,
        }])
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn limits(operations: Rate, bytes: Rate) -> Limits {
        Limits {
            write_operations: operations,
            write_bytes: bytes,
            ..Limits::default()
        }
    }

    fn rate(per_second: u64, burst: u64) -> Rate {
        Rate { per_second, burst }
    }

    fn take(qos: &Qos, direction: Direction, bytes: u64, at: Time) -> Time {
        let cost = Cost {
            direction,
            operations: 1,
            bytes,
        };
        qos.admit(cost, at).from
    }

    /// How many operations of `bytes` begin before `end`, where each comes when the one before it has
    /// begun.
    fn begun(qos: &Qos, bytes: u64, from: u64, end: u64) -> u64 {
        let (mut now, mut count) = (from, 0);
        loop {
            now = take(qos, Direction::Write, bytes, Time(now)).0.max(now);
            if now >= end {
                return count;
            }
            count += 1;
        }
    }

    #[test]
    fn operations_come_at_their_rate_after_a_burst() {
        let qos = Qos::default();
        qos.set(&limits(rate(1000, 50), Rate::default()));
        let start = 7 * SECOND;
        let count = begun(&qos, 1 << 20, start, start + SECOND);
        assert!((1050..=1051).contains(&count), "{count}");
        // A pause of a tenth of a second fills the bucket again, and no more.
        let later = start + 2 * SECOND;
        let count = begun(&qos, 1 << 20, later, later + SECOND / 2);
        assert!((550..=551).contains(&count), "{count}");
        assert!(qos.is_limited());
        let read = take(&qos, Direction::Read, 1 << 30, Time(start));
        assert_eq!(read, Time(start), "reads are not limited");
    }

    #[test]
    fn the_tighter_of_two_limits_holds() {
        let qos = Qos::default();
        qos.set(&limits(rate(1000, 0), rate(40 << 20, 0)));
        // 64 KiB: 640 a second by bytes; 4 KiB: 1000 a second by operations.
        let count = begun(&qos, 64 << 10, SECOND, 2 * SECOND);
        assert!((640..=641).contains(&count), "{count}");
        let count = begun(&qos, 4 << 10, 3 * SECOND, 4 * SECOND);
        assert!((1000..=1001).contains(&count), "{count}");
    }

    #[test]
    fn an_operation_larger_than_the_burst_begins_and_is_paid_by_the_next() {
        let qos = Qos::default();
        qos.set(&limits(Rate::default(), rate(1 << 20, 4096)));
        let first = take(&qos, Direction::Write, 1 << 20, Time(SECOND));
        assert!(first.0 <= SECOND);
        let second = take(&qos, Direction::Write, 4096, Time(SECOND));
        let wait = second.0 - SECOND;
        assert!((990_000_000..SECOND).contains(&wait), "{wait}");
    }

    #[test]
    fn the_largest_and_the_smallest_rates_do_not_overflow() {
        let qos = Qos::default();
        qos.set(&limits(rate(1, u64::MAX), rate(u64::MAX, u64::MAX)));
        assert!(take(&qos, Direction::Write, u64::MAX, Time(5)).0 <= 5);
        qos.set(&limits(rate(1, 0), rate(1, 0)));
        for _ in 0..3 {
            let _ = take(&qos, Direction::Write, u64::MAX, Time(u64::MAX));
        }
        qos.set(&Limits::default());
        assert!(!qos.is_limited());
    }

    #[test]
    fn several_threads_get_the_rate_together() {
        let qos = Qos::default();
        qos.set(&limits(rate(10_000, 0), Rate::default()));
        let counts: Vec<u64> = std::thread::scope(|scope| {
            let one = || scope.spawn(|| begun(&qos, 4096, SECOND, 2 * SECOND));
            let all: Vec<_> = (0..4).map(|_| one()).collect();
            all.into_iter().map(|each| each.join().unwrap()).collect()
        });
        let all: u64 = counts.iter().sum();
        assert!((9_997..=10_001).contains(&all), "{counts:?}");
    }
}
