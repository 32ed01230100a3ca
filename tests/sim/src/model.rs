//! The model of one namespace: for each block the values that a read may return.
//!
//! A block is a register with intervals. Every write is in the block's list from its beginning until
//! nothing can bring it back. A value may be read as long as some write of it has begun and has not
//! been *superseded*: an operation that gave the block another value, or read another one, began
//! after that write had ended.
//!
//! Durability is the same question asked twice. A write is superseded *durably* where what
//! superseded it is known to survive: it was written with Force Unit Access, or flushed (a flush
//! makes durable whatever was superseded when it began), or the medium has no volatile cache. After
//! a power cut every write that was not durably superseded may be the block's value again.
//!
//! Invariants:
//! - Times are places in the order of calls to this model, so no two are equal.
//! - What is unknown only ever permits more: a command that was lost with its connection may have
//!   had its effect, or have it later, until its host is fenced off.
//! - An operation that spans a power cut supersedes nothing unless it is durable by itself.

use std::collections::{BTreeMap, BTreeSet};

use crate::content::ZEROES;

const NEVER: u64 = u64::MAX;

/// Names an operation that has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    start: u64,
    cuts: u64,
}

/// How a write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteEnd {
    /// It succeeded.
    Done,
    /// It failed: each of its blocks is old or new, and stays so.
    Failed,
    /// It is known to have changed nothing.
    Refused,
    /// It was lost: it may still have its effect later.
    Lost {
        /// The host whose command it was.
        host: usize,
    },
}

#[derive(Clone, Copy, Debug)]
struct Write {
    value: u64,
    start: u64,
    end: u64,
    /// Since when it is superseded.
    superseded: u64,
    durably: bool,
}

/// See the module.
pub struct Model {
    /// Its namespace, for messages.
    nsid: u32,
    volatile_cache: bool,
    blocks: Vec<Vec<Write>>,
    clock: u64,
    cuts: u64,
    last_cut: u64,
    active: BTreeSet<u64>,
    /// The blocks of writes that were lost, by their start, with their host.
    lost: BTreeMap<u64, (usize, u64, u64)>,
    /// Values that a successful compare-and-write has replaced, with the cuts before it.
    replaced: BTreeMap<(u64, u64), u64>,
    /// Values whose write may have been executed more than once.
    repeated: BTreeSet<u64>,
}

impl Model {
    /// A namespace of zeroes.
    #[must_use]
    pub fn new(nsid: u32, blocks: u64, volatile_cache: bool) -> Self {
        let first = Write {
            value: ZEROES,
            start: 0,
            end: 0,
            superseded: NEVER,
            durably: false,
        };
        Self {
            nsid,
            volatile_cache,
            blocks: (0..blocks).map(|_| vec![first]).collect(),
            clock: 0,
            cuts: 0,
            last_cut: 0,
            active: BTreeSet::new(),
            lost: BTreeMap::new(),
            replaced: BTreeMap::new(),
            repeated: BTreeSet::new(),
        }
    }

