//! A pool that is open: its tasks, what waits in it, and how its parts find each other.
//!
//! Invariants:
//! - A pool belongs to one core, its home. Other cores read its [flat maps](crate::flat), and ask for the
//!   rest by message ([`across`](crate::across)).
//! - What has left the maps is in limbo, and free once no core can be [looking](crate::epoch) at it. What
//!   others have left to a volume that had it with them stays where it is, and becomes the volume's own
//!   once no core can be looking at it for them.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeSet, VecDeque},
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use corebay_core::{
    buffer::BufferPool,
    disk::{Disk, DiskError},
    reactor::Reactor,
    sync::Permits,
};
use tracing::warn;

use crate::{
    across::{Common, Desk},
    device::{Device, copies_at},
    epoch::Looks,
    error::PoolError,
    flat::FlatVolume,
    format::{Extent, record::Record},
    journal::Journal,
    publish::{Flat, Slot},
    slow::Turns,
    space::SpaceLevel,
    state::{Missing, State, corrupt},
    sync::Signal,
    trim::Trims,
    walk::Walk,
};

/// What a pool takes from its surroundings.
#[derive(Clone)]
pub struct PoolContext {
    /// The home core's reactor.
    pub reactor: Reactor,
    /// Buffers for metadata, at least 1 MiB, that nobody else takes from.
    pub buffers: BufferPool,
}

/// What is free once all operations that are under way have ended.
#[derive(Debug)]
enum Leaving {
    Extent(Extent),
    Slot(Slot),
}

/// The insides of a pool.
pub(crate) struct Shared<D: Disk> {
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
    /// Volumes whose own extents are to be counted anew.
    pub to_recount: RefCell<BTreeSet<u32>>,
    /// Held by whoever counts them.
    pub recounting: Rc<Permits>,
    /// Held while a page's place must not be given to another page, and while a checkpoint writes pages to
    /// the places that it has given them.
    pub places_stay: Rc<Permits>,
    /// Held by whoever counts all references, and what he has counted as long as records must not take
    /// effect before he has seen what they change.
    pub counting: Rc<Permits>,
    pub walk: RefCell<Option<Walk>>,
    /// What other cores know.
    pub common: Arc<Common>,
    /// The home core's own looks.
    pub looks: Rc<Looks>,
    pub reactor: Reactor,
    pub desk: Desk<D>,
    pub flat: RefCell<Flat>,
    pub trims: Trims,
    limbo: RefCell<VecDeque<(u64, Leaving)>>,
    /// In which epoch some volume was last left alone with what others had too, where looks from then or
    /// before may be under way.
    last_left: Cell<Option<u64>>,
    /// Who waits for all operations that are under way.
    waiters: RefCell<VecDeque<(u64, Rc<Cell<bool>>)>>,
    /// Somebody waits for other cores: they are looked at in each turn.
    awaited: Cell<u32>,
    /// Volumes take writes again, or none is under way any more.
    pub thawed: Signal,
    pub turns: Turns,
    pub space: Signal,
    loading: RefCell<BTreeSet<(bool, u32)>>,
    loaded: Signal,
    /// Pages that could not be read, by [`Missing::key`].
    pub lost: RefCell<BTreeSet<(bool, u32)>>,
    /// Nodes that may be in memory, and how many tasks rely on those that are.
    pub page_limit: Cell<usize>,
    relying: Cell<u32>,
}

/// Tasks that wait to look at all of a pool, or for those that do.
const STAYERS_MAX: usize = 256;

/// Nodes that may be in memory, unless it is said otherwise: about a gigabyte.
pub(crate) const PAGES_MAX: usize = 512 << 10;

/// Pages that an operation reads before it relies on what is in memory; none needs so many.
const LOADS_MAX: u32 = 160;

/// How often, and after which pause, a page is read again that has to be read, and metadata are written
/// again.
const RETRIES: u32 = 20;
const WRITE_RETRIES: u32 = 4;
const RETRY_PAUSE: Duration = Duration::from_millis(50);

impl<D: Disk> Shared<D> {
    pub fn new(reactor: &Reactor, device: Device<D>, state: State, generation: u64) -> Self {
        let common = Arc::new(Common::new(&state, device.disk.info(), reactor.core()));
        Self {
            looks: Rc::new(Looks::new(common.epochs.clone(), None)),
            common,
            reactor: reactor.clone(),
            desk: Desk::default(),
            flat: RefCell::default(),
            trims: Trims::default(),
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
            places_stay: Permits::new(1, STAYERS_MAX),
            counting: Permits::new(1, STAYERS_MAX),
            walk: RefCell::default(),
            to_recount: RefCell::default(),
            recounting: Permits::new(1, STAYERS_MAX),
            limbo: RefCell::default(),
            last_left: Cell::new(None),
            waiters: RefCell::default(),
            awaited: Cell::new(0),
            thawed: Signal::default(),
            turns: Turns::default(),
            space: Signal::default(),
            loading: RefCell::default(),
            loaded: Signal::default(),
            lost: RefCell::default(),
            page_limit: Cell::new(PAGES_MAX),
            relying: Cell::new(0),
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
        self.trims.wake();
        self.thawed.notify();
    }

    pub fn want_checkpoint(&self) {
        if !self.checkpoint_due.replace(true) {
            self.checkpoint_wanted.notify();
        }
    }

    /// Pages that are in memory stay there until the value is dropped.
    pub fn rely(&self) -> Awaiting<'_> {
        Awaiting::begin(&self.relying)
    }

