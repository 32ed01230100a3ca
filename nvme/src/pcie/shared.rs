//! What the cores share of a drive: its state, who may use which queue pair, and what they ask of the
//! core that keeps the controller.
//!
//! Invariants:
//! - A core touches its ring and the controller's doorbells only while its gate is
//!   [`Gate::Running`]. The keeper resets the controller only once every gate is something else.
//! - Whoever comes back from [`Gate::Parked`] or opens a queue first says that it runs, then looks at
//!   the state; the keeper first changes the state, then looks at the gates. So one of them sees the
//!   other (sequentially consistent accesses).
//! - The memory of commands in flight is given back only once the device cannot write it: by its
//!   completion, after the controller was disabled, or after it lost its way to memory. Where that
//!   cannot be had ([`Phase::FailedUnsafe`]), never.
//!
//! No lock is taken on the data path: the only one guards a free seat.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
};

use corebay_core::dma::DmaRegion;

use super::{
    device::{DmaWindow, Registers},
    info::{ControllerInfo, Namespace, NamespaceInfo, Refusal},
    options::DriverOptions,
    ring::Ring,
};

/// What the controller may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Everything.
    Running = 0,
    /// Nothing for now: it is about to be reset.
    Quiesced = 1,
    /// Nothing any more. It reaches no memory.
    Failed = 2,
    /// Nothing any more, and it may still write to the memory of commands in flight.
    FailedUnsafe = 3,
}

/// The phase, and how often the controller was made anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) phase: Phase,
    pub(super) generation: u64,
}

impl State {
    fn to_bits(self) -> u64 {
        self.generation << 2 | self.phase as u64
    }

    fn from_bits(bits: u64) -> Self {
        let phase = match bits & 3 {
            0 => Phase::Running,
            1 => Phase::Quiesced,
            2 => Phase::Failed,
            _ => Phase::FailedUnsafe,
        };
        Self {
            phase,
            generation: bits >> 2,
        }
    }
}

/// What a core does with its queue pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    /// No core has it.
    Vacant = 0,
    /// It submits and completes.
    Running = 1,
    /// Its core sleeps, with nothing in flight.
    Parked = 2,
    /// It waits for the controller to be made anew.
    Stopped = 3,
}

/// What a queue pair is made of. It changes hands between cores as a whole.
#[derive(Debug)]
pub(super) struct Kit<R> {
    pub(super) ring: Ring<R>,
    /// A list for each command slot.
    pub(super) lists: DmaRegion,
    pub(super) list_bytes: usize,
    /// Of the state that the ring was last reset for.
    pub(super) generation: u64,
    /// The generations of the command slots, so that a late completion of the last owner's command
    /// is not taken for one of the next.
    pub(super) slots: Box<[u16]>,
}

/// A queue pair's place in the drive.
#[derive(Debug)]
pub(super) struct Seat<R> {
    gate: AtomicU32,
    /// A command to be aborted: its identifier with [`WANTED`] set.
    abort: AtomicU32,
    /// A reset is wanted.
    reset: AtomicBool,
    pub(super) kit: Mutex<Option<Kit<R>>>,
}

const WANTED: u32 = 1 << 31;

impl<R> Seat<R> {
    pub(super) fn new(kit: Kit<R>) -> Self {
        Self {
            gate: AtomicU32::new(Gate::Vacant as u32),
            abort: AtomicU32::new(0),
            reset: AtomicBool::new(false),
            kit: Mutex::new(Some(kit)),
        }
    }

    pub(super) fn set_gate(&self, gate: Gate) {
        self.gate.store(gate as u32, Ordering::SeqCst);
    }

    pub(super) fn is_running(&self) -> bool {
        self.gate.load(Ordering::SeqCst) == Gate::Running as u32
    }