    /// The blocks there are.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.blocks.len() as u64
    }

    /// A read, flush or compare begins.
    pub fn begin(&mut self) -> Ticket {
        self.clock += 1;
        self.active.insert(self.clock);
        Ticket {
            start: self.clock,
            cuts: self.cuts,
        }
    }

    /// A write of `value` to `blocks` blocks from `at` begins.
    pub fn begin_write(&mut self, at: u64, blocks: u64, value: u64) -> Ticket {
        let ticket = self.begin();
        for list in self.range(at, blocks) {
            list.push(Write {
                value,
                start: ticket.start,
                end: NEVER,
                superseded: NEVER,
                durably: false,
            });
        }
        ticket
    }

    /// A write ends; `durable` where it was to survive a loss of power by itself.
    pub fn end_write(
        &mut self,
        ticket: Ticket,
        at: u64,
        blocks: u64,
        durable: bool,
        end: WriteEnd,
    ) {
        let durable = durable || !self.volatile_cache;
        let now = self.finish(ticket);
        let spans_cut = ticket.cuts != self.cuts;
        let start = ticket.start;
        if let WriteEnd::Lost { host } = end {
            self.lost.insert(start, (host, at, blocks));
            return;
        }
        let supersedes = end == WriteEnd::Done && (durable || !spans_cut);
        let oldest = self.oldest();
        for list in self.range(at, blocks) {
            if end == WriteEnd::Refused {
                list.retain(|write| write.start != start);
                continue;
            }
            for write in list.iter_mut() {
                if write.start == start {
                    write.end = now;
                } else if supersedes && write.end <= start {
                    write.superseded = write.superseded.min(now);
                    write.durably |= durable;
                }
            }
            forget(list, oldest);
        }
    }

    /// The write of `value` may have been executed more than once.
    pub fn repeated(&mut self, value: u64) {
        self.repeated.insert(value);
    }

    /// A read of one block ends with `value`. The ticket stays good for other blocks of the read.
    ///
    /// # Errors
    /// Where the block cannot have that value.
    pub fn check_read(&mut self, ticket: Ticket, at: u64, value: u64) -> Result<(), String> {
        self.clock += 1;
        let now = self.clock;
        let (start, spans_cut) = (ticket.start, ticket.cuts != self.cuts);
        let (cut, volatile_cache) = (self.last_cut, self.volatile_cache);
        let nsid = self.nsid;
        let list = self.list(at);
        let known = list.iter().find(|write| write.value == value);
        if spans_cut {
            // Which of the two times it tells about is unknown.
            return Ok(());
        }
        let permitted = |write: &&Write| write.value == value && write.superseded > start;
        let Some(found) = list.iter().filter(permitted).max_by_key(|write| write.end) else {
            let why = match known {
                Some(write) => format!("that was superseded at {}", write.superseded),
                None => "that is not among what was written there and can come back".into(),
            };
            return Err(format!(
                "namespace {nsid} block {at} reads as value {value}: {why}; \
                 the read began at {start}; the block's writes: {list:?}"
            ));
        };
        // What had ended before the last cut and is read after it lies on the medium for good.
        let settled = found.end <= cut;
        for write in list.iter_mut().filter(|write| write.value != value) {
            if write.end <= start {
                write.superseded = write.superseded.min(now);
                write.durably |= !volatile_cache;
            }
            if settled && write.end <= cut {
                write.durably = true;
                write.superseded = write.superseded.min(now);
            }
        }
        Ok(())
    }

    /// A read, compare or flush ends.
    pub fn end(&mut self, ticket: Ticket) {
        self.finish(ticket);
    }

    /// A flush has succeeded.
    pub fn end_flush(&mut self, ticket: Ticket) {
        self.finish(ticket);
        if ticket.cuts != self.cuts {
            return;
        }
        let oldest = self.oldest();
        for list in &mut self.blocks {
            for write in list.iter_mut() {
                write.durably |= write.superseded <= ticket.start;
            }
            forget(list, oldest);
        }
    }

    /// A compare-and-write of one block has succeeded: what it compared with was there, and no other
    /// has replaced it.
    ///
    /// # Errors
    /// Where that cannot be.
    pub fn check_replaced(&mut self, ticket: Ticket, at: u64, old: u64) -> Result<(), String> {
        if ticket.cuts != self.cuts {
            return Ok(());
        }
        self.check_read(ticket, at, old)?;
        let unique = old != ZEROES && !self.repeated.contains(&old);
        let before = self.replaced.insert((at, old), self.cuts);
        if unique && before == Some(self.cuts) {
            return Err(format!(
                "namespace {} block {at}: two compare-and-writes have both replaced value {old}",
                self.nsid
            ));
        }
        Ok(())
    }

    /// A compare with `value` said that the block differs.
    ///
    /// # Errors
    /// Where it cannot have differed.
    pub fn check_differs(&mut self, ticket: Ticket, at: u64, value: u64) -> Result<(), String> {
        let start = ticket.start;
        let spans_cut = ticket.cuts != self.cuts;
        let nsid = self.nsid;
        let list = self.list(at);
        let mut possible = list
            .iter()
            .filter(|write| write.superseded > start && write.start != start);
        if spans_cut || possible.any(|write| write.value != value) {
            return Ok(());
        }
        Err(format!(
            "namespace {nsid} block {at} was said to differ from value {value}, which it must have"
        ))
    }

    /// Nothing that this host lost can have an effect any more.
    pub fn fence(&mut self, host: usize) {
        self.clock += 1;
        let now = self.clock;
        let mine: Vec<_> = self
            .lost
            .iter()
            .filter(|(_, (of, ..))| *of == host)
            .map(|(start, (_, at, blocks))| (*start, *at, *blocks))
            .collect();
        for (start, at, blocks) in mine {
            self.lost.remove(&start);
            for list in self.range(at, blocks) {
                for write in list.iter_mut().filter(|write| write.start == start) {
                    write.end = now;
                }
            }
        }
    }

    /// The power fails: whatever was not durably superseded may be back.
    pub fn cut_power(&mut self) {
        self.clock += 1;
        self.cuts += 1;
        self.last_cut = self.clock;
        for write in self.blocks.iter_mut().flatten() {
            if !write.durably {
                write.superseded = NEVER;
            }
        }
    }

    fn finish(&mut self, ticket: Ticket) -> u64 {
        self.active.remove(&ticket.start);
        self.clock += 1;
        self.clock
    }

    fn oldest(&self) -> u64 {
        self.active.first().copied().unwrap_or(self.clock)
    }

    fn list(&mut self, at: u64) -> &mut Vec<Write> {
        &mut self.blocks[usize::try_from(at).expect("a block of the namespace")]
    }

    fn range(&mut self, at: u64, blocks: u64) -> &mut [Vec<Write>] {
        let at = usize::try_from(at).expect("a block of the namespace");
        &mut self.blocks[at..at + usize::try_from(blocks).expect("blocks of the namespace")]
    }
}

