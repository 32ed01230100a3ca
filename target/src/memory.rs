//! One core's memory, by what it is for, and how much of it one host may hold.
//!
//! Payload is held for as long as hosts take to send or to take their data, so it is shared out. A
//! [`HostShare`] counts the blocks that all connections of one host (by its NQN) hold on this core.
//!
//! Invariants of payload:
//! 1. *Share.* A host takes a block only if what it then holds was free: so one host leaves half of
//!    the pool to the others, two leave a third. Beyond that, a queue that holds nothing may take
//!    one block outside the reserve, since a host may read one connection before another.
//! 2. *Reserve.* The last [`PAYLOAD_RESERVE_PART`] of the pool is for hosts that keep it moving:
//!    those that lately moved as much as they hold, and those that hold nothing. A host with a
//!    connection that stalls ([`SLOW_AFTER`]) takes nothing of it. So of the reserve hosts that
//!    begin to stall hold one block each, whatever they ask for on however many connections.
//! 3. *Line.* Once a queue was refused for its host's share, no other queue of the host that holds
//!    something takes a block before it does; and none at all once the refused one holds nothing.
//! 4. *Turn.* Once a queue found no block free, no other queue takes one before it does
//!    ([`Core`](crate::core::Core) sees to it). If that takes longer than [`SQUEEZE_AFTER`], stalled
//!    connections that hold memory end, those of the host that holds the most first.
//!
//! Why everybody is served, whatever the sizes and depths: the pool is at least
//! [`PAYLOAD_BYTES_MIN`], four of the largest blocks, so an empty pool serves any command. A command
//! that holds payload needs no more of it, but for the halves of a fused command, which are small and
//! few and pass their share. A queue that is refused for its host's share waits for what it holds
//! itself, then (by 3) for what its host holds, which only shrinks, by disks and by the host itself;
//! where the host holds nothing, it is refused nothing, unless it stalls, and then it waits for
//! itself. Whoever finds no block free waits for what all hold: by 4 that only shrinks, as disks
//! complete and as hosts take and send their data or are cut off.

//! Invariants of in-capsule data: at least half of the pool is for complete commands, which wait for
//! disks, and for the limits of what they go to. Of that a host takes a block only if what it then holds
//! was free, as of payload, but for one of each admin queue, which keeps its controllers alive; and of the
//! last [`IN_CAPSULE_PART`]th hosts with commands that wait for a limit take one block each: however many
//! such there are, they leave room for others. Capsules whose data are
//! still arriving hold at most a quarter ([`Memory::begin_capsule`]; beyond it they arrive in their connection's staging buffer, and take a
//! block once they are complete, [`Memory::complete_capsule`]); fused commands, whose first half may
//! wait for its second, at most another ([`Memory::fused_max`]). Complete capsules that find no block
//! free get theirs in the order in which they came.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    rc::Rc,
    time::Duration,
};

use corebay_core::{
    arena::Region,
    buffer::{BLOCK_BYTES_MAX, Buffer, BufferPool, block_bytes},
};
use corebay_nvme::spec::nqn::Nqn;

use crate::{
    limits::{FUSED_MAX, SCRATCH_BYTES, SCRATCH_COUNT, SLOW_AFTER, SQUEEZE_AFTER, TASKS_PER_CORE},
    queue::QueueKey,
};

/// The least payload memory of a core.
pub const PAYLOAD_BYTES_MIN: usize = 4 * BLOCK_BYTES_MAX;

/// One part in so many of the payload pool is its reserve.
pub const PAYLOAD_RESERVE_PART: usize = 4;

/// How many times as many task slots as it leaves to others a host may have.
const SLOTS_AHEAD: usize = 4;

const _: () = assert!(PAYLOAD_BYTES_MIN / PAYLOAD_RESERVE_PART >= BLOCK_BYTES_MAX);

