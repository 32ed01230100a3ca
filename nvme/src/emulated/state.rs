//! The emulated controller itself: registers, queues, commands on their way.
//!
//! Invariants:
//! - A command touches memory at the instant it is completed, not before and never after: what was
//!   forgotten, aborted or completed by mistake moves no data any more.
//! - Disabling the controller, resetting the function, unplugging it and clearing Bus Master Enable
//!   forget every command at once.

use std::collections::{BTreeMap, VecDeque};

use corebay_core::{
    rng::Rng,
    units::{BlockSize, Time},
};
use zerocopy::{FromBytes, IntoBytes};

use super::{
    medium::Medium,
    memory::Memory,
    options::{EmulatedFaults, EmulatedOptions},
};
use crate::spec::{
    command::SubmissionEntry,
    completion::CompletionEntry,
    event::AsyncEvent,
    property::{self, Aqa, Cc, Csts, Shn, Shst},
    status::Status,
};

/// Identifiers of completed commands that are kept, to be completed again by mistake.
const STALE_MAX: usize = 64;

/// A completion queue.
#[derive(Debug)]
pub(super) struct CompletionQueue {
    pub(super) address: u64,
    pub(super) entries: u32,
    tail: u32,
    /// What the host has taken, by its doorbell.
    pub(super) head: u32,
    phase: bool,
}

/// A submission queue.
#[derive(Debug)]
pub(super) struct SubmissionQueue {
    pub(super) address: u64,
    pub(super) entries: u32,
    pub(super) cqid: u16,
    pub(super) head: u32,
    pub(super) tail: u32,
}

impl CompletionQueue {
    pub(super) fn new(address: u64, entries: u32) -> Self {
        Self {
            address,
            entries,
            tail: 0,
            head: 0,
            phase: true,
        }
    }

    fn is_full(&self) -> bool {
        (self.tail + 1) % self.entries == self.head
    }
}

impl SubmissionQueue {
    pub(super) fn new(address: u64, entries: u32, cqid: u16) -> Self {
        Self {
            address,
            entries,
            cqid,
            head: 0,
            tail: 0,
        }
    }
}

/// A command that was fetched.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pending {
    pub(super) due: Time,
    pub(super) sqid: u16,
    pub(super) entry: SubmissionEntry,
}

/// A namespace.
#[derive(Debug)]
pub(super) struct NamespaceState {
    pub(super) medium: Medium,
    pub(super) metadata_bytes: u16,
    pub(super) metadata_extended: bool,
    pub(super) attached: bool,
}

/// What an emulated controller has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EmulatedCounters {
    /// I/O commands executed.
    pub io_commands: u64,
    /// Doorbell registers written.
    pub doorbells: u64,
    /// Flush commands executed.
    pub flushes: u64,
    /// Commands with Force Unit Access executed.
    pub forced: u64,
    /// Abort commands executed.
    pub aborts: u64,
    /// Times the controller was enabled.
    pub enabled: u64,
    /// Commands whose data was an SGL.
    pub sgls: u64,
    /// Events that were sent.
    pub events: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct State {
    pub(super) options: EmulatedOptions,
    pub(super) faults: EmulatedFaults,
    pub(super) counters: EmulatedCounters,
    pub(super) memory: Memory,
    pub(super) namespaces: Vec<NamespaceState>,
    pub(super) rng: Rng,
    pub(super) present: bool,
    /// What registers read as while it is not.
    pub(super) absent: u32,
    pub(super) wanted_back: bool,
    pub(super) lent: bool,
    pub(super) bus_master: bool,
    /// When the reset of the function that is under way ends.
    resets_until: Option<Time>,
    cc: Cc,
    csts: Csts,
    aqa: Aqa,
    asq: u64,
    acq: u64,
    /// When CSTS follows CC.
    settles: Option<Time>,
    /// When a shutdown that was asked for is complete.
    shuts_down: Option<Time>,
    now: Time,
    pub(super) sqs: BTreeMap<u16, SubmissionQueue>,
    pub(super) cqs: BTreeMap<u16, CompletionQueue>,
    pub(super) pending: Vec<Pending>,
    /// Event requests that wait for an event.
    pub(super) event_requests: Vec<u16>,
    pub(super) events: VecDeque<AsyncEvent>,
    pub(super) changed_namespaces: Vec<u32>,
    /// Shadow doorbells and event indexes.
    pub(super) doorbell_buffers: Option<[u64; 2]>,
    pub(super) features: BTreeMap<u8, u32>,
    pub(super) host_identifier: [u8; 16],
    stale: VecDeque<(u16, u16)>,
}

