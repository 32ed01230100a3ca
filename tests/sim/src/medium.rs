//! A simulated medium: a durable image, and what was written and is not durable yet.
//!
//! Invariants:
//! - One block is atomic. Blocks that were cleared are zeroes, and so are those that were never written,
//!   unless something else was on the medium.
//! - What is in the durable image survives everything. Of what is not, a power cut lets each block
//!   by itself keep any of its versions or none, in any order; where the medium tears, a block may
//!   also be lost: reading it fails until it is written again.
//! - A flush makes durable what had completed when it began, and nothing else.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use corebay_core::{
    disk::{DiskError, DiskInfo},
    rng::Rng,
    units::{BlockSize, Time},
};

use corebay_raid::geometry::ZONE_OFFSET;

use crate::trace::{lock, mix};

/// So many bytes were wiped of what was on a used medium: whoever makes an array would not take it else.
const WIPED_BYTES: u64 = ZONE_OFFSET;

/// How long operations take.
#[derive(Clone, Copy, Debug)]
pub struct Latency {
    /// Each at least this long.
    pub min: Duration,
    /// And up to so much longer.
    pub spread: Duration,
    /// One in so many takes [`tail`](Self::tail) longer; 0: none.
    pub tail_one_in: u64,
    /// How much longer those take.
    pub tail: Duration,
    /// One read in so many takes [`tail`](Self::tail) longer, too; 0: none.
    pub slow_read_one_in: u64,
}

impl Latency {
    /// How long the next operation takes.
    pub fn draw(&self, reads: bool, rng: &mut Rng) -> Duration {
        let spread = u64::try_from(self.spread.as_nanos()).unwrap_or(u64::MAX);
        let mut time = self.min + Duration::from_nanos(rng.below(spread + 1));
        if rng.once_in(self.tail_one_in) || reads && rng.once_in(self.slow_read_one_in) {
            time += self.tail;
        }
        time
    }
}

/// What a medium is.
#[derive(Clone, Copy, Debug)]
pub struct MediumOptions {
    /// The size of a block.
    pub block_size: BlockSize,
    /// The blocks there are.
    pub blocks: u64,
    /// Completed writes may be lost with the power until they are flushed.
    pub volatile_cache: bool,
    /// A power cut may lose a block that was being written.
    pub tears: bool,
    /// Something else was on it, of which the beginning was wiped: other blocks that nobody has written hold
    /// some bytes.
    pub used: bool,
    /// How long operations take.
    pub latency: Latency,
}

/// What goes wrong on a medium, each one time in so many operations (0: never).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MediumFaults {
    /// A read fails, and the next one does not.
    pub transient_read: u64,
    /// A block that is read turns out to be lost until it is written again.
    pub latent_read: u64,
    /// A write fails: each of its blocks is old or new.
    pub write: u64,
    /// An operation takes [`stuck_for`](Self::stuck_for).
    pub stuck: u64,
    /// How long a stuck operation takes.
    pub stuck_for: Duration,
    /// A bit of a block that is read has changed, for good. Silent.
    pub bit_rot: u64,
    /// A block's write is answered and was never made. Silent.
    pub lost_write: u64,
    /// A block's write lands in another block. Silent.
    pub misdirected_write: u64,
    /// Silent faults strike blocks from this one on ...
    pub silent_from: u64,
    /// ... and below this one alone.
    pub silent_below: u64,
    /// Reads that fail do so there alone, too.
    pub told_there: bool,
}

impl MediumFaults {
    /// True where the medium may give other data than were written and not say so. Who exports a bare
    /// disk cannot know, so a plan has such faults only where something above the disk finds them.
    #[must_use]
    pub fn are_silent(&self) -> bool {
        self.bit_rot + self.lost_write + self.misdirected_write != 0
    }

    /// True where operations may fail.
    #[must_use]
    pub fn are_told(&self) -> bool {
        self.transient_read + self.latent_read + self.write != 0
    }
}

/// The content of a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Zeroes.
    Zeroes,
    /// These bytes.
    Bytes(Arc<[u8]>),
    /// None: reading it fails.
    Lost,
}

impl Content {
    /// A block with these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        match bytes.iter().all(|byte| *byte == 0) {
            true => Self::Zeroes,
            false => Self::Bytes(bytes.into()),
        }
    }
}

