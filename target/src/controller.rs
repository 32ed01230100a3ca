//! Controllers: one host's association with a subsystem.
//!
//! A controller is shared by the cores that its queues live on; what they touch on the data path
//! are atomics, the rest is behind a lock that the control path holds for moments.
//!
//! Invariants:
//! - An association ends once: whoever ends it first (host, keep-alive time-out, loss of the admin
//!   queue) closes all its queues.
//! - An event is reported once, to an Asynchronous Event Request; events of its kind are masked from
//!   then until the host has read the log page that clears it.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use corebay_core::units::{CoreId, Time};
use corebay_nvme::spec::{nqn::Nqn, status::Status};

use crate::{
    feature::Features,
    lifecycle::Lifecycle,
    limits::{ERROR_LOG_ENTRIES, KEEP_ALIVE_GRANULARITY_100MS, PENDING_EVENTS_MAX},
    queue::QueueKey,
    subsystem::{Subsystem, lock},
};

/// How old a command's arrival may be before it is noted anew: the time is shared by the
/// controller's cores, so it is not written for every command.
pub const ARRIVAL_RESOLUTION: Duration = Duration::from_millis(10);

/// A Keep Alive Timeout in milliseconds, rounded up to the granularity that hosts are told (KAS).
fn rounded_up(milliseconds: u32) -> u32 {
    let granularity = u32::from(KEEP_ALIVE_GRANULARITY_100MS) * 100;
    milliseconds
        .div_ceil(granularity)
        .saturating_mul(granularity)
}

/// An asynchronous event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Event {
    /// A persistent or transient error was added to the error information log.
    Error,
    /// Less space is left than the health log's threshold says.
    SpareBelowThreshold,
    /// Namespaces were attached, detached or resized.
    NamespaceAttributeChanged,
    /// The state of an ANA group changed.
    AnaChanged,
    /// The discovery log page changed.
    DiscoveryLogChanged,
}

impl Event {
    /// Asynchronous Event Type, Information and Log Page (completion dword 0, Base 2.1, 5.1.2).
    #[must_use]
    pub fn result(self) -> u32 {
        let (kind, info, log) = match self {
            // Transient Internal Error: hosts take a persistent one as a reason to reset.
            Self::Error => (0u32, 0x04, 0x01),
            Self::SpareBelowThreshold => (1, 0x02, 0x02),
            Self::NamespaceAttributeChanged => (2, 0x00, 0x04),
            Self::AnaChanged => (2, 0x03, 0x0c),
            Self::DiscoveryLogChanged => (2, 0xf0, 0x70),
        };
        kind | info << 8 | log << 16
    }

    /// The bit of Asynchronous Event Configuration that lets it be reported; `None`: always.
    fn enable_bit(self) -> Option<u32> {
        match self {
            Self::Error => None,
            Self::SpareBelowThreshold => Some(1 << 0),
            Self::NamespaceAttributeChanged => Some(1 << 8),
            Self::AnaChanged => Some(1 << 11),
            Self::DiscoveryLogChanged => Some(1 << 31),
        }
    }

    /// The log page whose reading lets the event be reported again.
    #[must_use]
    pub fn log_page(self) -> u8 {
        (self.result() >> 16) as u8
    }
}

/// One entry of the error information log (Base 2.1, 5.1.12.1.2).
#[derive(Clone, Copy, Debug)]
pub struct ErrorRecord {
    /// Counts errors since the controller's start, from 1.
    pub count: u64,
    /// Submission queue.
    pub sqid: u16,
    /// Command.
    pub cid: u16,
    /// Its status.
    pub status: Status,
    /// Its opcode.
    pub opc: u8,
    /// The first block, for I/O commands.
    pub lba: u64,
    /// Its namespace.
    pub nsid: u32,
}

