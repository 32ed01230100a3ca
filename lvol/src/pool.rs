//! A pool that is open: its tasks, what waits in it, and how its parts find each other.
//!
//! Invariants:
//! - A pool belongs to one core, its home. What other cores need of it they ask for by message; no
//!   state is shared with them.
//! - An extent that was released goes to the limbo of the phase that is current, and is free once no
//!   operation is left that began in that phase or before.
//! - A future that is dropped before its end leaves its phase open for good: whatever was released
//!   since stays in limbo until the pool is opened again, as the disk may still work for it.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    rc::Rc,
};

use corebay_core::{buffer::BufferPool, disk::Disk, reactor::Reactor, sync::Permits};

use crate::{
    device::{Device, copies_at},
    error::PoolError,
    format::{Extent, record::Record},
    journal::Journal,
    space::SpaceLevel,
    state::{Missing, State, corrupt, extents::Attempt},
    sync::Signal,
};

/// What a pool takes from its surroundings.
#[derive(Clone)]
pub struct PoolContext {
    /// The home core's reactor.
    pub reactor: Reactor,
    /// Buffers for metadata, at least 1 MiB, that nobody else takes from.
    pub buffers: BufferPool,
}

/// An extent that first writes go to, and how many are on their way.
#[derive(Clone, Copy, Debug)]
struct Staged {
    extent: Extent,
    pins: u32,
}

/// What waits until all operations that are under way have ended.
#[derive(Debug)]
enum Leaving {
    /// It is free then.
    Extent(Extent),
    /// Somebody waits for that moment.
    Waiter(Rc<Cell<bool>>),
}

/// Blocks of a volume that a slow operation works on, or waits for.
#[derive(Debug)]
struct Held {
    ticket: u64,
    volume: u32,
    blocks: Range<u64>,
}

/// What a volume's handles share.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    /// New writes wait.
    frozen: Cell<bool>,
    /// Writes under way.
    writers: Cell<u32>,
    changed: Signal,
    pub handles: Cell<u32>,
}

/// The insides of a pool.
pub(crate) struct Shared<D> {
    pub device: Device<D>,
    pub state: RefCell<State>,
    pub journal: Journal,
    pub generation: Cell<u64>,
    pub checkpoint_due: Cell<bool>,
    /// One has taken the state that it writes, and is not done.
    pub checkpoint_under_way: Cell<bool>,
    pub checkpoint_wanted: Signal,
    pub checkpoint_done: Signal,
    pub failed: Cell<bool>,
    pub space_level: Cell<SpaceLevel>,
    /// The level has changed, or the pool has failed or was closed.
    pub events: Signal,
    pub closed: Cell<bool>,
    /// Bytes of pages that checkpoints wrote, of each copy.
    pub metadata_written: Cell<u64>,
    /// A volume was deleted: its space is to be given back.
    pub dying: Signal,
    /// Held while a page's place must not be given to another page.
    pub places_stay: Rc<Permits>,
    phase: Cell<usize>,
    under_way: [Cell<u32>; 2],
    limbo: RefCell<[Vec<Leaving>; 2]>,
    held: RefCell<Vec<Held>>,
    held_changed: Signal,
    next_ticket: Cell<u64>,
    abandoned: Cell<bool>,
    space: Signal,
    staged: RefCell<BTreeMap<(u32, u64), Staged>>,
    loading: RefCell<BTreeSet<(bool, u32)>>,
    loaded: Signal,
    gates: RefCell<BTreeMap<u32, Rc<Gate>>>,
}

impl<D: Disk> Shared<D> {
    pub fn new(device: Device<D>, state: State, generation: u64) -> Self {
        Self {
            device,
            state: RefCell::new(state),
            journal: Journal::default(),
            generation: Cell::new(generation),
            checkpoint_due: Cell::new(false),
            checkpoint_under_way: Cell::new(false),
            checkpoint_wanted: Signal::default(),
            checkpoint_done: Signal::default(),
            failed: Cell::new(false),
            space_level: Cell::default(),
            events: Signal::default(),
            closed: Cell::new(false),
            metadata_written: Cell::new(0),
            dying: Signal::default(),
            places_stay: Permits::new(1, 2),
            phase: Cell::new(0),
            under_way: Default::default(),
            limbo: RefCell::default(),
            held: RefCell::default(),
            held_changed: Signal::default(),
            next_ticket: Cell::new(0),
            abandoned: Cell::new(false),
            space: Signal::default(),
            staged: RefCell::default(),
            loading: RefCell::default(),
            loaded: Signal::default(),
            gates: RefCell::default(),
        }
    }