    /// Asks for an abort; false where another one was asked for and not yet taken.
    pub(super) fn ask_abort(&self, cid: u16) -> bool {
        let asked = u32::from(cid) | WANTED;
        self.abort
            .compare_exchange(0, asked, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    pub(super) fn take_abort(&self) -> Option<u16> {
        let asked = self.abort.load(Ordering::Relaxed);
        (asked & WANTED != 0).then(|| self.abort.swap(0, Ordering::AcqRel) as u16)
    }

    pub(super) fn ask_reset(&self) {
        self.reset.store(true, Ordering::Release);
    }

    pub(super) fn wants_reset(&self) -> bool {
        self.reset.load(Ordering::Relaxed)
    }

    pub(super) fn take_reset(&self) -> bool {
        self.reset.load(Ordering::Relaxed) && self.reset.swap(false, Ordering::AcqRel)
    }

    pub(super) fn take_kit(&self) -> Option<Kit<R>> {
        self.kit
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    pub(super) fn put_kit(&self, kit: Kit<R>) {
        *self.kit.lock().unwrap_or_else(PoisonError::into_inner) = Some(kit);
    }
}

/// A drive that was brought up, as all cores see it. Its queues are opened by
/// [`Queue::open`](super::Queue::open).
#[derive(Debug)]
pub struct Drive<R> {
    pub(super) state: AtomicU64,
    pub(super) seats: Box<[Seat<R>]>,
    pub(super) options: DriverOptions,
    /// The memory of queues and lists, as the device sees it.
    pub(super) window: DmaWindow,
    pub(super) sgl: bool,
    /// A page of zeroes, and a list that names it over and over.
    pub(super) zeroes: Zeroes,
    info: ControllerInfo,
    /// Control path: what is in use has its own `Arc`.
    namespaces: Mutex<Vec<Namespace>>,
    address: String,
    resets: AtomicU64,
    changes: AtomicU64,
}

/// The most namespaces that are served of one drive.
pub(super) const NAMESPACES_MAX: usize = 1024;

/// The most bytes of metadata of one command.
pub(super) const METADATA_BYTES: usize = 8192;

/// Zeroes to be written where the controller has no Write Zeroes: for the device, the addresses of a
/// page of them and of a PRP list that names that page over and over.
#[derive(Debug)]
pub(super) struct Zeroes {
    pub(super) page: u64,
    pub(super) list: u64,
    /// Zeroes for the metadata of what is written.
    pub(super) metadata: u64,
    /// Where the metadata of what is read lands: nobody looks at it.
    pub(super) dropped: u64,
    pub(super) _memory: DmaRegion,
}

/// What [`Drive`] is made of.
pub(super) struct DriveParts<R> {
    pub(super) seats: Box<[Seat<R>]>,
    pub(super) options: DriverOptions,
    pub(super) window: DmaWindow,
    pub(super) zeroes: Zeroes,
    pub(super) info: ControllerInfo,
    pub(super) namespaces: Vec<Namespace>,
    pub(super) address: String,
}

impl<R: Registers> Drive<R> {
    pub(super) fn new(parts: DriveParts<R>) -> Arc<Self> {
        let state = State {
            phase: Phase::Running,
            generation: 1,
        };
        Arc::new(Self {
            state: AtomicU64::new(state.to_bits()),
            seats: parts.seats,
            sgl: parts.info.sgl && parts.options.sgl,
            options: parts.options,
            window: parts.window,
            zeroes: parts.zeroes,
            info: parts.info,
            namespaces: Mutex::new(parts.namespaces),
            address: parts.address,
            resets: AtomicU64::new(0),
            changes: AtomicU64::new(0),
        })
    }

    /// What the controller said of itself.
    #[must_use]
    pub fn info(&self) -> &ControllerInfo {
        &self.info
    }

    /// Its PCI address.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The namespaces that are attached, and those that were, used or refused.
    #[must_use]
    pub fn namespaces(&self) -> Vec<Namespace> {
        self.lock_namespaces().clone()
    }

    /// A namespace that can be used.
    #[must_use]
    pub fn namespace(&self, nsid: u32) -> Option<Arc<NamespaceInfo>> {
        let namespaces = self.lock_namespaces();
        let found = namespaces.iter().find(|known| known.nsid == nsid)?;
        found.state.as_ref().ok().cloned()
    }

    fn lock_namespaces(&self) -> MutexGuard<'_, Vec<Namespace>> {
        self.namespaces
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// What the controller says of a namespace now; `None` for one that is not attached.
    pub(super) fn set_namespace(
        &self,
        nsid: u32,
        now: Option<Result<Arc<NamespaceInfo>, Refusal>>,
    ) {
        let mut namespaces = self.lock_namespaces();
        let is_full = namespaces.len() >= NAMESPACES_MAX;
        let known = namespaces.iter_mut().find(|known| known.nsid == nsid);
        if let Some(Namespace {
            state: Ok(info), ..
        }) = &known
        {
            info.update(
                now.as_ref()
                    .and_then(|now| now.as_ref().ok())
                    .map(Arc::as_ref),
            );
        }
        match (known, now) {
            // Whoever uses it goes on with what was just brought up to date. One that was detached stays
            // so for them, and gets a successor.
            (
                Some(Namespace {
                    state: Ok(info), ..
                }),
                _,
            ) if info.is_attached() => {}
            (Some(known), Some(state)) => known.state = state,
            (None, Some(state)) if !is_full => {
                namespaces.push(Namespace { nsid, state });
                namespaces.sort_by_key(|known| known.nsid);
            }
            (None, _) | (_, None) => {}
        }
        self.changes.fetch_add(1, Ordering::Relaxed);
    }

    /// The drive lost its power, and with it perhaps what was in its cache: namespaces with such writes
    /// count as detached and attached again, so that whoever uses them learns of it.
    pub(super) fn lose_unflushed(&self) {
        for known in self.lock_namespaces().iter_mut() {
            let Ok(info) = &known.state else { continue };
            if info.is_attached() && info.has_unflushed() {
                known.state = Ok(Arc::new(info.succeed()));
            }
        }
        self.changes.fetch_add(1, Ordering::Relaxed);
    }

    /// The controller wrote its cache.
    pub(super) fn note_all_flushed(&self) {
        for known in self.lock_namespaces().iter() {
            if let Ok(info) = &known.state {
                info.begin_flush();
            }
        }
    }

    /// How often a namespace was attached, detached or changed since the drive was brought up.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    /// The I/O queue pairs: as many cores can open one at the same time.
    #[must_use]
    pub fn queues(&self) -> usize {
        self.seats.len()
    }

    /// True once the drive was given up: unplugged, or beyond what a reset mends.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        matches!(self.load_state().phase, Phase::Failed | Phase::FailedUnsafe)
    }

    /// True while the controller is reset, and takes no commands.
    #[must_use]
    pub fn is_resetting(&self) -> bool {
        self.load_state().phase == Phase::Quiesced
    }

    /// How often the controller was reset since it was brought up.
    #[must_use]
    pub fn resets(&self) -> u64 {
        self.resets.load(Ordering::Relaxed)
    }

    pub(super) fn count_reset(&self) {
        self.resets.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn load_state(&self) -> State {
        State::from_bits(self.state.load(Ordering::SeqCst))
    }

    pub(super) fn set_state(&self, phase: Phase, generation: u64) {
        let state = State { phase, generation };
        self.state.store(state.to_bits(), Ordering::SeqCst);
    }
}