/// One core's memory. Its pools are apart so that none can starve another: payload may wait for
/// hosts; so may some in-capsule data, but most, and all scratch, only ever wait for disks.
#[derive(Clone)]
pub struct Memory {
    /// Payloads of reads, and of writes that are fetched from the host.
    pub payload: BufferPool,
    /// Data that came inside a command capsule.
    pub in_capsule: BufferPool,
    /// Working space of Compare, Copy and Verify.
    pub scratch: BufferPool,
    payload_reserve: usize,
    /// In-capsule bytes whose capsules are still arriving.
    arriving: Rc<Cell<usize>>,
    /// Queues whose complete capsule found no block.
    capsule_line: Rc<RefCell<VecDeque<QueueKey>>>,
}

/// One part in so many of the in-capsule pool is for capsules that are still arriving, and as much
/// for fused commands, and for hosts that wait for no limit.
const IN_CAPSULE_PART: usize = 4;

/// Holds its block's place among the capsules that are still arriving.
#[derive(Debug)]
pub struct Arriving {
    among: Rc<Cell<usize>>,
    block: usize,
}

impl Drop for Arriving {
    fn drop(&mut self) {
        self.among.set(self.among.get() - self.block);
    }
}

impl Memory {
    /// Divides a core's part of the arena. `None` where it is less than 8 MiB.
    #[must_use]
    pub fn divide(take: &mut impl FnMut(usize) -> Option<Region>, bytes: usize) -> Option<Self> {
        const MIB: usize = 1 << 20;
        let scratch = SCRATCH_BYTES * SCRATCH_COUNT / if bytes < 64 * MIB { 4 } else { 1 };
        let in_capsule = (bytes / 8).next_multiple_of(MIB);
        let payload = (bytes.checked_sub(scratch + in_capsule)? / MIB) * MIB;
        if payload < PAYLOAD_BYTES_MIN {
            return None;
        }
        Some(Self {
            payload: BufferPool::new(take(payload)?, 1),
            in_capsule: BufferPool::new(take(in_capsule)?, 1),
            scratch: BufferPool::new(take(scratch)?, TASKS_PER_CORE),
            payload_reserve: payload / PAYLOAD_RESERVE_PART,
            arriving: Rc::default(),
            capsule_line: Rc::default(),
        })
    }

    /// A buffer for in-capsule data that have not all arrived yet, where there is room for such. Without a
    /// `share` they are held against none.
    #[must_use]
    pub fn begin_capsule(
        &self,
        share: Option<&HostShare>,
        len: usize,
    ) -> Option<(Buffer, Arriving)> {
        let (block, arriving) = (block_bytes(len), self.arriving.get());
        let most = self.in_capsule.total_bytes() / IN_CAPSULE_PART;
        let line = !self.capsule_line.borrow().is_empty();
        let admits = || share.is_none_or(|share| share.admits_capsule(block, self));
        if arriving + block > most || line || !admits() {
            return None;
        }
        let buffer = self.in_capsule.try_allocate(len)?;
        self.arriving.set(arriving + block);
        let among = self.arriving.clone();
        Some((buffer, Arriving { among, block }))
    }

    /// A buffer for the in-capsule data of queue `key`, all of which have arrived. Where there is
    /// none it is in line from then on; unless its host holds so much that it keeps nobody waiting.
    #[must_use]
    pub fn complete_capsule(
        &self,
        key: QueueKey,
        share: Option<&HostShare>,
        len: usize,
    ) -> Option<Buffer> {
        let mut line = self.capsule_line.borrow_mut();
        if share.is_some_and(|share| !share.admits_capsule(block_bytes(len), self)) {
            line.retain(|each| *each != key);
            return None;
        }
        if line.front().is_none_or(|first| *first == key)
            && let Some(buffer) = self.in_capsule.try_allocate(len)
        {
            line.pop_front();
            return Some(buffer);
        }
        if !line.contains(&key) {
            line.push_back(key);
        }
        None
    }

    /// The queue `key` has ended.
    pub fn leave_capsule_line(&self, key: QueueKey) {
        self.capsule_line.borrow_mut().retain(|each| *each != key);
    }

    /// How many fused commands may hold in-capsule data of so many bytes each.
    #[must_use]
    pub fn fused_max(&self, in_capsule_bytes: usize) -> usize {
        let most = self.in_capsule.total_bytes() / IN_CAPSULE_PART;
        FUSED_MAX.min(most / block_bytes(in_capsule_bytes.max(1)))
    }