    pub fn name(&self) -> String {
        self.state.borrow().name.clone()
    }

    /// Why nothing more is taken, if so.
    pub fn stopped(&self) -> Option<PoolError> {
        (self.failed.get() || self.closed.get()).then_some(PoolError::Failed)
    }

    pub fn fail(&self) {
        self.failed.set(true);
        self.wake_all();
    }

    pub fn wake_all(&self) {
        self.wake_writer();
        self.checkpoint_wanted.notify();
        self.checkpoint_done.notify();
        self.dying.notify();
        self.space.notify();
        self.events.notify();
    }

    pub fn want_checkpoint(&self) {
        if !self.checkpoint_due.replace(true) {
            self.checkpoint_wanted.notify();
        }
    }

    /// Reads a page into memory, if it is not there.
    pub async fn load(&self, missing: Missing) -> Result<(), PoolError> {
        let key = match missing {
            Missing::Node(id) => (true, id),
            Missing::Counts(page) => (false, page),
        };
        // One at a time for each page: once it is in memory it may change, and its place may be
        // used for another page while a second reader is still on its way.
        self.loaded
            .until(|| self.loading.borrow_mut().insert(key).then_some(()))
            .await;
        let _loading = Loading { shared: self, key };
        let (place, at) = {
            let state = self.state.borrow();
            let (there, place) = match missing {
                Missing::Node(id) => (state.nodes.body(id).is_some(), state.nodes.place(id)),
                Missing::Counts(page) => {
                    (state.counts.body(page).is_some(), state.counts.place(page))
                }
            };
            if there {
                return Ok(());
            }
            let (location, crc) = place.ok_or_else(|| corrupt("a page that was never written"))?;
            let at = copies_at(&state.places, location, &state.layout)?;
            (crc, at)
        };
        match missing {
            Missing::Node(id) => {
                let node = self.device.read_page(at, place, u64::from(id)).await?;
                let mut state = self.state.borrow_mut();
                if !state.is_sane_node(&node) {
                    return Err(corrupt("a node refers to what cannot be"));
                }
                state.nodes.install(id, node);
            }
            Missing::Counts(page) => {
                let counts = self.device.read_page(at, place, u64::from(page)).await?;
                let mut state = self.state.borrow_mut();
                if !state.is_sane_counts(page, &counts) {
                    return Err(corrupt("a page of counts and its table"));
                }
                state.counts.install(page, counts);
            }
        }
        Ok(())
    }

    /// Reads what a record needs in memory.
    pub async fn prepare(&self, record: &Record) -> Result<(), PoolError> {
        loop {
            let missing = self.state.borrow_mut().missing_for_record(record)?;
            match missing {
                Some(missing) => self.load(missing).await?,
                None => return Ok(()),
            }
        }
    }