impl State {
    pub(super) fn new(options: EmulatedOptions) -> Self {
        let namespaces = options.namespaces.iter();
        let namespaces = namespaces
            .map(|namespace| NamespaceState {
                medium: Medium::new(namespace.block_size, namespace.blocks),
                metadata_bytes: namespace.metadata_bytes,
                metadata_extended: namespace.metadata_extended,
                attached: true,
            })
            .collect();
        Self {
            rng: Rng::from_seed(options.seed),
            options,
            faults: EmulatedFaults::default(),
            counters: EmulatedCounters::default(),
            memory: Memory::default(),
            namespaces,
            present: true,
            absent: u32::MAX,
            wanted_back: false,
            lent: false,
            bus_master: false,
            resets_until: None,
            cc: Cc::default(),
            csts: Csts::default(),
            aqa: Aqa::default(),
            asq: 0,
            acq: 0,
            settles: None,
            shuts_down: None,
            now: Time::default(),
            sqs: BTreeMap::new(),
            cqs: BTreeMap::new(),
            pending: Vec::new(),
            event_requests: Vec::new(),
            events: VecDeque::new(),
            changed_namespaces: Vec::new(),
            doorbell_buffers: None,
            features: BTreeMap::new(),
            host_identifier: [0; 16],
            stale: VecDeque::new(),
        }
    }

    // Registers.

    pub(super) fn read32(&mut self, at: u32) -> u32 {
        assert!(
            self.resets_until.is_none(),
            "a register is touched while the function is being reset"
        );
        if !self.present {
            return self.absent;
        }
        if self.rng.once_in(self.faults.wild_registers) {
            return self.rng.next_u64() as u32;
        }
        let low = |value: u64| value as u32;
        let high = |value: u64| (value >> 32) as u32;
        match at {
            property::CAP => low(self.options.cap.0),
            at if at == property::CAP + 4 => high(self.options.cap.0),
            property::VS => self.options.version.0,
            property::CC => self.cc.0,
            property::CSTS => self.csts.0,
            property::AQA => self.aqa.0,
            property::ASQ => low(self.asq),
            at if at == property::ASQ + 4 => high(self.asq),
            property::ACQ => low(self.acq),
            at if at == property::ACQ + 4 => high(self.acq),
            _ => 0,
        }
    }

    pub(super) fn write32(&mut self, at: u32, value: u32) {
        assert!(
            self.resets_until.is_none(),
            "a register is touched while the function is being reset"
        );
        if !self.present {
            return;
        }
        let low = |of: u64| of & !0xFFFF_FFFF | u64::from(value);
        let high = |of: u64| of & 0xFFFF_FFFF | u64::from(value) << 32;
        match at {
            property::CC => self.write_cc(Cc(value)),
            property::AQA => self.aqa = Aqa(value),
            property::ASQ => self.asq = low(self.asq),
            at if at == property::ASQ + 4 => self.asq = high(self.asq),
            property::ACQ => self.acq = low(self.acq),
            at if at == property::ACQ + 4 => self.acq = high(self.acq),
            at if at >= property::SQ0TDBL => self.write_doorbell(at, value),
            _ => {}
        }
    }

    fn write_cc(&mut self, cc: Cc) {
        let was = std::mem::replace(&mut self.cc, cc);
        if was.en() != cc.en() {
            self.settles = Some(self.now.plus(self.options.ready_delay));
            if !cc.en() {
                self.forget_everything();
            }
        }
        if cc.shn() != Shn::None && was.shn() == Shn::None {
            self.shuts_down = Some(self.now.plus(self.options.shutdown_delay));
            self.shut_down();
        }
    }

