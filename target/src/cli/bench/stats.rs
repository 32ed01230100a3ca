//! What is counted while commands complete. Counting takes no memory.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use hdrhistogram::Histogram;

use super::content::Mismatch;

/// The longest latency that is told from longer ones, in nanoseconds.
const LATENCY_NS_MAX: u64 = 120_000_000_000;

/// The mismatches that are shown one by one.
pub const MISMATCHES_SHOWN_MAX: usize = 64;

/// What a command does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// Reads.
    Read,
    /// Writes.
    Write,
}

impl Direction {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

/// The completions of one direction.
#[derive(Clone, Debug)]
pub struct Completions {
    /// Their latencies in nanoseconds.
    pub latency_ns: Histogram<u64>,
    /// How many.
    pub ios: u64,
}

/// What one core, or all of them, have counted.
#[derive(Clone, Debug)]
pub struct Stats {
    /// Reads that succeeded.
    pub read: Completions,
    /// Writes that succeeded.
    pub write: Completions,
    /// Commands that failed, by what they failed with.
    pub errors: BTreeMap<(Direction, String), u64>,
    /// How long was measured.
    pub elapsed: Duration,
    /// What verification found.
    pub verify: Verified,
    /// The most associations that a core had: more than 1 where it had to connect again.
    pub associations: u64,
}

/// What verification found.
#[derive(Clone, Debug, Default)]
pub struct Verified {
    /// Blocks whose content was checked.
    pub blocks: u64,
    /// Blocks that were read and could not be checked, as nothing is known of them.
    pub unknown: u64,
    /// Units to be read back at the end, and those that were.
    pub read_back: (u64, u64),
    /// How often a block that was read was wrong.
    pub mismatched: u64,
    /// The first of the wrong blocks, each once.
    pub mismatches: Vec<Mismatch>,
}

impl Completions {
    fn new() -> Self {
        Self {
            latency_ns: Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3)
                .expect("the bounds are good"),
            ios: 0,
        }
    }

    fn add(&mut self, other: &Self) {
        self.ios += other.ios;
        self.latency_ns
            .add(&other.latency_ns)
            .expect("all histograms have the same bounds");
    }
}

impl Stats {
    /// Nothing counted yet.
    pub fn new() -> Self {
        Self {
            read: Completions::new(),
            write: Completions::new(),
            errors: BTreeMap::new(),
            elapsed: Duration::ZERO,
            verify: Verified::default(),
            associations: 1,
        }
    }

    /// A command succeeded.
    pub fn succeeded(&mut self, direction: Direction, latency: Duration) {
        let completions = match direction {
            Direction::Read => &mut self.read,
            Direction::Write => &mut self.write,
        };
        completions.ios += 1;
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        completions.latency_ns.saturating_record(nanos);
    }

    /// A command failed.
    pub fn failed(&mut self, direction: Direction, what: String) {
        *self.errors.entry((direction, what)).or_default() += 1;
    }

    /// A block is not what it should be.
    pub fn mismatched(&mut self, mismatch: Mismatch) {
        self.verify.mismatched += 1;
        let shown = &mut self.verify.mismatches;
        // A wrong block is often read again.
        if shown.len() < MISMATCHES_SHOWN_MAX && !shown.contains(&mismatch) {
            shown.push(mismatch);
        }
    }

    /// Takes in what another core has counted.
    pub fn add(&mut self, other: Self) {
        self.read.add(&other.read);
        self.write.add(&other.write);
        for (error, count) in other.errors {
            *self.errors.entry(error).or_default() += count;
        }
        self.elapsed = self.elapsed.max(other.elapsed);
        self.associations = self.associations.max(other.associations);
        let (mine, theirs) = (&mut self.verify, other.verify);
        mine.blocks += theirs.blocks;
        mine.unknown += theirs.unknown;
        mine.mismatched += theirs.mismatched;
        mine.read_back.0 += theirs.read_back.0;
        mine.read_back.1 += theirs.read_back.1;
        let room = MISMATCHES_SHOWN_MAX - mine.mismatches.len();
        mine.mismatches
            .extend(theirs.mismatches.into_iter().take(room));
    }

    /// Commands that failed.
    pub fn error_count(&self) -> u64 {
        self.errors.values().sum()
    }
}

/// What a core lets others see while it runs. Only that core changes it.
#[derive(Debug, Default)]
pub struct Live {
    /// Commands that completed.
    pub ios: AtomicU64,
    /// Commands that failed.
    pub errors: AtomicU64,
    /// Units that were read back.
    pub read_back: AtomicU64,
}

/// Adds one; the caller is the only one who does.
pub fn count(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}