struct State {
    options: MediumOptions,
    faults: MediumFaults,
    durable: BTreeMap<u64, Content>,
    /// Versions of blocks that are not durable, oldest first, each with its place in the order.
    cached: BTreeMap<u64, Vec<(u64, Content)>>,
    /// What lies where nobody has written depends on it.
    seed: u64,
    order: u64,
    rng: Rng,
    full: bool,
    /// What a killed process had submitted, with the times at which it is carried out.
    orphans: Vec<(Time, Vec<(u64, Content)>)>,
    supply: Supply,
}

/// The power of a machine, which all its media share; clones name the same one.
#[derive(Clone)]
pub struct Supply(Arc<Mutex<Powered>>);

struct Powered {
    changes: u64,
    /// No change is taken after so many: the power is about to fail.
    stop_after: Option<u64>,
}

impl Default for Supply {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Powered {
            changes: 0,
            stop_after: None,
        })))
    }
}

impl Supply {
    /// Changes of blocks and flushes so far.
    #[must_use]
    pub fn changes(&self) -> u64 {
        lock(&self.0).changes
    }

    /// No change is taken after so many more, until the power has failed.
    pub fn stop_after(&self, changes: u64) {
        let powered = &mut *lock(&self.0);
        powered.stop_after = Some(powered.changes + changes);
    }

    /// True once that many changes have been made.
    #[must_use]
    pub fn has_stopped(&self) -> bool {
        let powered = &*lock(&self.0);
        powered
            .stop_after
            .is_some_and(|most| powered.changes >= most)
    }

    /// It has failed, and comes back.
    pub fn restore(&self) {
        lock(&self.0).stop_after = None;
    }

    /// Counts a change; false where none is taken any more.
    fn take_change(&self) -> bool {
        if self.has_stopped() {
            return false;
        }
        lock(&self.0).changes += 1;
        true
    }
}

/// A medium; clones name the same one. It outlives the processes that use it.
#[derive(Clone)]
pub struct SimMedium {
    state: Arc<Mutex<State>>,
    /// Beside the state, as it is asked for at every turn.
    gone: Arc<AtomicBool>,
    /// When the next orphan is due.
    next_orphan: Arc<AtomicU64>,
}

impl SimMedium {
    /// A medium that nobody has written, in the machine that this power is of.
    #[must_use]
    pub fn new(options: MediumOptions, seed: u64, supply: &Supply) -> Self {
        let state = State {
            options,
            faults: MediumFaults::default(),
            durable: BTreeMap::new(),
            cached: BTreeMap::new(),
            seed,
            order: 0,
            rng: Rng::from_seed(seed),
            full: false,
            orphans: Vec::new(),
            supply: supply.clone(),
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            gone: Arc::default(),
            next_orphan: Arc::new(AtomicU64::new(u64::MAX)),
        }
    }