    fn write_doorbell(&mut self, at: u32, value: u32) {
        self.counters.doorbells += 1;
        let stride = 4 << self.options.cap.dstrd();
        let offset = at - property::SQ0TDBL;
        let index = offset / stride;
        let qid = (index / 2) as u16;
        let known = if index.is_multiple_of(2) {
            self.sqs.get_mut(&qid).and_then(|queue| {
                let fits = value < queue.entries;
                fits.then(|| queue.tail = value)
            })
        } else {
            self.cqs.get_mut(&qid).and_then(|queue| {
                let fits = value < queue.entries;
                fits.then(|| queue.head = value)
            })
        };
        if known.is_none() || !offset.is_multiple_of(stride) {
            self.event(AsyncEvent::error(
                crate::spec::event::error::INVALID_DOORBELL_VALUE,
            ));
        }
    }

    // Beginnings and ends.

    /// The controller loses all that a reset takes: what is not kept on a medium.
    fn forget_everything(&mut self) {
        self.sqs.clear();
        self.cqs.clear();
        self.pending.clear();
        self.event_requests.clear();
        self.events.clear();
        self.doorbell_buffers = None;
        self.features.clear();
        self.stale.clear();
    }

    fn flush_all(&mut self) {
        for namespace in &mut self.namespaces {
            namespace.medium.flush();
        }
    }

    /// Goes on with a reset of the function; true once it is over.
    pub(super) fn is_reset(&mut self) -> bool {
        let ends = self.now.plus(self.faults.slow_function_reset);
        if *self.resets_until.get_or_insert(ends) > self.now {
            return false;
        }
        self.resets_until = None;
        self.reset_function();
        true
    }

    /// A reset of the function, as after power on; what is in volatile caches stays.
    pub(super) fn reset_function(&mut self) {
        self.forget_everything();
        self.cc = Cc::default();
        self.csts = Csts::default();
        self.settles = None;
        self.shuts_down = None;
        self.bus_master = false;
    }

    /// The device loses its power.
    pub(super) fn lose_power(&mut self) {
        self.reset_function();
        for namespace in &mut self.namespaces {
            namespace.medium.lose_power(&mut self.rng);
        }
    }

    pub(super) fn set_bus_master(&mut self, on: bool) {
        self.bus_master = on;
        if !on {
            self.pending.clear();
        }
    }

    pub(super) fn fail_fatally(&mut self) {
        self.csts = self.csts.with_cfs(true);
        self.pending.clear();
    }

    /// Ends a shutdown that is due.
    fn shut_down(&mut self) {
        if self.shuts_down.is_some_and(|at| at <= self.now) {
            self.shuts_down = None;
            self.flush_all();
            self.csts = self.csts.with_shst(Shst::Complete);
        }
    }

    fn settle(&mut self) {
        if self.settles.is_none_or(|at| at > self.now) || self.faults.stuck_ready {
            return;
        }
        self.settles = None;
        self.csts = Csts::default();
        if !self.cc.en() {
            return;
        }
        let sq = SubmissionQueue::new(self.asq, u32::from(self.aqa.asqs()) + 1, 0);
        let cq = CompletionQueue::new(self.acq, u32::from(self.aqa.acqs()) + 1);
        self.sqs.insert(0, sq);
        self.cqs.insert(0, cq);
        self.counters.enabled += 1;
        self.csts = self.csts.with_rdy(true);
    }

    /// When something falls due.
    pub(super) fn next_event(&self) -> Option<Time> {
        let pending = self.pending.iter().map(|pending| pending.due);
        pending.chain(self.settles).chain(self.shuts_down).min()
    }

    // A turn.

    pub(super) fn poll(&mut self, now: Time) -> usize {
        self.now = now;
        if !self.present {
            return 0;
        }
        self.settle();
        self.shut_down();
        if !self.csts.rdy() || self.csts.cfs() || !self.bus_master {
            return 0;
        }
        let fetched = self.fetch();
        if self.faults.hang {
            return fetched;
        }
        fetched + self.complete_due() + self.send_events()
    }