    /// Drops pages from memory where there are too many.
    pub fn evict(&self) {
        if self.relying.get() == 0 && !self.checkpoint_under_way.get() {
            self.state.borrow_mut().evict(self.page_limit.get());
        }
    }

    /// Reads a page into memory, if it is not there.
    pub async fn load(&self, missing: Missing) -> Result<(), PoolError> {
        let key = missing.key();
        // One at a time for each page: once it is in memory it may change, and its place may be
        // used for another page while a second reader is still on its way.
        self.loaded
            .until(|| self.loading.borrow_mut().insert(key).then_some(()))
            .await;
        let _loading = Loading { shared: self, key };
        let read = self.read_missing(missing).await;
        self.note_load(missing, &read);
        read
    }

    async fn read_missing(&self, missing: Missing) -> Result<(), PoolError> {
        self.evict();
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

    /// An operation begins to read the pages that it needs.
    pub fn needs(&self) -> Needs<'_, D> {
        Needs {
            shared: self,
            loads: 0,
            relying: None,
        }
    }

    /// Reads what a record needs in memory.
    pub async fn prepare(&self, record: &Record) -> Result<(), PoolError> {
        let mut needs = self.needs();
        loop {
            let missing = self.state.borrow_mut().missing_for_record(record)?;
            match missing {
                Some(missing) => needs.load(missing).await?,
                None => return Ok(()),
            }
        }
    }

    /// The same for a record that has to take effect: a failure that may pass is waited for.
    pub async fn prepare_surely(&self, record: &Record) -> Result<(), PoolError> {
        for _ in 0..RETRIES {
            match self.prepare(record).await {
                Err(PoolError::Disk(DiskError::Gone)) | Ok(()) => break,
                Err(error) => warn!("pool {}: {error}; it is read again", self.name()),
            }
            self.reactor.sleep(RETRY_PAUSE).await;
        }
        self.prepare(record).await
    }

    /// Writes metadata; again where the disk says that it could not: the same bytes to the same places,
    /// and nobody was told that they are there. After a time-out the old ones may still be on their way.
    /// A pool that was given up begins nothing any more: its disk may have another owner.
    pub async fn write_again(
        &self,
        write: impl AsyncFn() -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        for _ in 0..WRITE_RETRIES {
            if self.failed.get() {
                return Err(DiskError::Gone);
            }
            match write().await {
                Err(error @ (DiskError::WriteFault | DiskError::NoSpace)) => {
                    warn!("pool {}: {error}; it is written again", self.name());
                }
                ended => return ended,
            }
            self.reactor.sleep(RETRY_PAUSE).await;
        }
        match self.failed.get() {
            true => Err(DiskError::Gone),
            false => write().await,
        }
    }

    /// Extents and slots that left the maps go to limbo.
    pub fn collect_released(&self) {
        let mut state = self.state.borrow_mut();
        let mut flat = self.flat.borrow_mut();
        let is_left = std::mem::take(&mut state.fell_to_one);
        if is_left || !state.extents.released.is_empty() || !flat.released.is_empty() {
            let epoch = self.common.epochs.now();
            if is_left {
                self.last_left.set(Some(epoch));
            }
            let mut limbo = self.limbo.borrow_mut();
            let extents = state.extents.released.drain(..).map(Leaving::Extent);
            let slots = flat.released.drain(..).map(Leaving::Slot);
            limbo.extend(extents.chain(slots).map(|leaving| (epoch, leaving)));
            drop(limbo);
            self.common.epochs.advance();
        }
        drop((state, flat));
        self.reap();
        self.look_at_space();
        self.space.notify();
    }

    /// Nobody looks any more at what others had and a volume is alone with now, wherever that is. A look that
    /// was dropped is none: whoever read has no use for what comes of it, and a write that nobody knows the
    /// end of keeps its volume from being shared.
    pub fn is_left(&self) -> bool {
        let Some(epoch) = self.last_left.get() else {
            return true;
        };
        let is_left = self.common.epochs.oldest() > epoch;
        #[cfg(corebay_fault)]
        let is_left =
            is_left || corebay_core::fault::is(corebay_core::fault::Fault::PoolLooksNotAwaited);
        if is_left {
            self.last_left.set(None);
        }
        is_left
    }