    /// An operation that uses what the map says begins.
    pub fn begin(&self) -> Look<'_, D> {
        let phase = self.phase.get();
        self.under_way[phase].set(self.under_way[phase].get() + 1);
        Look {
            shared: self,
            phase,
            ended: false,
        }
    }

    /// Extents that were released since go to limbo.
    pub fn collect_released(&self) {
        let released = std::mem::take(&mut self.state.borrow_mut().extents.released);
        if !released.is_empty() {
            let released = released.into_iter().map(Leaving::Extent);
            self.limbo.borrow_mut()[self.phase.get()].extend(released);
            self.reap();
        }
        self.look_at_space();
        self.space.notify();
    }

    /// Frees what nobody can be using any more.
    fn reap(&self) {
        for _ in 0..2 {
            let (current, other) = (self.phase.get(), 1 - self.phase.get());
            if self.under_way[other].get() > 0 {
                return;
            }
            let mut limbo = self.limbo.borrow_mut();
            let mut state = self.state.borrow_mut();
            let freed = !limbo[other].is_empty();
            for leaving in limbo[other].drain(..) {
                match leaving {
                    Leaving::Extent(extent) => state.free(extent),
                    Leaving::Waiter(ended) => ended.set(true),
                }
            }
            // All that is left began in this phase; from the next one on, it is the older.
            if !limbo[current].is_empty() {
                self.phase.set(other);
            }
            drop(state);
            if freed {
                self.look_at_space();
                self.space.notify();
            }
        }
    }

    /// Waits until every operation that is under way has ended. The caller has none itself.
    pub async fn grace(&self) {
        let ended = Rc::new(Cell::new(false));
        let waiter = Leaving::Waiter(ended.clone());
        self.limbo.borrow_mut()[self.phase.get()].push(waiter);
        self.reap();
        // Of what was abandoned, nobody will ever say that it has ended.
        let done = || ended.get() || self.abandoned.get() || self.stopped().is_some();
        self.space.until(|| done().then_some(())).await;
    }

    /// Waits until no earlier slow operation works on these blocks.
    pub async fn hold(&self, volume: u32, blocks: Range<u64>) -> Holding<'_, D> {
        let ticket = self.next_ticket.get();
        self.next_ticket.set(ticket + 1);
        let held = Held {
            ticket,
            volume,
            blocks: blocks.clone(),
        };
        self.held.borrow_mut().push(held);
        let holding = Holding {
            shared: self,
            ticket,
        };
        let free = || {
            let held = self.held.borrow();
            let earlier = held.iter().take_while(|held| held.ticket != ticket);
            !earlier.into_iter().any(|held| {
                let apart = held.blocks.end <= blocks.start || blocks.end <= held.blocks.start;
                held.volume == volume && !apart
            })
        };
        self.held_changed.until(|| free().then_some(())).await;
        holding
    }

    /// An extent for data of a volume, waiting where one is about to become free. It is pinned.
    async fn extent_for(&self, volume: u32) -> Result<Extent, PoolError> {
        loop {
            let attempt = {
                let mut state = self.state.borrow_mut();
                let own = state.volume(volume)?.unused_reservation();
                let attempt = state.try_extent(own);
                if let Attempt::Got(extent) = attempt {
                    state.pin(extent);
                }
                attempt
            };
            match attempt {
                Attempt::Got(extent) => return Ok(extent),
                Attempt::Load(page) => self.load(Missing::Counts(page)).await?,
                Attempt::Full => return Err(PoolError::NoSpace),
                Attempt::Wait if self.abandoned.get() => return Err(PoolError::NoSpace),
                Attempt::Wait => {
                    let mut first = true;
                    let again = || !std::mem::take(&mut first) || self.stopped().is_some();
                    let mut again = again;
                    self.space.until(|| again().then_some(())).await;
                    if let Some(error) = self.stopped() {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// The extent that new blocks of a volume's extent go to. It is pinned until [`Target`] ends.
    pub async fn target(&self, volume: u32, index: u64) -> Result<Target<'_, D>, PoolError> {
        let (leaf, _) = crate::state::map::leaf_place(index);
        loop {
            let missing = self.state.borrow_mut().missing_for(volume, leaf)?;
            if let Some(missing) = missing {
                self.load(missing).await?;
                continue;
            }
            if let Some(found) = self.join_staged(volume, index) {
                return Ok(found);
            }
            let own = self.state.borrow_mut().own_target(volume, index)?;
            let extent = match own {
                Some(extent) => {
                    self.state.borrow_mut().pin(extent);
                    extent
                }
                None => {
                    let extent = self.extent_for(volume).await?;
                    // Others may have been faster while this one waited.
                    if self.staged.borrow().contains_key(&(volume, index)) {
                        self.unpin(extent);
                        continue;
                    }
                    let own = self.state.borrow_mut().own_target(volume, index)?;
                    if own.is_some() {
                        self.unpin(extent);
                        continue;
                    }
                    extent
                }
            };
            let staged = Staged { extent, pins: 1 };
            self.staged.borrow_mut().insert((volume, index), staged);
            return Ok(Target {
                shared: self,
                key: (volume, index),
                extent,
                ended: false,
            });
        }
    }

    fn join_staged(&self, volume: u32, index: u64) -> Option<Target<'_, D>> {
        let mut staged = self.staged.borrow_mut();
        let found = staged.get_mut(&(volume, index))?;
        found.pins += 1;
        let extent = found.extent;
        Some(Target {
            shared: self,
            key: (volume, index),
            extent,
            ended: false,
        })
    }

    fn unpin(&self, extent: Extent) {
        self.state.borrow_mut().unpin(extent);
        self.collect_released();
    }

    /// Handles of volumes that are open.
    pub fn open_handles(&self) -> u32 {
        self.gates
            .borrow()
            .values()
            .map(|gate| gate.handles.get())
            .sum()
    }

    /// The gate of a volume.
    pub fn gate(&self, volume: u32) -> Rc<Gate> {
        self.gates.borrow_mut().entry(volume).or_default().clone()
    }
}

/// Blocks that a slow operation works on, or waits for.
pub(crate) struct Holding<'a, D: Disk> {
    shared: &'a Shared<D>,
    ticket: u64,
}

impl<D: Disk> Drop for Holding<'_, D> {
    fn drop(&mut self) {
        let mut held = self.shared.held.borrow_mut();
        held.retain(|held| held.ticket != self.ticket);
        self.shared.held_changed.notify();
    }
}