    fn fetch(&mut self) -> usize {
        let mut fetched = Vec::new();
        let mut broken = false;
        self.read_shadow_doorbells();
        for (&sqid, queue) in &mut self.sqs {
            while queue.head != queue.tail {
                let at = queue.address + u64::from(queue.head) * 64;
                let mut bytes = [0; 64];
                for (index, dword) in bytes.chunks_exact_mut(4).enumerate() {
                    match self.memory.load(at + index as u64 * 4) {
                        Ok(value) => dword.copy_from_slice(&value.to_le_bytes()),
                        Err(_) => broken = true,
                    }
                }
                let entry = SubmissionEntry::read_from_bytes(&bytes).expect("an entry's bytes");
                queue.head = (queue.head + 1) % queue.entries;
                fetched.push((sqid, entry));
            }
        }
        if broken {
            self.fail_fatally();
            return 0;
        }
        let count = fetched.len();
        for (sqid, entry) in fetched {
            if self.rng.once_in(self.faults.lost) {
                continue;
            }
            let due = self.due();
            self.pending.push(Pending { due, sqid, entry });
        }
        count
    }

    fn due(&mut self) -> Time {
        let (least, most) = self.options.latency;
        let spread = most.saturating_sub(least).as_nanos() as u64;
        let mut due = self.now.plus(least);
        due.0 += self.rng.below(spread + 1);
        if self.rng.once_in(self.faults.late) {
            due = due.plus(self.faults.late_by);
        }
        due
    }

    fn read_shadow_doorbells(&mut self) {
        let Some([shadow, events]) = self.doorbell_buffers else {
            return;
        };
        let stride = 4u64 << self.options.cap.dstrd();
        for (&qid, queue) in self.sqs.iter_mut().filter(|(qid, _)| **qid > 0) {
            let at = u64::from(qid) * 2 * stride;
            if let Ok(tail) = self.memory.load(shadow + at)
                && tail < queue.entries
            {
                queue.tail = tail;
                // From here on we want to be told; what was told meanwhile is seen at the next turn.
                let _ = self.memory.store(events + at, tail);
            }
        }
        for (&qid, queue) in self.cqs.iter_mut().filter(|(qid, _)| **qid > 0) {
            let at = (u64::from(qid) * 2 + 1) * stride;
            if let Ok(head) = self.memory.load(shadow + at)
                && head < queue.entries
            {
                queue.head = head;
            }
        }
    }

    fn complete_due(&mut self) -> usize {
        let mut done = 0;
        loop {
            let now = self.now;
            let next = self
                .pending
                .iter()
                .enumerate()
                .filter(|(_, pending)| pending.due <= now)
                .filter(|(_, pending)| self.has_room(pending.sqid))
                .min_by_key(|(index, pending)| (pending.due, *index))
                .map(|(index, _)| index);
            let Some(index) = next else {
                return done;
            };
            let Pending { sqid, entry, .. } = self.pending.remove(index);
            done += 1;
            if let Some(completion) = self.execute(sqid, &entry) {
                self.post_with_faults(sqid, completion);
            }
        }
    }

    fn has_room(&self, sqid: u16) -> bool {
        let queue = self.sqs.get(&sqid).and_then(|sq| self.cqs.get(&sq.cqid));
        queue.is_none_or(|queue| !queue.is_full())
    }

    fn execute(&mut self, sqid: u16, entry: &SubmissionEntry) -> Option<CompletionEntry> {
        let cid = entry.cid.get();
        if sqid > 0 && self.rng.once_in(self.faults.failing) {
            let status = Status::from_bits(self.rng.next_u64() as u16 | 1);
            return Some(CompletionEntry::new(cid, status));
        }
        let outcome = match sqid {
            0 => self.execute_admin(entry)?,
            _ => self.execute_io(entry).map(|()| 0),
        };
        Some(match outcome {
            Ok(dw0) => CompletionEntry::success(cid).with_dw0(dw0),
            Err(status) => CompletionEntry::new(cid, status),
        })
    }

    fn post_with_faults(&mut self, sqid: u16, completion: CompletionEntry) {
        let faults = self.faults;
        let mut completion = completion;
        if self.rng.once_in(faults.wrong_cid) {
            completion.cid = self.some_cid(sqid).into();
        }
        self.stale.push_back((sqid, completion.cid.get()));
        if self.stale.len() > STALE_MAX {
            self.stale.pop_front();
        }
        let twice = self.rng.once_in(faults.duplicate);
        self.post(sqid, completion);
        if twice && self.has_room(sqid) {
            self.post(sqid, completion);
        }
    }

