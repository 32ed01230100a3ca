//! The model of one namespace: for each block the values that a read may return.
//!
//! A block is a register with intervals. Every write is in the block's list from its beginning until
//! nothing can bring it back. A value may be read as long as some write of it has begun and has not
//! been *superseded*: an operation that gave the block another value, or read another one, began
//! after that write had ended. So nobody reads old data once somebody has read new data, also while the
//! write is under way: NVMe leaves that open, and corebay promises it, of the copies of a mirror, too.
//!
//! Durability is the same question asked twice. A write is superseded *durably* where what
//! superseded it is known to survive: it was written with Force Unit Access, or flushed (a flush
//! makes durable whatever was superseded when it began), or the medium has no volatile cache. After
//! a power cut every write that was not durably superseded may be the block's value again.
//!
//! A Copy writes whatever its source may hold while it executes: one write of each such value, all
//! with the same beginning, of which reads choose.
//!
//! A Compare and Write that succeeds tells more than a write: what began after the value that it
//! replaced had ended comes after it, whoever ended first.
//!
//! Invariants:
//! - Times are places in the order of calls to this model, so no two are equal.
//! - What is unknown only ever permits more: a command that was lost with its connection may have
//!   had its effect, or have it later, until its host is fenced off.
//! - An operation that spans a power cut supersedes nothing unless it is durable by itself.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    content::{LOST, ZEROES, mark},
    size::Sizes,
};

const NEVER: u64 = u64::MAX;

/// Names an operation that has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    start: u64,
    cuts: u64,
}

/// Whoever runs an appliance, among its hosts.
pub const OPERATOR: usize = usize::MAX;

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
    Lost,
}

#[derive(Clone, Copy, Debug)]
struct Write {
    value: u64,
    start: u64,
    end: u64,
    /// It is known to have had its effect.
    done: bool,
    /// Since when it is superseded.
    superseded: u64,
    durably: bool,
}

/// An operation that has not ended, or a write that was lost.
#[derive(Clone, Copy, Debug)]
struct Operation {
    host: usize,
    /// The blocks that it writes.
    writes: Option<(u64, u64)>,
    lost: bool,
}

/// A Copy that may still read.
#[derive(Clone, Copy, Debug)]
struct Copying {
    start: u64,
    from: u64,
    to: u64,
    blocks: u64,
}

/// See the module.
pub struct Model {
    /// Its name, for messages.
    name: String,
    volatile_cache: bool,
    /// A loss of power may lose a block that is not durable.
    tears: bool,
    blocks: Vec<Vec<Write>>,
    sizes: Sizes,
    clock: u64,
    cuts: u64,
    last_cut: u64,
    /// By their beginnings.
    operations: BTreeMap<u64, Operation>,
    copies: Vec<Copying>,
    /// Values that a successful compare-and-write has replaced, with the cuts before it.
    replaced: BTreeMap<(u64, u64), u64>,
    /// Values whose write may have been executed more than once.
    repeated: BTreeSet<u64>,
    /// For a write under way, by its beginning: the blocks' writes that it is known to come after.
    after: BTreeMap<u64, Vec<(u64, u64)>>,
    /// The beginnings of rollbacks: a Compare and Write does not keep them out.
    rollbacks: BTreeSet<u64>,
}

impl Model {
    /// A namespace of zeroes.
    #[must_use]
    pub fn new(name: String, blocks: u64, volatile_cache: bool, tears: bool) -> Self {
        let first = Write {
            value: ZEROES,
            start: 0,
            end: 0,
            done: true,
            superseded: NEVER,
            durably: false,
        };
        Self {
            name,
            volatile_cache,
            tears,
            blocks: (0..blocks).map(|_| vec![first]).collect(),
            sizes: Sizes::new(blocks),
            clock: 0,
            cuts: 0,
            last_cut: 0,
            operations: BTreeMap::new(),
            copies: Vec::new(),
            replaced: BTreeMap::new(),
            repeated: BTreeSet::new(),
            after: BTreeMap::new(),
            rollbacks: BTreeSet::new(),
        }
    }