    /// A piece of working space. Who holds one waits for nothing but disks.
    pub async fn scratch_piece(&self) -> Buffer {
        self.scratch.allocate(SCRATCH_BYTES).await
    }
}

/// What all connections of one host hold of a core's payload memory.
#[derive(Debug, Default)]
pub struct HostShare {
    held: Cell<usize>,
    /// Blocks of in-capsule data of its commands.
    capsules: Cell<usize>,
    /// Commands that wait for the limits of their namespace.
    limited: Cell<usize>,
    /// Task slots that its commands have.
    running: Cell<usize>,
    /// Fused commands.
    fused: Cell<usize>,
    /// The host moves at least as much as it holds between two looks.
    moves: Cell<bool>,
    /// One of its connections stalls.
    stalls: Cell<bool>,
    /// The queue that was refused and goes first, and whether it holds anything.
    first: Cell<Option<(QueueKey, bool)>>,
    /// What was seen of its connections since the last look.
    seen: Cell<Seen>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    moved: u64,
    stalled_for: Duration,
    /// The longest stall of a connection that holds memory.
    holds_for: Duration,
}

impl HostShare {
    /// The bytes of the blocks that the host holds.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.get()
    }

    /// True where the host's queue `key`, which holds `own` bytes itself, may take a block of so many
    /// bytes now.
    pub fn admits(&self, key: QueueKey, own: usize, block: usize, memory: &Memory) -> bool {
        let first = self.first.get().filter(|(first, _)| *first != key);
        if first.is_some_and(|(_, holds)| own != 0 || !holds) {
            return false;
        }
        let (held, free) = (self.held.get(), memory.payload.free_bytes());
        let outside = free >= block + memory.payload_reserve;
        let fits = held == 0 && !self.stalls.get()
            || own == 0 && outside
            || held + block <= free && (outside || self.moves.get());
        if first.is_none() {
            self.first.set((!fits).then_some((key, own != 0)));
        }
        fits
    }

    fn admits_capsule(&self, block: usize, memory: &Memory) -> bool {
        let held = self.capsules.get();
        let pool = &memory.in_capsule;
        let kept = match self.limited.get() {
            0 => 0,
            _ => pool.total_bytes() / IN_CAPSULE_PART,
        };
        held == 0 || held + block + kept <= pool.free_bytes()
    }

    /// One more of its commands waits for the limits of its namespace.
    pub fn wait_for_limits(&self) {
        self.limited.set(self.limited.get() + 1);
    }

    /// So many of them wait no more.
    pub fn limits_passed(&self, commands: usize) {
        self.limited.set(self.limited.get() - commands);
    }

    /// Counts in-capsule blocks that a command has, or has had.
    pub fn hold_capsule(&self, block: usize) {
        self.capsules.set(self.capsules.get() + block);
    }

    /// Counts them no more.
    pub fn let_capsule_go(&self, block: usize) {
        self.capsules.set(self.capsules.get() - block);
    }

    /// True where a command of the host may have one of so many free task slots: commands on a disk that does
    /// not answer keep theirs, so a host has at most [`SLOTS_AHEAD`] times as many as it leaves to others.
    pub fn may_run(&self, free: usize) -> bool {
        self.running.get() < free.saturating_mul(SLOTS_AHEAD)
    }

    /// So many of its commands begin to execute.
    pub fn run(&self, commands: usize) {
        self.running.set(self.running.get() + commands);
    }

    /// So many of them have ended.
    pub fn end_run(&self, commands: usize) {
        self.running.set(self.running.get() - commands);
    }

    /// The queue `key` waits no longer.
    pub fn leave_line(&self, key: QueueKey) {
        if self.first.get().is_some_and(|(first, _)| first == key) {
            self.first.set(None);
        }
    }

    /// Counts a block that was taken.
    pub fn take(&self, block: usize) {
        self.held.set(self.held.get() + block);
    }

    /// Counts a block, or none, that was given back.
    pub fn give_back(&self, block: usize) {
        self.held.set(self.held.get() - block);
    }

    /// Notes what was seen of a connection: the bytes of data that it moved since the last look, for
    /// how long it has moved none though some are due, and whether it holds memory.
    pub fn note(&self, moved: u64, stalled_for: Duration, holds: bool) {
        let mut seen = self.seen.get();
        seen.moved += moved;
        seen.stalled_for = seen.stalled_for.max(stalled_for);
        if holds {
            seen.holds_for = seen.holds_for.max(stalled_for);
        }
        self.seen.set(seen);
    }

    fn judge(&self) {
        let seen = self.seen.get();
        let stalls = seen.stalled_for >= SLOW_AFTER;
        self.stalls.set(stalls);
        self.moves
            .set(!stalls && seen.moved >= self.held.get() as u64);
    }
}