/// Commands and data of one queue, or of all queues that have ended. Written by one core.
#[derive(Debug, Default)]
pub struct IoCounters {
    /// Blocks' bytes that hosts read.
    pub read_bytes: AtomicU64,
    /// Blocks' bytes that hosts wrote.
    pub written_bytes: AtomicU64,
    /// Read commands.
    pub reads: AtomicU64,
    /// Write commands.
    pub writes: AtomicU64,
    /// Commands that failed on the medium.
    pub media_errors: AtomicU64,
    /// Nanoseconds during which a command was in flight.
    pub busy_nanos: AtomicU64,
}

impl IoCounters {
    /// Adds to a counter that only this core writes: no other core's addition can be lost.
    pub fn add(counter: &AtomicU64, amount: u64) {
        counter.store(
            counter.load(Ordering::Relaxed).wrapping_add(amount),
            Ordering::Relaxed,
        );
    }

    /// Adds all of `other` (which may still be counting).
    pub fn absorb(&self, other: &Self) {
        for (into, from) in [
            (&self.read_bytes, &other.read_bytes),
            (&self.written_bytes, &other.written_bytes),
            (&self.reads, &other.reads),
            (&self.writes, &other.writes),
            (&self.media_errors, &other.media_errors),
            (&self.busy_nanos, &other.busy_nanos),
        ] {
            into.fetch_add(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
}

/// Where one of a controller's queues lives.
#[derive(Clone, Debug)]
pub struct QueueRef {
    /// Queue identifier; 0 is the admin queue.
    pub qid: u16,
    /// Its core.
    pub core: CoreId,
    /// Its key there.
    pub key: QueueKey,
    /// What it has done.
    pub counters: Arc<IoCounters>,
}

/// One host's association with a subsystem.
#[derive(Debug)]
pub struct Controller<M> {
    /// Controller identifier.
    pub cntlid: u16,
    /// The subsystem.
    pub subsystem: Arc<Subsystem<M>>,
    /// The host's NQN.
    pub host_nqn: Nqn,
    /// The host's identifier (HOSTID).
    pub host_id: [u8; 16],
    /// The core and key of the admin queue.
    pub admin: (CoreId, QueueKey),
    /// The controller's start.
    pub started: Time,
    /// CC and CSTS.
    pub lifecycle: Lifecycle,
    /// Keep Alive Timeout in milliseconds; 0: none.
    keep_alive_ms: AtomicU32,
    /// When a command last arrived on any queue, in nanoseconds.
    last_command: AtomicU64,
    /// Volatile Write Cache is enabled.
    write_cache: AtomicBool,
    /// Closed queues whose commands still execute.
    quiescing: AtomicUsize,
    ended: AtomicBool,
    aborts: AtomicU32,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    features: Features,
    pending_events: VecDeque<Event>,
    masked_events: BTreeSet<Event>,
    changed_namespaces: BTreeSet<u32>,
    errors: VecDeque<ErrorRecord>,
    error_count: u64,
    queues: Vec<QueueRef>,
    past: IoCounters,
    timestamp: Option<(u64, Time)>,
    io_queues_granted: u16,
    host_behavior: [u8; 6],
}

/// What a controller is made with.
#[derive(Debug)]
pub struct NewController<M> {
    /// Controller identifier.
    pub cntlid: u16,
    /// The subsystem.
    pub subsystem: Arc<Subsystem<M>>,
    /// The host's NQN.
    pub host_nqn: Nqn,
    /// The host's identifier.
    pub host_id: [u8; 16],
    /// Keep Alive Timeout in milliseconds.
    pub keep_alive_ms: u32,
    /// The core and key of the admin queue.
    pub admin: (CoreId, QueueKey),
    /// Now.
    pub started: Time,
    /// The features to start with.
    pub features: Features,
}

impl<M> Controller<M> {
    /// A controller, disabled until the host sets CC.EN.
    #[must_use]
    pub fn new(new: NewController<M>) -> Arc<Self> {
        let write_cache = AtomicBool::new(new.features.volatile_write_cache);
        Arc::new(Self {
            cntlid: new.cntlid,
            subsystem: new.subsystem,
            host_nqn: new.host_nqn,
            host_id: new.host_id,
            admin: new.admin,
            started: new.started,
            keep_alive_ms: AtomicU32::new(rounded_up(new.keep_alive_ms)),
            last_command: AtomicU64::new(new.started.0),
            write_cache,
            lifecycle: Lifecycle::default(),
            quiescing: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
            aborts: AtomicU32::new(0),
            state: Mutex::new(State {
                features: new.features,
                ..State::default()
            }),
        })
    }

    /// True where writes may stay in a volatile cache until they are flushed.
    #[must_use]
    pub fn write_cache(&self) -> bool {
        self.write_cache.load(Ordering::Relaxed)
    }

    /// The Keep Alive Timeout in milliseconds; 0: none.
    #[must_use]
    pub fn keep_alive_ms(&self) -> u32 {
        self.keep_alive_ms.load(Ordering::Relaxed)
    }

    /// Sets the Keep Alive Timeout, rounded up to its granularity, and starts it anew.
    pub fn set_keep_alive(&self, milliseconds: u32, now: Time) {
        self.keep_alive_ms
            .store(rounded_up(milliseconds), Ordering::Relaxed);
        self.command_arrived(now);
    }

    /// A command arrived: the Keep Alive Timeout starts anew (traffic based keep alive).
    pub fn command_arrived(&self, now: Time) {
        self.last_command.store(now.0, Ordering::Relaxed);
    }

    /// True where the host has been silent for longer than its Keep Alive Timeout.
    #[must_use]
    pub fn keep_alive_expired(&self, now: Time) -> bool {
        let timeout = self.keep_alive_ms();
        let silent = now.since(Time(self.last_command.load(Ordering::Relaxed)));
        let timeout = Duration::from_millis(u64::from(timeout));
        !timeout.is_zero() && silent > timeout + ARRIVAL_RESOLUTION
    }

    /// Marks the association as ended; true for the first caller.
    #[must_use]
    pub fn end(&self) -> bool {
        !self.ended.swap(true, Ordering::AcqRel)
    }

    /// True once the association has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// A queue was closed while its commands execute.
    pub fn quiesce_begins(&self) {
        self.quiescing.fetch_add(1, Ordering::AcqRel);
    }

    /// The last command of a closed queue has ended.
    pub fn quiesce_ends(&self) {
        self.quiescing.fetch_sub(1, Ordering::AcqRel);
    }

    /// True while commands of closed queues still execute.
    #[must_use]
    pub fn is_quiescing(&self) -> bool {
        self.quiescing.load(Ordering::Acquire) != 0
    }

    /// Begins an Abort command; false where too many execute.
    #[must_use]
    pub fn begin_abort(&self) -> bool {
        let max = u32::from(crate::limits::ABORTS_MAX);
        self.aborts
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| {
                (n < max).then_some(n + 1)
            })
            .is_ok()
    }

    /// Ends an Abort command.
    pub fn end_abort(&self) {
        self.aborts.fetch_sub(1, Ordering::AcqRel);
    }

    /// The current features.
    #[must_use]
    pub fn features(&self) -> Features {
        lock(&self.state).features.clone()
    }

    /// Changes the current features.
    pub fn set_features(&self, change: impl FnOnce(&mut Features)) {
        let mut state = lock(&self.state);
        change(&mut state.features);
        self.write_cache
            .store(state.features.volatile_write_cache, Ordering::Relaxed);
    }

    /// Adds an event, unless it is masked, not enabled, or waits already.
    pub fn raise(&self, event: Event) -> bool {
        let mut state = lock(&self.state);
        let enabled = event
            .enable_bit()
            .is_none_or(|bit| state.features.async_events & bit != 0);
        let known = state.masked_events.contains(&event) || state.pending_events.contains(&event);
        if !enabled || known || state.pending_events.len() >= PENDING_EVENTS_MAX {
            return false;
        }
        state.pending_events.push_back(event);
        true
    }

    /// Takes the next event to report, and masks its kind.
    #[must_use]
    pub fn take_event(&self) -> Option<Event> {
        let mut state = lock(&self.state);
        let event = state.pending_events.pop_front()?;
        state.masked_events.insert(event);
        Some(event)
    }

    /// The host has read a log page without retaining its event: that event may be reported again.
    pub fn unmask(&self, log_page: u8) {
        lock(&self.state)
            .masked_events
            .retain(|event| event.log_page() != log_page);
    }

    /// Notes that a namespace was attached, detached or resized.
    pub fn namespace_changed(&self, nsid: u32) {
        lock(&self.state).changed_namespaces.insert(nsid);
    }

    /// The namespaces that changed since the list was last read; reading it with `clear` empties it.
    #[must_use]
    pub fn changed_namespaces(&self, clear: bool) -> Vec<u32> {
        let mut state = lock(&self.state);
        let list = state.changed_namespaces.iter().copied().collect();
        if clear {
            state.changed_namespaces.clear();
        }
        list
    }

    /// Adds to the error information log.
    pub fn log_error(&self, mut record: ErrorRecord) {
        let mut state = lock(&self.state);
        state.error_count += 1;
        record.count = state.error_count;
        state.errors.push_front(record);
        state.errors.truncate(ERROR_LOG_ENTRIES);
    }

    /// The error information log, newest first, and the count of all errors.
    #[must_use]
    pub fn errors(&self) -> (Vec<ErrorRecord>, u64) {
        let state = lock(&self.state);
        (state.errors.iter().copied().collect(), state.error_count)
    }

    /// Adds a queue; `false` where one with this id is there already.
    #[must_use]
    pub fn add_queue(&self, queue: QueueRef) -> bool {
        let mut state = lock(&self.state);
        if self.has_ended() || state.queues.iter().any(|known| known.qid == queue.qid) {
            return false;
        }
        state.queues.push(queue);
        true
    }

    /// Forgets a queue, and keeps what it has counted.
    pub fn remove_queue(&self, qid: u16) {
        let mut state = lock(&self.state);
        if let Some(index) = state.queues.iter().position(|queue| queue.qid == qid) {
            let queue = state.queues.swap_remove(index);
            state.past.absorb(&queue.counters);
        }
    }

    /// The controller's queues.
    #[must_use]
    pub fn queues(&self) -> Vec<QueueRef> {
        lock(&self.state).queues.clone()
    }

    /// What all queues, past and present, have done.
    #[must_use]
    pub fn totals(&self) -> IoCounters {
        let state = lock(&self.state);
        let totals = IoCounters::default();
        totals.absorb(&state.past);
        for queue in &state.queues {
            totals.absorb(&queue.counters);
        }
        totals
    }

    /// Grants I/O queues (Number of Queues), which is done once between resets.
    pub fn grant_io_queues(&self, count: u16) {
        lock(&self.state).io_queues_granted = count;
    }

    /// The I/O queues granted; 0: none yet.
    #[must_use]
    pub fn io_queues_granted(&self) -> u16 {
        lock(&self.state).io_queues_granted
    }

    /// The host's timestamp and when it was set, if it set one.
    #[must_use]
    pub fn timestamp(&self) -> Option<(u64, Time)> {
        lock(&self.state).timestamp
    }

    /// Sets the host's timestamp.
    pub fn set_timestamp(&self, milliseconds: u64, now: Time) {
        lock(&self.state).timestamp = Some((milliseconds, now));
    }

    /// Host Behavior Support (16h): its first six bytes.
    #[must_use]
    pub fn host_behavior(&self) -> [u8; 6] {
        lock(&self.state).host_behavior
    }

    /// Sets Host Behavior Support.
    pub fn set_host_behavior(&self, behavior: [u8; 6]) {
        lock(&self.state).host_behavior = behavior;
    }

    /// Forgets what a controller level reset forgets.
    pub fn reset_state(&self) {
        let saved = self.subsystem.saved_features();
        let mut state = lock(&self.state);
        self.write_cache
            .store(saved.volatile_write_cache, Ordering::Relaxed);
        state.features = saved;
        state.pending_events.clear();
        state.masked_events.clear();
        state.changed_namespaces.clear();
        state.io_queues_granted = 0;
        state.host_behavior = [0; 6];
    }
}