    /// The most blocks that there are at any time.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.blocks.len() as u64
    }

    /// Operations that have begun and not ended.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.operations.values().filter(|op| !op.lost).count()
    }

    /// A read, flush or compare of `host` begins.
    pub fn begin(&mut self, host: usize) -> Ticket {
        self.begin_operation(host, None)
    }

    /// A write of `value` to `blocks` blocks from `at` begins.
    pub fn begin_write(&mut self, host: usize, at: u64, blocks: u64, value: u64) -> Ticket {
        let ticket = self.begin_operation(host, Some((at, blocks)));
        for lba in at..at + blocks {
            self.add(lba, mark(value, lba), ticket.start);
        }
        ticket
    }

    /// A copy of `blocks` blocks from `from` to `to` begins. The two do not overlap.
    pub fn begin_copy(&mut self, host: usize, from: u64, to: u64, blocks: u64) -> Ticket {
        let ticket = self.begin_operation(host, Some((to, blocks)));
        let start = ticket.start;
        self.copies.push(Copying {
            start,
            from,
            to,
            blocks,
        });
        for offset in 0..blocks {
            let now = self.list(from + offset).clone();
            for write in now.iter().filter(|write| write.superseded > start) {
                self.add_copied(to + offset, write.value, start);
            }
        }
        ticket
    }

    /// All blocks get the values of a snapshot, from now on, and the namespace its size.
    pub fn begin_rollback(&mut self, values: &[u64]) -> Ticket {
        let ticket = self.begin_operation(OPERATOR, Some((0, self.blocks())));
        self.rollbacks.insert(ticket.start);
        self.sizes.begin(values.len() as u64, ticket.start);
        // What lies behind it is cut off.
        let values = values.iter().copied().chain(std::iter::repeat(ZEROES));
        for (lba, value) in (0..self.blocks()).zip(values) {
            // Each was written before, too.
            self.repeated.insert(value);
            self.add(lba, value, ticket.start);
        }
        ticket
    }

    /// The namespace is to have `blocks` blocks; what is cut off is zeroes should it be there again.
    pub fn begin_resize(&mut self, blocks: u64) -> Ticket {
        let cut = (blocks, self.blocks() - blocks);
        let ticket = self.begin_operation(OPERATOR, Some(cut));
        self.rollbacks.insert(ticket.start);
        self.sizes.begin(blocks, ticket.start);
        for lba in blocks..self.blocks() {
            self.add(lba, ZEROES, ticket.start);
        }
        ticket
    }

    /// An order that gives the namespace a size has ended; `blocks` where it has been done.
    ///
    /// # Errors
    /// Where the namespace cannot have so many.
    pub fn end_sized(
        &mut self,
        ticket: Ticket,
        end: WriteEnd,
        blocks: Option<u64>,
    ) -> Result<(), String> {
        self.end_write(ticket, true, end);
        match (end, blocks) {
            (WriteEnd::Failed | WriteEnd::Refused, _) => self.sizes.refuse(ticket.start),
            (WriteEnd::Done, Some(blocks)) => return self.settle_size(blocks),
            _ => {}
        }
        Ok(())
    }

    /// Somebody has looked how many blocks the namespace has.
    ///
    /// # Errors
    /// Where it cannot have so many.
    pub fn settle_size(&mut self, blocks: u64) -> Result<(), String> {
        self.clock += 1;
        self.sizes.settle(blocks, self.clock)
    }

    /// How many blocks the namespace may have had at some time since then.
    pub fn sizes_since(&self, since: u64) -> impl Iterator<Item = u64> {
        self.sizes.since(since)
    }

    /// How often something has happened here.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.clock
    }

    /// A snapshot that was taken after the operation `since` began and before `until` holds `values`:
    /// there was a moment between at which each block had its own one.
    ///
    /// # Errors
    /// Where there was none.
    pub fn check_snapshot(&self, since: Ticket, until: u64, values: &[u64]) -> Result<(), String> {
        let had = |write: &Write, value: u64, at: u64| {
            write.value == value && write.start <= at && write.superseded > at
        };
        let all = || self.blocks.iter().zip(values);
        let starts = self.blocks.iter().flatten().map(|write| write.start);
        let mut moments: Vec<u64> = starts
            .filter(|at| (since.start..=until).contains(at))
            .collect();
        moments.push(since.start);
        // What the power has torn says nothing.
        let fits = |list: &[Write], value, at| {
            value == LOST || list.iter().any(|write| had(write, value, at))
        };
        let of_moment = |at| all().all(|(list, &value)| fits(list, value, at));
        let one = moments.iter().any(|&at| of_moment(at));
        if one {
            return Ok(());
        }
        let never =
            |(list, value): (&Vec<Write>, u64)| !moments.iter().any(|&at| fits(list, value, at));
        let (name, from) = (&self.name, since.start);
        let alone = (0..)
            .zip(all())
            .find(|(_, (list, value))| never((*list, **value)));
        Err(match alone {
            Some((lba, (list, value))) => format!(
                "a snapshot of {name}, taken between {from} and {until}, has value {value:#x} in block \
                 {lba}, whose writes are {list:x?}"
            ),
            None => format!(
                "a snapshot of {name}, taken between {from} and {until}, is of no one moment"
            ),
        })
    }

    /// By block: what a snapshot may hold that was taken after `since` began and before `until`.
    #[must_use]
    pub fn permitted(&self, since: Ticket, until: u64) -> Vec<Vec<u64>> {
        let had = |write: &&Write| write.start <= until && write.superseded > since.start;
        let values = |list: &Vec<Write>| list.iter().filter(had).map(|write| write.value).collect();
        self.blocks.iter().map(values).collect()
    }

    fn begin_operation(&mut self, host: usize, writes: Option<(u64, u64)>) -> Ticket {
        self.clock += 1;
        let operation = Operation {
            host,
            writes,
            lost: false,
        };
        self.operations.insert(self.clock, operation);
        Ticket {
            start: self.clock,
            cuts: self.cuts,
        }
    }

    /// A block may get a value, and with it whatever is being copied from the block.
    fn add(&mut self, lba: u64, value: u64, start: u64) {
        let list = self.list(lba);
        let known = |write: &Write| write.start == start && write.value == value;
        if list.iter().any(known) {
            return;
        }
        list.push(Write {
            value,
            start,
            end: NEVER,
            done: false,
            superseded: NEVER,
            durably: false,
        });
        for copy in self.copies.clone() {
            if copy.start != start && (copy.from..copy.from + copy.blocks).contains(&lba) {
                self.add_copied(copy.to + (lba - copy.from), value, copy.start);
            }
        }
    }

    fn add_copied(&mut self, lba: u64, value: u64, start: u64) {
        // Copying a block that cannot be read fails.
        if value != LOST {
            self.repeated.insert(value);
            self.add(lba, value, start);
        }
    }

    /// A write or copy ends; `durable` where it was to survive a loss of power by itself.
    pub fn end_write(&mut self, ticket: Ticket, durable: bool, end: WriteEnd) {
        let durable = durable || !self.volatile_cache;
        let start = ticket.start;
        let Some(operation) = self.operations.get_mut(&start) else {
            unreachable!("a write ends once");
        };
        let (at, blocks) = operation.writes.expect("a write");
        self.clock += 1;
        let now = self.clock;
        if end == WriteEnd::Lost {
            operation.lost = true;
            return;
        }
        self.operations.remove(&start);
        self.copies.retain(|copy| copy.start != start);
        let supersedes = end == WriteEnd::Done && (durable || ticket.cuts == self.cuts);
        let oldest = self.oldest();
        for list in self.range(at, blocks) {
            if end == WriteEnd::Refused {
                list.retain(|write| write.start != start);
                continue;
            }
            for write in list.iter_mut() {
                if write.start == start {
                    write.end = now;
                    write.done = end == WriteEnd::Done;
                } else if supersedes && write.end <= start {
                    write.superseded = write.superseded.min(now);
                    write.durably |= durable;
                }
            }
            forget(list, oldest);
        }
        for (lba, before) in self.after.remove(&start).unwrap_or_default() {
            for write in self.list(lba).iter_mut() {
                if supersedes && write.start == before {
                    write.superseded = write.superseded.min(now);
                }
            }
        }
    }

    /// The write of `value` to `blocks` blocks from `at` may have been executed more than once.
    pub fn repeated(&mut self, at: u64, blocks: u64, value: u64) {
        self.repeated
            .extend((at..at + blocks).map(|lba| mark(value, lba)));
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
        let name = self.name.clone();
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
                "{name} block {at} reads as value {value:#x}: {why}; \
                 the read began at {start}; the block's writes: {list:x?}"
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
        self.operations.remove(&ticket.start);
        self.clock += 1;
    }

    /// A flush has succeeded.
    pub fn end_flush(&mut self, ticket: Ticket) {
        self.end(ticket);
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

    /// A compare-and-write of one block has succeeded: what it compared with was there, nothing came
    /// between, and no other has replaced it.
    ///
    /// # Errors
    /// Where that cannot be.
    pub fn check_replaced(&mut self, ticket: Ticket, at: u64, old: u64) -> Result<(), String> {
        if ticket.cuts != self.cuts {
            return Ok(());
        }
        self.check_read(ticket, at, old)?;
        // Only of a write that has ended is it known whether it was sent again.
        let list = self.list(at);
        let ended = |write: &&Write| write.value == old && write.end != NEVER;
        let unknown = list.iter().find(ended).is_none();
        if old == ZEROES || unknown || self.repeated.contains(&old) {
            return Ok(());
        }
        let before = self.replaced.insert((at, old), self.cuts);
        if before == Some(self.cuts) {
            return Err(format!(
                "{} block {at}: two compare-and-writes have both replaced value {old:#x}",
                self.name
            ));
        }
        self.order_after(ticket, at, old);
        Ok(())
    }

    /// Writes that began once `old` had been written come after the write that has replaced it.
    fn order_after(&mut self, ticket: Ticket, at: u64, old: u64) {
        let (start, now, cut) = (ticket.start, self.clock, self.last_cut);
        let rollbacks = self.rollbacks.clone();
        let list = self.list(at);
        let Some(written) = list.iter().find(|write| write.value == old) else {
            return;
        };
        let since = written.end;
        let mut later = Vec::new();
        let mut superseded = false;
        for write in list.iter() {
            let other = write.start != start && !rollbacks.contains(&write.start);
            if other && write.start > since && write.start > cut {
                superseded |= write.done;
                if write.end == NEVER {
                    later.push(write.start);
                }
            }
        }
        if superseded {
            for write in list.iter_mut().filter(|write| write.start == start) {
                write.superseded = write.superseded.min(now);
            }
        }
        for write in later {
            self.after.entry(write).or_default().push((at, start));
        }
    }

    /// A compare with `value` said that the block differs.
    ///
    /// # Errors
    /// Where it cannot have differed.
    pub fn check_differs(&mut self, ticket: Ticket, at: u64, value: u64) -> Result<(), String> {
        let start = ticket.start;
        let spans_cut = ticket.cuts != self.cuts;
        let name = self.name.clone();
        let list = self.list(at);
        let mut possible = list
            .iter()
            .filter(|write| write.superseded > start && write.start != start);
        if spans_cut || possible.any(|write| write.value != value) {
            return Ok(());
        }
        Err(format!(
            "{name} block {at} was said to differ from value {value:#x}, which it must have"
        ))
    }

    /// The host's process is no more: whatever it had under way was lost.
    pub fn crash(&mut self, host: usize) {
        let reads = |op: &Operation| op.host == host && op.writes.is_none();
        self.operations.retain(|_, operation| !reads(operation));
        for operation in self.operations.values_mut() {
            operation.lost |= operation.host == host;
        }
    }

    /// Nothing that this host lost can have an effect any more.
    pub fn fence(&mut self, host: usize) {
        self.clock += 1;
        let now = self.clock;
        let mine = |operation: &Operation| operation.lost && operation.host == host;
        let lost: Vec<_> = self
            .operations
            .iter()
            .filter(|(_, operation)| mine(operation))
            .map(|(start, operation)| (*start, operation.writes))
            .collect();
        for (start, writes) in lost {
            self.operations.remove(&start);
            self.copies.retain(|copy| copy.start != start);
            self.after.remove(&start);
            let (at, blocks) = writes.expect("only writes are lost");
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
        if self.tears {
            self.tear();
        }
        // What may be back may be copied by what is under way or was lost.
        for copy in self.copies.clone() {
            for offset in 0..copy.blocks {
                for write in self.list(copy.from + offset).clone() {
                    if write.superseded == NEVER {
                        self.add_copied(copy.to + offset, write.value, copy.start);
                    }
                }
            }
        }
    }

    /// A block that may be one of several things may be lost instead, until it is written.
    fn tear(&mut self) {
        let lost = Write {
            value: LOST,
            start: self.last_cut,
            end: self.last_cut,
            done: false,
            superseded: NEVER,
            durably: false,
        };
        for list in &mut self.blocks {
            let possible = list.iter().filter(|write| write.superseded == NEVER);
            if possible.count() > 1 {
                list.push(lost);
            }
        }
    }

    fn oldest(&self) -> u64 {
        let mut under_way = self.operations.iter().filter(|(_, op)| !op.lost);
        under_way.next().map_or(self.clock, |(start, _)| *start)
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

    fn model(volatile_cache: bool) -> Model {
        Model::new("namespace 1".into(), 8, volatile_cache, false)
    }

    fn write(model: &mut Model, value: u64, durable: bool) {
        let ticket = model.begin_write(0, 0, 1, value);
        model.end_write(ticket, durable, WriteEnd::Done);
    }

    fn flush(model: &mut Model) {
        let ticket = model.begin(0);
        model.end_flush(ticket);
    }

    fn reads_at(model: &mut Model, at: u64, value: u64) -> bool {
        let ticket = model.begin(0);
        let good = model.check_read(ticket, at, value).is_ok();
        model.end(ticket);
        good
    }

    fn reads(model: &mut Model, value: u64) -> bool {
        reads_at(model, 0, mark(value, 0))
    }

    fn may_read_at(model: &mut Model, at: u64, value: u64) -> bool {
        let ticket = model.begin(0);
        let list = model.list(at);
        let found = list
            .iter()
            .any(|write| write.value == value && write.superseded > ticket.start);
        model.end(ticket);
        found
    }

    fn may_read(model: &mut Model, value: u64) -> bool {
        may_read_at(model, 0, mark(value, 0))
    }

    #[test]
    fn only_the_last_of_two_writes_is_read() {
        let mut model = model(true);
        write(&mut model, 1, false);
        write(&mut model, 2, false);
        assert!(!reads(&mut model, 1) && !reads(&mut model, 0) && reads(&mut model, 2));
    }

    #[test]
    fn of_two_concurrent_writes_a_read_decides() {
        let mut model = model(true);
        let a = model.begin_write(0, 0, 1, 1);
        let b = model.begin_write(0, 0, 1, 2);
        model.end_write(a, false, WriteEnd::Done);
        model.end_write(b, false, WriteEnd::Done);
        assert!(may_read(&mut model, 1) && may_read(&mut model, 2));
        assert!(reads(&mut model, 1));
        assert!(!reads(&mut model, 2));
    }

    #[test]
    fn once_the_new_value_is_read_the_old_one_is_not_also_while_the_write_is_under_way() {
        let mut model = model(true);
        write(&mut model, 1, false);
        let new = model.begin_write(0, 0, 1, 2);
        assert!(reads(&mut model, 1) && reads(&mut model, 2) && !reads(&mut model, 1));
        model.end_write(new, false, WriteEnd::Done);
    }

    #[test]
    fn a_cut_brings_back_what_was_not_durably_superseded() {
        let mut model = model(true);
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
        let mut early = model(true);
        write(&mut early, 1, false);
        let flushing = early.begin(0);
        write(&mut early, 2, false);
        early.end_flush(flushing);
        early.cut_power();
        assert!(may_read(&mut early, 1) && may_read(&mut early, 2) && !may_read(&mut early, 0));
        let mut model = model(true);
        write(&mut model, 1, false);
        write(&mut model, 2, false);
        flush(&mut model);
        model.cut_power();
        assert!(!may_read(&mut model, 1) && reads(&mut model, 2));
    }

    #[test]
    fn a_cut_that_tears_loses_only_what_is_not_durable() {
        let mut model = Model::new("namespace 1".into(), 8, true, true);
        write(&mut model, 1, true);
        model.cut_power();
        assert!(!may_read_at(&mut model, 0, LOST));
        write(&mut model, 2, false);
        let under_way = model.begin_write(0, 1, 1, 3);
        model.cut_power();
        assert!(may_read_at(&mut model, 0, LOST) && may_read_at(&mut model, 1, LOST));
        assert!(reads(&mut model, 2) && !may_read_at(&mut model, 0, LOST));
        model.end_write(under_way, false, WriteEnd::Lost);
        assert!(reads_at(&mut model, 1, LOST) && !reads_at(&mut model, 1, ZEROES));
    }

    #[test]
    fn without_a_volatile_cache_a_cut_changes_nothing() {
        let mut model = model(false);
        write(&mut model, 1, false);
        model.cut_power();
        assert!(!reads(&mut model, 0) && reads(&mut model, 1));
    }

    #[test]
    fn a_lost_write_may_come_until_its_host_is_fenced_off() {
        let mut model = model(true);
        let lost = model.begin_write(3, 0, 1, 1);
        model.end_write(lost, false, WriteEnd::Lost);
        write(&mut model, 2, false);
        assert!(reads(&mut model, 2) && may_read(&mut model, 1));
        model.fence(3);
        write(&mut model, 4, false);
        assert!(!may_read(&mut model, 1));
    }

    #[test]
    fn what_a_host_that_crashed_had_under_way_is_lost() {
        let mut model = model(true);
        model.begin_write(3, 0, 1, 1);
        model.begin(3);
        let other = model.begin(2);
        model.crash(3);
        assert_eq!(model.under_way(), 1);
        model.end(other);
        write(&mut model, 2, false);
        assert!(may_read(&mut model, 1));
        model.fence(3);
        write(&mut model, 4, false);
        assert!(!may_read(&mut model, 1));
    }

    #[test]
    fn a_value_is_replaced_once() {
        let mut model = model(true);
        write(&mut model, 1, false);
        let a = model.begin_write(0, 0, 1, 2);
        let b = model.begin_write(0, 0, 1, 3);
        assert!(model.check_replaced(a, 0, mark(1, 0)).is_ok());
        assert!(model.check_replaced(b, 0, mark(1, 0)).is_err());
    }

    #[test]
    fn a_write_that_may_be_sent_again_may_be_replaced_again() {
        let mut model = model(true);
        let write = model.begin_write(0, 0, 1, 1);
        let a = model.begin_write(1, 0, 1, 2);
        assert!(model.check_replaced(a, 0, mark(1, 0)).is_ok());
        model.end_write(a, false, WriteEnd::Done);
        model.repeated(0, 1, 1);
        model.end_write(write, false, WriteEnd::Done);
        let b = model.begin_write(1, 0, 1, 3);
        assert!(model.check_replaced(b, 0, mark(1, 0)).is_ok());
    }

    #[test]
    fn a_write_does_not_come_between_the_two_halves_of_a_compare_and_write() {
        let replace = |order: bool| {
            let mut model = model(true);
            write(&mut model, 1, false);
            let fused = model.begin_write(0, 0, 1, 2);
            let other = model.begin_write(1, 0, 1, 3);
            if order {
                model.end_write(other, false, WriteEnd::Done);
            }
            assert!(model.check_replaced(fused, 0, mark(1, 0)).is_ok());
            model.end_write(fused, false, WriteEnd::Done);
            if !order {
                model.end_write(other, false, WriteEnd::Done);
            }
            model
        };
        for order in [false, true] {
            assert!(!reads(&mut replace(order), 2));
            assert!(reads(&mut replace(order), 3));
        }
    }

    #[test]
    fn a_block_with_one_possible_value_does_not_differ_from_it() {
        let mut model = model(true);
        write(&mut model, 1, false);
        let ticket = model.begin_write(0, 0, 1, 2);
        assert!(model.check_differs(ticket, 0, mark(1, 0)).is_err());
        assert!(model.check_differs(ticket, 0, mark(9, 0)).is_ok());
    }

    #[test]
    fn a_snapshot_is_of_one_moment() {
        let mut model = model(true);
        write(&mut model, 1, false);
        let taken = model.begin(OPERATOR);
        write(&mut model, 2, false);
        let other = model.begin_write(0, 1, 1, 3);
        model.end_write(other, false, WriteEnd::Done);
        let until = model.now();
        write(&mut model, 4, false);
        let check = |first: u64, second: u64| {
            let mark = |value: u64, at| if value == 0 { ZEROES } else { mark(value, at) };
            let mut values = vec![ZEROES; 8];
            (values[0], values[1]) = (mark(first, 0), mark(second, 1));
            model.check_snapshot(taken, until, &values).is_ok()
        };
        assert!(check(1, 0) && check(2, 0) && check(2, 3));
        assert!(
            !check(1, 3),
            "the second write began after the first had ended"
        );
        assert!(!check(4, 3) && !check(0, 0), "too late, and too early");
    }

    #[test]
    fn after_a_rollback_the_old_values_are_there() {
        let mut model = model(true);
        write(&mut model, 1, false);
        write(&mut model, 2, false);
        let mut values = vec![ZEROES; 8];
        values[0] = mark(1, 0);
        let rollback = model.begin_rollback(&values);
        model.end_write(rollback, true, WriteEnd::Done);
        model.cut_power();
        assert!(!reads(&mut model, 2) && reads(&mut model, 1));
        let lost = model.begin_rollback(&[ZEROES; 8]);
        model.crash(OPERATOR);
        model.fence(OPERATOR);
        assert!(may_read(&mut model, 0) && may_read(&mut model, 1));
        let _ = lost;
    }

    #[test]
    fn a_copy_writes_what_its_source_may_hold() {
        let mut model = model(true);
        write(&mut model, 1, false);
        let copy = model.begin_copy(0, 0, 4, 1);
        write(&mut model, 2, false);
        model.end_write(copy, false, WriteEnd::Done);
        write(&mut model, 3, false);
        let (old, new, late) = (mark(1, 0), mark(2, 0), mark(3, 0));
        assert!(may_read_at(&mut model, 4, old) && may_read_at(&mut model, 4, new));
        assert!(!may_read_at(&mut model, 4, late) && !may_read_at(&mut model, 4, ZEROES));
        assert!(reads_at(&mut model, 4, old));
        assert!(!reads_at(&mut model, 4, new));
    }

    #[test]
    fn a_copy_of_a_copy_may_write_what_the_first_reads() {
        let mut model = model(true);
        let second = model.begin_copy(0, 4, 6, 1);
        let first = model.begin_copy(0, 0, 4, 1);
        write(&mut model, 1, false);
        model.end_write(first, false, WriteEnd::Done);
        model.end_write(second, false, WriteEnd::Done);
        assert!(may_read_at(&mut model, 6, mark(1, 0)) && may_read_at(&mut model, 6, ZEROES));
    }
}