    /// True where both are the same medium.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.state, &other.state)
    }

    /// What a disk over it is.
    #[must_use]
    pub fn info(&self) -> DiskInfo {
        let options = self.options();
        DiskInfo {
            block_size: options.block_size,
            blocks: options.blocks,
            volatile_cache: options.volatile_cache,
            deallocate_granularity: Some(1),
            write_uncorrectable: true,
            atomic_write_bytes: options.block_size.bytes() as u32,
        }
    }

    /// What it is.
    #[must_use]
    pub fn options(&self) -> MediumOptions {
        self.state().options
    }

    /// Sets what goes wrong from now on.
    pub fn set_faults(&self, faults: MediumFaults) {
        self.state().faults = faults;
    }

    /// No space is left for blocks that hold nothing yet.
    pub fn set_full(&self, full: bool) {
        self.state().full = full;
    }

    /// The medium is unplugged, or plugged in again.
    pub fn set_gone(&self, gone: bool) {
        self.gone.store(gone, Ordering::Relaxed);
        if gone {
            self.state().orphans.clear();
        }
    }

    /// True while it is unplugged.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    /// How long the next operation takes.
    #[must_use]
    pub fn draw_latency(&self, reads: bool) -> Duration {
        let state = &mut *self.state();
        let time = state.options.latency.draw(reads, &mut state.rng);
        if state.rng.once_in(state.faults.stuck) {
            return time + state.faults.stuck_for;
        }
        time
    }

    /// Where the order of writes stands: what a flush that begins now has to cover.
    #[must_use]
    pub fn order(&self) -> u64 {
        self.state().order
    }

    /// One block as the device sees it now.
    ///
    /// # Errors
    /// Where the block is lost, or reading it fails this once.
    pub fn read(&self, at: u64) -> Result<Content, DiskError> {
        let state = &mut *self.state();
        let faults = state.faults;
        let there = (faults.silent_from..faults.silent_below).contains(&at);
        let told = there || !faults.told_there;
        if told && state.rng.once_in(faults.transient_read) {
            return Err(DiskError::UnrecoveredRead);
        }
        if told && state.rng.once_in(faults.latent_read) {
            state.put(at, Content::Lost, false);
        }
        if there && state.rng.once_in(faults.bit_rot) {
            state.rot(at);
        }
        match state.newest(at) {
            Content::Lost => Err(DiskError::UnrecoveredRead),
            content => Ok(content),
        }
    }

    /// Writes one block.
    ///
    /// # Errors
    /// Where no space is left for it.
    pub fn write(&self, at: u64, content: Content, durable: bool) -> Result<(), DiskError> {
        let state = &mut *self.state();
        if state.full && content != Content::Zeroes && state.newest(at) == Content::Zeroes {
            return Err(DiskError::NoSpace);
        }
        let faults = state.faults;
        let silent = (faults.silent_from..faults.silent_below).contains(&at);
        if silent && state.rng.once_in(faults.lost_write) || !state.supply.take_change() {
            return Ok(());
        }
        let lands_at = match silent && state.rng.once_in(faults.misdirected_write) {
            true => {
                let range = faults.silent_below - faults.silent_from;
                faults.silent_from + state.rng.below(range)
            }
            false => at,
        };
        state.put(lands_at, content, durable);
        Ok(())
    }

    /// A bit of a block changes, for good.
    pub fn rot(&self, at: u64) {
        self.state().rot(at);
    }

    /// True where this write is to fail.
    #[must_use]
    pub fn fails_write(&self) -> bool {
        let state = &mut *self.state();
        state.rng.once_in(state.faults.write)
    }

    /// True where a block that is being written while the power fails is lost.
    #[must_use]
    pub fn tears_now(&self) -> bool {
        let state = &mut *self.state();
        state.options.tears && state.rng.once_in(8)
    }

    /// True once in two times: for what has no rule.
    #[must_use]
    pub fn toss(&self) -> bool {
        self.state().rng.once_in(2)
    }

    /// A killed process had submitted this, which the kernel carries out at `due`.
    pub fn add_orphan(&self, due: Time, blocks: Vec<(u64, Content)>) {
        self.state().orphans.push((due, blocks));
        self.next_orphan.fetch_min(due.0, Ordering::Relaxed);
    }

    /// Carries out what killed processes had submitted and is due.
    pub fn advance(&self, now: Time) {
        if self.next_orphan.load(Ordering::Relaxed) > now.0 {
            return;
        }
        let mut due = Vec::new();
        {
            let state = &mut *self.state();
            while let Some(at) = state.orphans.iter().position(|(at, _)| *at <= now) {
                due.push(state.orphans.remove(at));
            }
            let next = state.orphans.iter().map(|(at, _)| at.0).min();
            self.next_orphan
                .store(next.unwrap_or(u64::MAX), Ordering::Relaxed);
        }
        // The earliest first: nobody waits for what they say.
        due.sort_by_key(|(at, _)| *at);
        for (at, content) in due.into_iter().flat_map(|(_, blocks)| blocks) {
            let _: Result<(), DiskError> = self.write(at, content, false);
        }
    }

    /// When the last of them will have been carried out. Until then the kernel keeps the file of the
    /// killed process open, and with it its lock: no other process can open it.
    #[must_use]
    pub fn locked_until(&self) -> Option<Time> {
        self.state().orphans.iter().map(|(at, _)| *at).max()
    }

    /// Makes durable what was completed when the order stood at `order`.
    pub fn flush(&self, order: u64) {
        let state = &mut *self.state();
        if !state.supply.take_change() {
            return;
        }
        let mut kept = BTreeMap::new();
        for (at, mut versions) in std::mem::take(&mut state.cached) {
            let later = versions.partition_point(|(version, _)| *version <= order);
            let rest = versions.split_off(later);
            if let Some((_, content)) = versions.pop() {
                state.settle(at, content);
            }
            if !rest.is_empty() {
                kept.insert(at, rest);
            }
        }
        state.cached = kept;
    }

    /// The power fails. What was in flight has been dealt with by the caller.
    pub fn cut_power(&self) {
        let state = &mut *self.state();
        for (_, blocks) in std::mem::take(&mut state.orphans) {
            for (at, content) in blocks {
                if state.rng.once_in(2) {
                    state.put(at, content, false);
                }
            }
        }
        for (at, mut versions) in std::mem::take(&mut state.cached) {
            if state.options.tears && state.rng.once_in(8) {
                state.durable.insert(at, Content::Lost);
                continue;
            }
            // As many outcomes as versions, and one more: none of them survives.
            let chosen = state.rng.below(versions.len() as u64 + 1);
            let chosen = usize::try_from(chosen).unwrap_or(0);
            if chosen < versions.len() {
                let (_, content) = versions.swap_remove(chosen);
                state.settle(at, content);
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl State {
    fn newest(&self, at: u64) -> Content {
        let cached = self.cached.get(&at).and_then(|versions| versions.last());
        match cached {
            Some((_, content)) => content.clone(),
            None => match self.durable.get(&at) {
                Some(content) => content.clone(),
                None if self.is_used(at) => self.before(at),
                None => Content::Zeroes,
            },
        }
    }

    /// True for a block that something else was on, and that was not wiped since.
    fn is_used(&self, at: u64) -> bool {
        self.options.used && at >= self.options.block_size.blocks_in(WIPED_BYTES)
    }

    /// What lay there before anybody wrote.
    fn before(&self, at: u64) -> Content {
        let word = mix(self.seed ^ mix(at)).to_le_bytes();
        Content::Bytes(word.repeat(self.options.block_size.bytes() / 8).into())
    }

    /// Changes one bit of a block.
    fn rot(&mut self, at: u64) {
        let bytes = self.options.block_size.bytes();
        let mut changed = match self.newest(at) {
            Content::Bytes(old) => old.to_vec(),
            Content::Zeroes => vec![0; bytes],
            Content::Lost => return,
        };
        let bit = usize::try_from(self.rng.below(bytes as u64 * 8)).unwrap_or(0);
        changed[bit / 8] ^= 1 << (bit % 8);
        self.put(at, Content::Bytes(changed.into()), true);
    }

    /// Zeroes take no place where there were none before.
    fn settle(&mut self, at: u64, content: Content) {
        match content {
            Content::Zeroes if !self.is_used(at) => drop(self.durable.remove(&at)),
            content => drop(self.durable.insert(at, content)),
        }
    }

    fn put(&mut self, at: u64, content: Content, durable: bool) {
        self.order += 1;
        if durable || !self.options.volatile_cache {
            // Older versions cannot come back: the device holds one line for each block.
            self.cached.remove(&at);
            self.settle(at, content);
        } else {
            let order = self.order;
            self.cached.entry(at).or_default().push((order, content));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn medium(seed: u64, volatile_cache: bool, tears: bool) -> SimMedium {
        let latency = Latency {
            min: Duration::ZERO,
            spread: Duration::ZERO,
            tail_one_in: 0,
            tail: Duration::ZERO,
            slow_read_one_in: 0,
        };
        let options = MediumOptions {
            block_size: BlockSize::B512,
            blocks: 8,
            volatile_cache,
            tears,
            used: false,
            latency,
        };
        SimMedium::new(options, seed, &Supply::default())
    }

    fn content(byte: u8) -> Content {
        Content::Bytes(Arc::from([byte; 512]))
    }

    /// What block 0 can be after a cut, over many seeds.
    fn outcomes(tears: bool, history: impl Fn(&SimMedium)) -> Vec<Result<Content, DiskError>> {
        let mut seen = Vec::new();
        for seed in 0..200 {
            let medium = medium(seed, true, tears);
            history(&medium);
            medium.cut_power();
            let found = medium.read(0);
            if !seen.contains(&found) {
                seen.push(found);
            }
        }
        seen
    }

    #[test]
    fn each_unflushed_version_may_survive_or_none() {
        let seen = outcomes(false, |medium| {
            medium.write(0, content(1), true).unwrap();
            medium.write(0, content(2), false).unwrap();
            medium.write(0, content(3), false).unwrap();
        });
        assert_eq!(seen.len(), 3);
    }

    #[test]
    fn a_flush_covers_what_had_completed_when_it_began() {
        let seen = outcomes(false, |medium| {
            medium.write(0, content(1), false).unwrap();
            let order = medium.order();
            medium.write(0, content(2), false).unwrap();
            medium.flush(order);
        });
        assert_eq!(seen.len(), 2);
        assert!(!seen.contains(&Ok(Content::Zeroes)));
    }

    #[test]
    fn a_durable_write_stays_and_hides_what_was_cached() {
        let seen = outcomes(true, |medium| {
            medium.write(0, content(1), false).unwrap();
            medium.write(0, content(2), true).unwrap();
        });
        assert_eq!(seen, [Ok(content(2))]);
    }

    #[test]
    fn a_torn_block_is_lost_until_it_is_written() {
        let seen = outcomes(true, |medium| medium.write(0, content(1), false).unwrap());
        assert_eq!(seen.len(), 3);
        assert!(seen.contains(&Err(DiskError::UnrecoveredRead)));
    }

    #[test]
    fn what_a_killed_process_had_submitted_lands_before_its_file_is_unlocked() {
        let medium = medium(1, false, false);
        medium.add_orphan(Time(5), vec![(0, content(1))]);
        medium.add_orphan(Time(9), vec![(0, content(2))]);
        assert_eq!(medium.locked_until(), Some(Time(9)));
        medium.advance(Time(5));
        assert_eq!(medium.read(0), Ok(content(1)));
        medium.advance(Time(9));
        assert_eq!(medium.read(0), Ok(content(2)));
        assert_eq!(medium.locked_until(), None);
    }

    #[test]
    fn a_medium_may_lie() {
        let faulty = |faults| {
            let medium = medium(1, false, false);
            medium.write(0, content(1), false).unwrap();
            medium.set_faults(faults);
            medium
        };
        let rotten = faulty(MediumFaults {
            bit_rot: 1,
            silent_below: 8,
            ..MediumFaults::default()
        });
        let Ok(Content::Bytes(bytes)) = rotten.read(0) else {
            panic!("a read that succeeds");
        };
        let changed: u32 = bytes.iter().map(|byte| (byte ^ 1).count_ones()).sum();
        assert_eq!(changed, 1);
        rotten.set_faults(MediumFaults::default());
        assert_eq!(rotten.read(0), Ok(Content::Bytes(bytes)), "for good");

        let losing = faulty(MediumFaults {
            lost_write: 1,
            silent_below: 8,
            ..MediumFaults::default()
        });
        losing.write(0, content(2), true).unwrap();
        assert_eq!(losing.read(0), Ok(content(1)));

        let misdirecting = faulty(MediumFaults {
            misdirected_write: 1,
            silent_below: 8,
            ..MediumFaults::default()
        });
        for _ in 0..4 {
            misdirecting.write(7, content(2), true).unwrap();
        }
        let landed = (0..7).any(|at| misdirecting.read(at) == Ok(content(2)));
        assert!(landed);
        assert!(!MediumFaults::default().are_silent());
    }

    #[test]
    fn what_lay_there_before_is_read_until_it_is_cleared() {
        let fresh = medium(1, true, false);
        let at = WIPED_BYTES / 512;
        let options = MediumOptions {
            used: true,
            ..fresh.options()
        };
        let medium = SimMedium::new(options, 1, &Supply::default());
        let before = medium.read(at);
        assert!(before != Ok(Content::Zeroes) && before == medium.read(at));
        assert_ne!(before, medium.read(at + 1));
        medium.write(at, Content::Zeroes, true).unwrap();
        medium.cut_power();
        assert_eq!(medium.read(at - 1), Ok(Content::Zeroes));
        assert_eq!(medium.read(at), Ok(Content::Zeroes));
    }

    #[test]
    fn a_full_medium_still_takes_overwrites_and_zeroes() {
        let medium = medium(1, false, false);
        medium.write(0, content(1), false).unwrap();
        medium.set_full(true);
        assert_eq!(medium.write(1, content(1), false), Err(DiskError::NoSpace));
        medium.write(0, content(2), false).unwrap();
        medium.write(1, Content::Zeroes, false).unwrap();
    }
}