/// The shares of one core's hosts.
#[derive(Debug)]
pub struct HostShares {
    /// Of all connections whose host is not known yet.
    pub strangers: Rc<HostShare>,
    hosts: RefCell<BTreeMap<Nqn, Rc<HostShare>>>,
    fused: Cell<usize>,
    fused_max: usize,
}

impl HostShares {
    /// Shares of a core that has at most so many fused commands.
    #[must_use]
    pub fn new(fused_max: usize) -> Self {
        Self {
            strangers: Rc::default(),
            hosts: RefCell::default(),
            fused: Cell::new(0),
            fused_max,
        }
    }

    /// The fused commands that are counted.
    #[must_use]
    pub fn fused(&self) -> usize {
        self.fused.get()
    }

    /// Counts a fused command of this host; false where it has to come again later.
    #[must_use]
    pub fn begin_fused(&self, share: &HostShare) -> bool {
        let fits = share.fused.get() + self.fused.get() < self.fused_max;
        if fits {
            share.fused.set(share.fused.get() + 1);
            self.fused.set(self.fused.get() + 1);
        }
        fits
    }

    /// A fused command of this host has ended.
    pub fn end_fused(&self, share: &HostShare) {
        share.fused.set(share.fused.get() - 1);
        self.fused.set(self.fused.get() - 1);
    }

    /// The share of a host. For the time of Connect.
    #[must_use]
    pub fn of(&self, host: &Nqn) -> Rc<HostShare> {
        let mut hosts = self.hosts.borrow_mut();
        hosts.entry(host.clone()).or_default().clone()
    }

    /// Looks at all connections, each of which notes what it sees in its host's share, and judges
    /// by that.
    pub fn look(&self, connections: impl FnOnce()) {
        let hosts = || self.hosts.borrow().values().cloned().collect::<Vec<_>>();
        for share in hosts().iter().chain([&self.strangers]) {
            share.seen.set(Seen::default());
        }
        connections();
        self.hosts
            .borrow_mut()
            .retain(|_, share| Rc::strong_count(share) > 1);
        for share in hosts().iter().chain([&self.strangers]) {
            share.judge();
        }
    }

    /// Among the hosts with connections that hold memory and have stalled for [`SQUEEZE_AFTER`], the
    /// one that holds the most.
    #[must_use]
    pub fn largest_stalled(&self) -> Option<Rc<HostShare>> {
        let hosts = self.hosts.borrow();
        hosts
            .values()
            .chain([&self.strangers])
            .filter(|share| share.seen.get().holds_for >= SQUEEZE_AFTER)
            .max_by_key(|share| share.held())
            .cloned()
    }

    /// Lets go of all.
    pub fn clear(&self) {
        self.hosts.borrow_mut().clear();
    }
}

#[cfg(test)]
mod tests {
    use corebay_core::arena::Arena;

    use super::*;

    fn memory() -> Memory {
        let mut arena = Arena::lazy(8 << 20).unwrap();
        Memory::divide(&mut |bytes| arena.take(bytes), 8 << 20).unwrap()
    }