/// Marks a page as being read.
struct Loading<'a, D: Disk> {
    shared: &'a Shared<D>,
    key: (bool, u32),
}

impl<D: Disk> Drop for Loading<'_, D> {
    fn drop(&mut self) {
        self.shared.loading.borrow_mut().remove(&self.key);
        self.shared.loaded.notify();
    }
}

/// An operation under way that uses what the map said.
pub(crate) struct Look<'a, D: Disk> {
    shared: &'a Shared<D>,
    phase: usize,
    ended: bool,
}

impl<D: Disk> Look<'_, D> {
    /// The disk works no more for it.
    pub fn end(mut self) {
        self.ended = true;
        let count = &self.shared.under_way[self.phase];
        count.set(count.get() - 1);
        if count.get() == 0 {
            self.shared.reap();
        }
    }
}

impl<D: Disk> Drop for Look<'_, D> {
    fn drop(&mut self) {
        if !self.ended {
            self.shared.abandoned.set(true);
        }
    }
}

/// A pinned extent that a first write goes to.
pub(crate) struct Target<'a, D: Disk> {
    shared: &'a Shared<D>,
    key: (u32, u64),
    pub extent: Extent,
    ended: bool,
}

impl<D: Disk> Target<'_, D> {
    /// The disk works no more for it, and what it made readable has taken effect, or will not.
    pub fn end(mut self) {
        self.ended = true;
        let mut staged = self.shared.staged.borrow_mut();
        let found = staged.get_mut(&self.key);
        let Some(found) = found.filter(|found| found.extent == self.extent) else {
            return;
        };
        found.pins -= 1;
        if found.pins == 0 {
            staged.remove(&self.key);
            drop(staged);
            self.shared.unpin(self.extent);
        }
    }
}

impl<D: Disk> Drop for Target<'_, D> {
    fn drop(&mut self) {
        if !self.ended {
            self.shared.abandoned.set(true);
            // The pin stays; but nobody may join, as the volume may be shared from now on.
            self.shared.staged.borrow_mut().remove(&self.key);
        }
    }
}

impl Gate {
    /// A write begins, once writes may.
    pub async fn enter(&self) -> Writing<'_> {
        self.changed
            .until(|| (!self.frozen.get()).then_some(()))
            .await;
        self.writers.set(self.writers.get() + 1);
        Writing { gate: self }
    }

    /// Keeps new writes out, and waits until none is under way.
    pub async fn freeze(self: &Rc<Self>) -> Frozen {
        self.changed
            .until(|| (!self.frozen.replace(true)).then_some(()))
            .await;
        let frozen = Frozen { gate: self.clone() };
        self.changed
            .until(|| (self.writers.get() == 0).then_some(()))
            .await;
        frozen
    }
}

/// A write under way.
pub(crate) struct Writing<'a> {
    gate: &'a Gate,
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.gate.writers.set(self.gate.writers.get() - 1);
        if self.gate.frozen.get() {
            self.gate.changed.notify();
        }
    }
}

/// A volume that takes no writes.
pub(crate) struct Frozen {
    gate: Rc<Gate>,
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.gate.frozen.set(false);
        self.gate.changed.notify();
    }
}
