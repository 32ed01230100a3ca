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

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    time::Duration,
};

use corebay_core::{
    arena::Region,
    buffer::{BLOCK_BYTES_MAX, Buffer, BufferPool},
};
use corebay_nvme::spec::nqn::Nqn;

use crate::{
    limits::{SCRATCH_BYTES, SCRATCH_COUNT, SLOW_AFTER, SQUEEZE_AFTER, TASKS_PER_CORE},
    queue::QueueKey,
};

/// The least payload memory of a core.
pub const PAYLOAD_BYTES_MIN: usize = 4 * BLOCK_BYTES_MAX;

/// One part in so many of the payload pool is its reserve.
pub const PAYLOAD_RESERVE_PART: usize = 4;

const _: () = assert!(PAYLOAD_BYTES_MIN / PAYLOAD_RESERVE_PART >= BLOCK_BYTES_MAX);

/// One core's memory. Its pools are apart so that none can starve another: payload may wait for
/// hosts; in-capsule data may while they arrive, and scratch only ever waits for disks.
#[derive(Clone)]
pub struct Memory {
    /// Payloads of reads, and of writes that are fetched from the host.
    pub payload: BufferPool,
    /// Data that came inside a command capsule.
    pub in_capsule: BufferPool,
    /// Working space of Compare, Copy and Verify.
    pub scratch: BufferPool,
    payload_reserve: usize,
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
        })
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
#[derive(Debug, Default)]
pub struct HostShares {
    /// Of all connections whose host is not known yet.
    pub strangers: Rc<HostShare>,
    hosts: RefCell<BTreeMap<Nqn, Rc<HostShare>>>,
}

impl HostShares {
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