    #[test]
    fn complete_capsules_get_memory_in_the_order_in_which_they_came() {
        let (memory, share) = (memory(), HostShare::default());
        let mut held = Vec::new();
        while let Some(buffer) = memory.complete_capsule(QueueKey(1), Some(&share), 4096) {
            held.push(buffer);
        }
        memory.leave_capsule_line(QueueKey(1));
        let ask = |key, len| memory.complete_capsule(QueueKey(key), Some(&share), len);
        assert!(ask(2, 8192).is_none());
        assert!(ask(3, 4096).is_none());
        held.truncate(held.len() - 1);
        for (key, len) in [(3, 4096), (2, 8192), (3, 4096)] {
            assert!(ask(key, len).is_none(), "the first needs more");
        }
        assert!(memory.begin_capsule(Some(&share), 100).is_none());
        held.clear();
        assert!(ask(3, 4096).is_none());
        assert!(ask(2, 8192).is_some());
        assert!(ask(3, 4096).is_some());
        assert!(ask(9, 4096).is_some(), "nobody is in line");
    }

    #[test]
    fn a_host_whose_commands_wait_leaves_memory_and_slots() {
        let (memory, limited) = (memory(), HostShare::default());
        let mut held = Vec::new();
        while let Some(buffer) = memory.complete_capsule(QueueKey(1), Some(&limited), 4096) {
            held.push(buffer);
            limited.hold_capsule(4096);
        }
        let pool = &memory.in_capsule;
        assert_eq!(pool.free_bytes() * 2, pool.total_bytes());
        assert!(memory.begin_capsule(Some(&limited), 4096).is_none());
        // What keeps its controllers alive is not held against it.
        held.extend(memory.complete_capsule(QueueKey(3), None, 4096));
        assert_eq!(pool.free_bytes() * 2, pool.total_bytes() - 2 * 4096);
        held.pop();
        // It is not in line, where it would keep others waiting.
        let other = HostShare::default();
        held.extend(memory.complete_capsule(QueueKey(2), Some(&other), 4096));
        assert!(memory.begin_capsule(Some(&other), 4096).is_some());
        limited.let_capsule_go(held.len() * 4096 - 4096);
        assert!(
            memory
                .complete_capsule(QueueKey(1), Some(&limited), 4096)
                .is_some()
        );
        let mut free = TASKS_PER_CORE;
        while limited.may_run(free) {
            limited.run(1);
            free -= 1;
        }
        assert!(free > TASKS_PER_CORE / 6, "{free}");
        assert!(other.may_run(free));
        limited.end_run(1);
        assert!(limited.may_run(free + 1));
    }

    #[test]
    fn many_hosts_that_wait_for_limits_leave_memory_to_those_that_do_not() {
        let memory = memory();
        let (pool, mut held) = (&memory.in_capsule, Vec::new());
        for _ in 0..40 {
            let limited = HostShare::default();
            while let Some(buffer) = memory.complete_capsule(QueueKey(1), Some(&limited), 4096) {
                held.push(buffer);
                limited.hold_capsule(4096);
                limited.wait_for_limits();
            }
        }
        let left = pool.total_bytes() / IN_CAPSULE_PART - 40 * 4096;
        assert!(pool.free_bytes() >= left, "{}", pool.free_bytes());
        let other = HostShare::default();
        let mut count = 0;
        while let Some(buffer) = memory.complete_capsule(QueueKey(2), Some(&other), 4096) {
            held.push(buffer);
            other.hold_capsule(4096);
            count += 1;
        }
        assert!(count * 4096 >= left / 2, "{count}");
    }

    #[test]
    fn arriving_capsules_leave_most_of_the_memory() {
        let (memory, share) = (memory(), HostShare::default());
        let mut held = Vec::new();
        while let Some(arriving) = memory.begin_capsule(Some(&share), 5000) {
            held.push(arriving);
        }
        let pool = &memory.in_capsule;
        assert_eq!(pool.free_bytes() * 4, pool.total_bytes() * 3);
        held.pop();
        assert!(
            memory.begin_capsule(Some(&share), 1).is_some(),
            "one has arrived"
        );
    }

    #[test]
    fn a_host_leaves_as_many_fused_commands_as_it_has() {
        let shares = HostShares::new(16);
        let (one, two) = (HostShare::default(), HostShare::default());
        let begin = |share| (0..100).filter(|_| shares.begin_fused(share)).count();
        assert_eq!([begin(&one), begin(&two)], [8, 4]);
        shares.end_fused(&one);
        assert!(shares.begin_fused(&two));
        assert!(!shares.begin_fused(&one));
        assert_eq!(shares.fused(), 12);
    }
}