/// Drops what can neither come back nor be seen by an operation that is under way.
fn forget(list: &mut Vec<Write>, oldest: u64) {
    list.retain(|write| !(write.durably && write.superseded < oldest));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(model: &mut Model, value: u64, durable: bool) {
        let ticket = model.begin_write(0, 1, value);
        model.end_write(ticket, 0, 1, durable, WriteEnd::Done);
    }

    fn flush(model: &mut Model) {
        let ticket = model.begin();
        model.end_flush(ticket);
    }

    fn reads(model: &mut Model, value: u64) -> bool {
        let ticket = model.begin();
        let good = model.check_read(ticket, 0, value).is_ok();
        model.end(ticket);
        good
    }

    fn may_read(model: &mut Model, value: u64) -> bool {
        let ticket = model.begin();
        let list = model.list(0);
        let found = list
            .iter()
            .any(|write| write.value == value && write.superseded > ticket.start);
        model.end(ticket);
        found
    }

    #[test]
    fn only_the_last_of_two_writes_is_read() {
        let mut model = Model::new(1, 1, true);
        write(&mut model, 1, false);
        write(&mut model, 2, false);
        assert!(!reads(&mut model, 1) && !reads(&mut model, 0) && reads(&mut model, 2));
    }

    #[test]
    fn of_two_concurrent_writes_a_read_decides() {
        let mut model = Model::new(1, 1, true);
        let a = model.begin_write(0, 1, 1);
        let b = model.begin_write(0, 1, 2);
        model.end_write(a, 0, 1, false, WriteEnd::Done);
        model.end_write(b, 0, 1, false, WriteEnd::Done);
        assert!(may_read(&mut model, 1) && may_read(&mut model, 2));
        assert!(reads(&mut model, 1));
        assert!(!reads(&mut model, 2));
    }

    #[test]
    fn a_cut_brings_back_what_was_not_durably_superseded() {
        let mut model = Model::new(1, 1, true);
        write(&mut model, 1, true);
        write(&mut model, 2, false);
        write(&mut model, 3, false);
        model.cut_power();
        assert!((1..=3).all(|value| may_read(&mut model, value)));
        assert!(!may_read(&mut model, 0));
        assert!(reads(&mut model, 2));
        model.cut_power();
        assert!(!reads(&mut model, 3) && !reads(&mut model, 1) && reads(&mut model, 2));
    }

    #[test]
    fn a_flush_makes_durable_what_ended_before_it_began() {
        let mut model = Model::new(1, 1, true);
        write(&mut model, 1, false);
        let flushing = model.begin();
        write(&mut model, 2, false);
        model.end_flush(flushing);
        model.cut_power();
        assert!(may_read(&mut model, 1) && may_read(&mut model, 2) && !may_read(&mut model, 0));
        let mut model = Model::new(1, 1, true);
        write(&mut model, 1, false);
        write(&mut model, 2, false);
        flush(&mut model);
        model.cut_power();
        assert!(!may_read(&mut model, 1) && reads(&mut model, 2));
    }

    #[test]
    fn without_a_volatile_cache_a_cut_changes_nothing() {
        let mut model = Model::new(1, 1, false);
        write(&mut model, 1, false);
        model.cut_power();
        assert!(!reads(&mut model, 0) && reads(&mut model, 1));
    }

    #[test]
    fn a_lost_write_may_come_until_its_host_is_fenced_off() {
        let mut model = Model::new(1, 1, true);
        let lost = model.begin_write(0, 1, 1);
        model.end_write(lost, 0, 1, false, WriteEnd::Lost { host: 3 });
        write(&mut model, 2, false);
        assert!(reads(&mut model, 2) && may_read(&mut model, 1));
        model.fence(3);
        write(&mut model, 4, false);
        assert!(!may_read(&mut model, 1));
    }

    #[test]
    fn a_value_is_replaced_once() {
        let mut model = Model::new(1, 1, true);
        write(&mut model, 1, false);
        let a = model.begin_write(0, 1, 2);
        let b = model.begin_write(0, 1, 3);
        assert!(model.check_replaced(a, 0, 1).is_ok());
        assert!(model.check_replaced(b, 0, 1).is_err());
    }

    #[test]
    fn a_block_with_one_possible_value_does_not_differ_from_it() {
        let mut model = Model::new(1, 1, true);
        write(&mut model, 1, false);
        let ticket = model.begin_write(0, 1, 2);
        assert!(model.check_differs(ticket, 0, 1).is_err());
        assert!(model.check_differs(ticket, 0, 9).is_ok());
    }
}
