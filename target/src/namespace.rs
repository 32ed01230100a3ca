//! Namespaces: what a subsystem exports, and one core's way to it.
//!
//! A [`NamespaceSpec`] is shared by all cores; each core opens its own [`Namespace`] from it, with
//! its own disk handle and its own half of the [`WriteGate`].
//!
//! Invariants:
//! - While a fused Compare and Write holds a gate's lock, no write that overlaps it executes on that
//!   core, and none that began before is still executing.
//! - Passing an open gate takes no lock and touches nothing of another core.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use corebay_core::{disk::DiskInfo, sync::FifoWait, units::Lba};

use crate::pace::Lines;

/// Who a namespace is, wherever it is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Identity {
    /// Namespace UUID (identifier type 3h), all zero where there is none.
    pub uuid: [u8; 16],
    /// Namespace Globally Unique Identifier, all zero where there is none.
    pub nguid: [u8; 16],
    /// IEEE Extended Unique Identifier, all zero where there is none.
    pub eui64: [u8; 8],
}

/// What all cores know of a namespace.
#[derive(Debug)]
pub struct NamespaceSpec<M> {
    /// Namespace identifier, 1 to [`NAMESPACES_MAX`](crate::limits::NAMESPACES_MAX).
    pub nsid: u32,
    /// Its names.
    pub identity: Identity,
    /// What its disk is opened from.
    pub medium: M,
    /// What its disk is.
    pub info: DiskInfo,
    /// Hosts may not change it.
    pub read_only: bool,
    /// What may change of it while it is attached, for a volume.
    pub live: Option<Arc<Live>>,
}

/// What may change of a namespace while it is attached. Whoever has the volume writes it; hosts are
/// told by an event.
#[derive(Debug, Default)]
pub struct Live {
    /// Its size (NSZE).
    pub blocks: AtomicU64,
    /// The blocks that may be in use at a time (NCAP).
    pub capacity: AtomicU64,
    /// The blocks in use (NUSE).
    pub used: AtomicU64,
    /// Space is taken as it is written (THINP).
    pub thin: AtomicBool,
    /// Nobody may write it.
    pub read_only: AtomicBool,
}

impl<M> NamespaceSpec<M> {
    /// Size, capacity and use, in blocks (NSZE, NCAP, NUSE).
    #[must_use]
    pub fn sizes(&self) -> (u64, u64, u64) {
        let Some(live) = &self.live else {
            return (self.info.blocks, self.info.blocks, self.info.blocks);
        };
        // NUSE <= NCAP <= NSZE, also where they are read while they change.
        let size = live.blocks.load(Ordering::Relaxed);
        let capacity = live.capacity.load(Ordering::Relaxed).min(size);
        let used = live.used.load(Ordering::Relaxed).min(capacity);
        (size, capacity, used)
    }

    /// The bytes of all its blocks.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.info.block_size.bytes_of(self.sizes().0)
    }

    /// True where space is taken as it is written.
    #[must_use]
    pub fn is_thin(&self) -> bool {
        let live = self.live.as_ref();
        live.is_some_and(|live| live.thin.load(Ordering::Relaxed))
    }

    /// True where hosts may not write it.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        let live = self.live.as_ref();
        self.read_only || live.is_some_and(|live| live.read_only.load(Ordering::Relaxed))
    }
}

/// One core's way to a namespace.
pub struct Namespace<D, M> {
    /// What all cores know of it.
    pub spec: std::sync::Arc<NamespaceSpec<M>>,
    /// The core's disk handle.
    pub disk: D,
    /// Orders this core's writes with fused commands. It outlives the namespace's being detached, for
    /// as long as commands execute that came before: who attaches it again finds the same gate.
    pub gate: Rc<WriteGate>,
    /// Who waits for its limits.
    pub lines: Lines,
}

type Slot<D, M> = Option<Rc<Namespace<D, M>>>;

/// The namespaces of one subsystem, as one core has opened them. Indexed by NSID.
pub struct NamespaceTable<D, M> {
    slots: RefCell<Vec<Slot<D, M>>>,
}

impl<D, M> Default for NamespaceTable<D, M> {
    fn default() -> Self {
        Self {
            slots: RefCell::default(),
        }
    }
}

impl<D, M> NamespaceTable<D, M> {
    /// The namespace with this id, if it is attached.
    #[must_use]
    pub fn get(&self, nsid: u32) -> Option<Rc<Namespace<D, M>>> {
        let index = usize::try_from(nsid.checked_sub(1)?).ok()?;
        self.slots.borrow().get(index)?.clone()
    }

    /// Attaches a namespace, replacing one with the same id.
    pub fn attach(&self, namespace: Namespace<D, M>) {
        let index = namespace.spec.nsid as usize - 1;
        let mut slots = self.slots.borrow_mut();
        if slots.len() <= index {
            slots.resize_with(index + 1, || None);
        }
        if let Some(before) = slots[index].replace(Rc::new(namespace)) {
            before.lines.detached();
        }
    }