    pub(super) fn complete_again(&mut self) {
        let last = self.stale.iter().rev().find(|(sqid, _)| *sqid > 0);
        if let Some(&(sqid, cid)) = last {
            self.post(sqid, CompletionEntry::success(cid));
        }
    }

    /// Any identifier: of a command in flight, of one that was completed, or made up.
    fn some_cid(&mut self, sqid: u16) -> u16 {
        let in_flight = self.pending.iter().filter(|pending| pending.sqid == sqid);
        let in_flight: Vec<u16> = in_flight.map(|pending| pending.entry.cid.get()).collect();
        let stale = self.stale.iter().filter(|(of, _)| *of == sqid);
        let stale: Vec<u16> = stale.map(|(_, cid)| *cid).collect();
        let mut pick = |from: &[u16]| {
            let index = self.rng.below(from.len() as u64) as usize;
            from.get(index).copied()
        };
        let picked = match pick(&[0, 1, 2]) {
            Some(0) => pick(&in_flight),
            Some(1) => pick(&stale),
            _ => None,
        };
        picked.unwrap_or_else(|| self.rng.next_u64() as u16)
    }

    /// Posts a completion. The command that it names, if it is still on its way, is no more.
    pub(super) fn post(&mut self, sqid: u16, completion: CompletionEntry) {
        let cid = completion.cid.get();
        self.pending
            .retain(|pending| pending.sqid != sqid || pending.entry.cid.get() != cid);
        let Some(sq) = self.sqs.get(&sqid) else {
            return;
        };
        let Some(cq) = self.cqs.get_mut(&sq.cqid) else {
            return;
        };
        let named = match self.rng.once_in(self.faults.wrong_sqid) {
            true => self.rng.next_u64() as u16,
            false => sqid,
        };
        let phase = cq.phase ^ self.rng.once_in(self.faults.bad_phase);
        let completion = completion
            .with_sqhd(sq.head as u16)
            .with_sqid(named)
            .with_phase(phase);
        let at = cq.address + u64::from(cq.tail) * 16;
        cq.tail = (cq.tail + 1) % cq.entries;
        if cq.tail == 0 {
            cq.phase = !cq.phase;
        }
        let mut broken = false;
        for (index, dword) in completion.as_bytes().chunks_exact(4).enumerate() {
            let value = u32::from_le_bytes([dword[0], dword[1], dword[2], dword[3]]);
            broken |= self.memory.store(at + index as u64 * 4, value).is_err();
        }
        if broken {
            self.fail_fatally();
        }
    }

    // Events.

    pub(super) fn event(&mut self, event: AsyncEvent) {
        if !self.events.contains(&event) {
            self.events.push_back(event);
        }
    }

    fn send_events(&mut self) -> usize {
        let mut sent = 0;
        while !self.events.is_empty() && !self.event_requests.is_empty() && self.has_room(0) {
            let (Some(event), Some(cid)) = (self.events.pop_front(), self.event_requests.pop())
            else {
                break;
            };
            sent += 1;
            self.counters.events += 1;
            let completion = CompletionEntry::success(cid).with_dw0(event.to_dword());
            self.post(0, completion);
        }
        sent
    }

    // Namespaces.

    pub(super) fn namespace(&mut self, nsid: u32) -> Option<&mut NamespaceState> {
        let index = usize::try_from(nsid).ok()?.checked_sub(1)?;
        let namespace = self.namespaces.get_mut(index)?;
        namespace.attached.then_some(namespace)
    }

    pub(super) fn namespace_changed(&mut self, nsid: u32) {
        if !self.changed_namespaces.contains(&nsid) {
            self.changed_namespaces.push(nsid);
            self.changed_namespaces.sort_unstable();
        }
        self.event(AsyncEvent::NAMESPACE_CHANGED);
    }

    pub(super) fn resize(&mut self, nsid: u32, blocks: u64) {
        if let Some(namespace) = self.namespace(nsid) {
            namespace.medium.blocks = blocks;
            self.namespace_changed(nsid);
        }
    }

    pub(super) fn block_size(&mut self, nsid: u32) -> Option<BlockSize> {
        self.namespace(nsid)
            .map(|namespace| namespace.medium.block_size)
    }
}