    /// Frees what nobody can be using any more. How much that was.
    pub fn reap(&self) -> usize {
        self.looks.turn();
        let mut limbo = self.limbo.borrow_mut();
        let mut waiters = self.waiters.borrow_mut();
        if limbo.is_empty() && waiters.is_empty() {
            return 0;
        }
        let epochs = &self.common.epochs;
        let oldest = epochs.oldest();
        let mut state = self.state.borrow_mut();
        let mut freed = 0;
        while waiters.front().is_some_and(|(epoch, _)| *epoch < oldest) {
            waiters
                .pop_front()
                .into_iter()
                .for_each(|(_, ended)| ended.set(true));
            freed += 1;
        }
        let oldest = epochs.free_before();
        while limbo.front().is_some_and(|(epoch, _)| *epoch < oldest) {
            match limbo.pop_front() {
                Some((_, Leaving::Extent(extent))) => {
                    state.free(extent);
                    self.trims.note(extent);
                }
                Some((_, Leaving::Slot(slot))) => self.flat.borrow_mut().free(slot),
                None => {}
            }
            freed += 1;
        }
        drop((state, limbo, waiters));
        if freed > 0 {
            self.look_at_space();
            self.space.notify();
        }
        freed
    }

    /// True where nobody waits for what another core does.
    pub fn may_sleep(&self) -> bool {
        let none = self.awaited.get() == 0 && self.waiters.borrow().is_empty();
        none && (self.limbo.borrow().is_empty() || self.is_abandoned())
    }

    pub fn is_abandoned(&self) -> bool {
        self.common.epochs.is_abandoned()
    }

    /// Waits until every operation that is under way on any core has ended, but for those whose futures
    /// were dropped: of these nobody will ever say that they have. The caller looks at nothing itself.
    pub async fn grace(&self) {
        let ended = Rc::new(Cell::new(false));
        let epoch = self.common.epochs.now();
        self.waiters.borrow_mut().push_back((epoch, ended.clone()));
        self.common.epochs.advance();
        self.reap();
        let done = || ended.get() || self.stopped().is_some();
        self.space.until(|| done().then_some(())).await;
    }

    /// Keeps new writes from a volume, and waits until none is under way on any core.
    ///
    /// 1. The volume says that it is frozen. Whoever begins to look from then on sees that.
    /// 2. All looks from before have ended: the writes of these have too, or they are counted.
    /// 3. None is counted, and none works: one that was given up is not counted any more, but goes on until the
    ///    home core has heard of that.
    pub async fn freeze(&self, volume: u32) -> Frozen {
        let flat = self.flat_volume(volume);
        let _awaiting = Awaiting::begin(&self.awaited);
        self.thawed
            .until(|| (!flat.frozen.swap(true, Ordering::SeqCst)).then_some(()))
            .await;
        let frozen = Frozen { volume: flat };
        self.grace().await;
        let none = || !frozen.volume.counts.has_writers() && !self.is_worked_on(volume);
        let done = || none() || self.stopped().is_some();
        self.thawed.until(|| done().then_some(())).await;
        frozen
    }

    /// What the home core does in each of its turns: looks at what other cores have done.
    pub fn turn(&self) -> usize {
        if self.awaited.get() > 0 {
            self.thawed.notify();
        }
        self.reap()
    }
}

/// The pages that one operation reads. After many it relies on those that are in memory: it may need
/// more at once than there may be, and others push out what it has read.
pub(crate) struct Needs<'a, D: Disk> {
    shared: &'a Shared<D>,
    loads: u32,
    relying: Option<Awaiting<'a>>,
}

impl<D: Disk> Needs<'_, D> {
    pub async fn load(&mut self, missing: Missing) -> Result<(), PoolError> {
        self.loads += 1;
        if self.loads > LOADS_MAX && self.relying.is_none() {
            self.relying = Some(self.shared.rely());
        }
        self.shared.load(missing).await
    }
}

/// Counts somebody as long as it is there.
pub(crate) struct Awaiting<'a>(&'a Cell<u32>);

impl<'a> Awaiting<'a> {
    fn begin(count: &'a Cell<u32>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for Awaiting<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
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

/// A volume that takes no writes. Whoever waits to write looks again in each turn of its core.
pub(crate) struct Frozen {
    volume: Arc<FlatVolume>,
}

impl Frozen {
    pub fn id(&self) -> u32 {
        self.volume.id
    }

    /// The disk may still write to the volume in place, and nobody will know when that has ended.
    pub fn is_forsaken(&self) -> bool {
        self.volume.forsaken.load(Ordering::SeqCst)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.volume.frozen.store(false, Ordering::SeqCst);
    }
}