    /// Detaches a namespace; commands that execute on it end as they would have.
    pub fn detach(&self, nsid: u32) -> Option<Rc<Namespace<D, M>>> {
        let index = usize::try_from(nsid.checked_sub(1)?).ok()?;
        let detached = self.slots.borrow_mut().get_mut(index)?.take();
        if let Some(namespace) = &detached {
            namespace.lines.detached();
        }
        detached
    }

    /// All attached namespaces, by ascending NSID.
    #[must_use]
    pub fn all(&self) -> Vec<Rc<Namespace<D, M>>> {
        self.slots.borrow().iter().flatten().cloned().collect()
    }
}

/// Fused commands of all hosts that may hold a gate at a time.
const LOCKS_MAX: usize = 64;

/// First block, blocks, and the lock that keeps them.
type LockedRange = (Lba, u64, u64);

/// What is to be done once a lock is taken.
type Ready = Box<dyn FnOnce()>;

/// Orders the writes of one core with fused Compare and Write commands of any core.
///
/// Writes are counted in two generations. Locking a range turns the generation and waits until the
/// writes of the older one have ended, so it waits for what is in flight and not for what comes.
/// Waiting for that takes no task: whoever locks leaves word what is to be done then.
pub struct WriteGate {
    locked: RefCell<Vec<LockedRange>>,
    /// Locks to be taken once the generation may be turned.
    to_lock: RefCell<VecDeque<(LockedRange, Ready)>>,
    generation: Cell<usize>,
    in_flight: [Cell<usize>; 2],
    writers: FifoWait,
    /// What is to be done once the older generation has ended.
    turning: RefCell<Option<Ready>>,
}

impl WriteGate {
    /// An open gate, with room for `waiters` waiting tasks.
    #[must_use]
    pub fn new(waiters: usize) -> Self {
        Self {
            locked: RefCell::new(Vec::with_capacity(LOCKS_MAX)),
            to_lock: RefCell::default(),
            generation: Cell::new(0),
            in_flight: [Cell::new(0), Cell::new(0)],
            writers: FifoWait::new(waiters),
            turning: RefCell::default(),
        }
    }

    /// Lets a write of `blocks` blocks from `at` begin, once no lock overlaps it.
    pub async fn enter(&self, at: Lba, blocks: u64) -> WritePass<'_> {
        if !self.locked.borrow().is_empty() {
            self.writers
                .wait_for(|| (!self.is_locked(at, blocks)).then_some(()))
                .await;
        }
        let generation = self.generation.get();
        self.in_flight[generation].set(self.in_flight[generation].get() + 1);
        WritePass {
            gate: self,
            generation,
        }
    }

    /// Locks a range against writes under `id`, and does `ready` once those that execute have ended.
    /// One caller at a time locks overlapping ranges (the namespace's home core sees to it).
    pub fn lock(&self, id: u64, at: Lba, blocks: u64, ready: Ready) {
        self.to_lock
            .borrow_mut()
            .push_back(((at, blocks, id), ready));
        self.take_locks();
    }

    /// Gives up the lock `id`.
    pub fn unlock(&self, id: u64) {
        self.locked
            .borrow_mut()
            .retain(|(_, _, holder)| *holder != id);
        self.writers.notify();
        self.take_locks();
    }

    fn take_locks(&self) {
        while self.turning.borrow().is_none() && self.locked.borrow().len() < LOCKS_MAX {
            let Some((lock, ready)) = self.to_lock.borrow_mut().pop_front() else {
                return;
            };
            self.locked.borrow_mut().push(lock);
            let old = self.generation.get();
            self.generation.set(1 - old);
            if self.in_flight[old].get() == 0 {
                ready();
            } else {
                *self.turning.borrow_mut() = Some(ready);
            }
        }
    }

    fn write_ended(&self, generation: usize) {
        let count = &self.in_flight[generation];
        count.set(count.get() - 1);
        if count.get() > 0 || generation == self.generation.get() {
            return;
        }
        let turned = self.turning.borrow_mut().take();
        if let Some(ready) = turned {
            ready();
            self.take_locks();
        }
    }

    fn is_locked(&self, at: Lba, blocks: u64) -> bool {
        let end = at.plus(blocks);
        self.locked
            .borrow()
            .iter()
            .any(|&(start, count, _)| at < start.plus(count) && start < end)
    }
}

/// A write that executes; dropped when it has ended.
pub struct WritePass<'a> {
    gate: &'a WriteGate,
    generation: usize,
}

impl Drop for WritePass<'_> {
    fn drop(&mut self) {
        self.gate.write_ended(self.generation);
    }
}
