//! The commands that hosts send, and what each outcome tells the model.

use std::time::Duration;

use corebay_core::{buffer::Buffer, rng::Rng};
use corebay_nvme::{
    fabrics::{Error, IoQueue},
    spec::{
        command::{
            NSID_ALL,
            nvm::{CopyRangeFormat0, DsmRange},
        },
        status::Status,
    },
};

use crate::{
    client::{Session, may_not_happen},
    content::{self, LOST, ZEROES},
    model::{Ticket, WriteEnd},
    net::SimNetwork,
    plan::AfterLoss,
    trace::event,
};

/// The most bytes of one command.
const BYTES_MAX: usize = 64 << 10;

/// The pause of a worker whose command failed.
const AFTER_FAILURE: Duration = Duration::from_millis(1);

type Queue = IoQueue<SimNetwork>;

/// Blocks of a namespace.
#[derive(Clone, Copy, Debug)]
struct Blocks {
    nsid: u32,
    at: u64,
    count: u64,
    bytes: usize,
}

/// How many kinds of commands there are, each with its weight: reads, writes, writes with Force Unit
/// Access, flushes, compare-and-writes, zeroes, deallocations, compares, copies, verifications,
/// and blocks that are made unreadable.
pub const COMMANDS: usize = 11;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    Write { fua: bool },
    Flush,
    CompareAndWrite,
    Zeroes { fua: bool, deallocate: bool },
    Deallocate,
    Compare,
    Copy { from: u64 },
    Verify,
    Spoil,
}

impl Kind {
    fn writes(self) -> bool {
        !matches!(
            self,
            Self::Read | Self::Flush | Self::Compare | Self::Verify | Self::Spoil
        )
    }
}

/// One worker: one command after the other.
pub async fn work(session: &Session, worker: usize, mut rng: Rng) {
    let mut lost = None;
    for turn in 0..session.plan.commands {
        let Some(queue) = session.queue(worker + turn).await else {
            return;
        };
        session.fence();
        // Who has lost a write does it again, most likely.
        let again = lost.take().filter(|_| !rng.once_in(3));
        let (kind, blocks) = match again {
            Some(blocks) => (Kind::Write { fua: false }, blocks),
            None => choose(session, &mut rng),
        };
        let result = command(session, &queue, (kind, blocks)).await;
        if let Err(error) = &result
            && is_loss(error)
            && kind.writes()
        {
            lost = Some(blocks);
        }
        if result.is_err() {
            session.reactor().sleep(AFTER_FAILURE).await;
        }
        if rng.once_in(4) {
            let pause = Duration::from_micros(rng.below(2_000));
            session.reactor().sleep(pause).await;
        }
    }
}

/// Reads every block, and tries again where a connection is lost.
pub async fn check_all(session: &Session) {
    for (index, options) in session.namespaces().iter().enumerate() {
        let blocks = options.blocks;
        let mut step = (BYTES_MAX / options.block_size.bytes()) as u64;
        let mut at = 0;
        while at < blocks {
            let Some(queue) = session.queue(0).await else {
                session.reactor().sleep(Duration::from_millis(10)).await;
                continue;
            };
            session.fence();
            let part = Blocks {
                nsid: index as u32 + 1,
                at,
                count: step.min(blocks - at),
                bytes: options.block_size.bytes(),
            };
            let ticket = session.model(part.nsid).borrow_mut().begin(session.index);
            let since = session.model(part.nsid).borrow().now();
            let (was_disabled, association) = (session.is_disabled(), session.association());
            let read = read(session, &queue, part).await;
            if is_answered(&read) && was_disabled && association == session.association() {
                let what = "a check is answered though its controller has been reset";
                session.common.fail(what.to_owned());
            }
            let sized = check_size(session, Kind::Read, part, since, &read);
            if let (Err(error), 1, false) = (&read, part.count, sized)
                && !is_shut_down(session, error)
            {
                check_lost(session, part, ticket, error);
            }
            session.model(part.nsid).borrow_mut().end(ticket);
            match read {
                Ok(()) => at += part.count,
                // There are no more blocks.
                Err(_) if sized && part.count == 1 => break,
                // A shutdown that began before is followed by a reset, and a new association.
                Err(error) if is_shut_down(session, &error) => {
                    session.reactor().sleep(AFTER_FAILURE).await;
                }
                Err(error) if is_loss(&error) => {
                    if may_not_happen(&session.common, None, &error) {
                        let (host, node) = (session.index, session.node);
                        let what = format!("host {host} checks appliance {node}: {error}");
                        session.common.fail(what);
                    }
                    session.reactor().sleep(AFTER_FAILURE).await;
                }
                // A block of them is lost: they are looked at one by one.
                Err(_) if part.count > 1 => step = 1,
                Err(_) => at += 1,
            }
        }
    }
}

/// True where the controller has answered, whatever it was: none does whose I/O queues are gone.
fn is_answered(result: &Result<(), Error>) -> bool {
    matches!(result, Ok(()) | Err(Error::Status(_)))
}

fn is_shut_down(session: &Session, error: &Error) -> bool {
    let status = Status::COMMAND_SEQUENCE_ERROR;
    let told = matches!(error, Error::Status(other) if other.same_as(status));
    told && session.common.plan.workload.resets
}

fn is_loss(error: &Error) -> bool {
    matches!(error, Error::Transport(_) | Error::TimedOut | Error::Closed)
}

/// At the end, when nothing disturbs any more, a block can be read unless it is lost; and where blocks are
/// not lost by themselves, it is known which may be.
fn check_lost(session: &Session, block: Blocks, ticket: Ticket, error: &Error) {
    if is_loss(error) {
        return;
    }
    let (host, node) = (session.index, session.node);
    if !is_lost(error) || may_not_happen(&session.common, Some((node, block.nsid)), error) {
        let what = format!("host {host} checks appliance {node}, {block:?}: {error}");
        session.common.fail(what);
    }
    if session.common.plan.loses_by_itself(node, block.nsid) {
        return;
    }
    let model = session.model(block.nsid);
    if let Err(what) = model.borrow_mut().check_read(ticket, block.at, LOST) {
        session.common.fail(format!("a lost block: {what}"));
    }
}

fn is_lost(error: &Error) -> bool {
    let lost = Status::UNRECOVERED_READ_ERROR;
    matches!(error, Error::Status(status) if status.same_as(lost))
}

/// Of a block that a read has found to be lost, amid the work too: one that was durable may not be, also
/// where somebody writes it again before the end.
fn check_lost_read(session: &Session, block: Blocks, ticket: Ticket) {
    let (plan, node) = (&session.common.plan, session.node);
    if plan.loses_by_itself(node, block.nsid) || plan.reads_fail(node, block.nsid) {
        return;
    }
    let model = session.model(block.nsid);
    if let Err(what) = model.borrow_mut().check_read(ticket, block.at, LOST) {
        session.common.fail(format!("a lost block: {what}"));
    }
}

/// Sends one command.
async fn command(
    session: &Session,
    queue: &Queue,
    (kind, blocks): (Kind, Blocks),
) -> Result<(), Error> {
    let what = format!("{kind:?} {blocks:?}");
    let (host, node) = (session.index, session.node);
    let number = session.common.begin_command(host, what.clone());
    let words = [event::COMMAND, number, blocks.at];
    let trace = &session.common.trace;
    trace.note(words, || {
        format!("host {host} to appliance {node}, command {number}: {what}")
    });
    let (was_disabled, association) = (session.is_disabled(), session.association());
    let since = session.model(blocks.nsid).borrow().now();
    let result = match kind {
        Kind::Read => read(session, queue, blocks).await,
        Kind::Flush if blocks.at % 4 == 0 && !session.common.plan.reloads() => {
            flush_all(session, queue).await
        }
        Kind::Flush => flush(session, queue, blocks.nsid).await,
        Kind::CompareAndWrite => compare_and_write(session, queue, blocks).await,
        Kind::Compare => compare(session, queue, blocks).await,
        Kind::Verify => {
            let count = blocks.count as u32;
            queue.verify(blocks.nsid, blocks.at, count).await
        }
        _ => write(session, queue, kind, blocks).await,
    };
    session.common.end_command(number);
    let words = [event::COMPLETION, number, outcome(&result)];
    trace.note(words, || {
        format!("host {host} command {number} ends: {result:?}")
    });
    // What was sent again belongs to another association.
    if is_answered(&result) && was_disabled && association == session.association() {
        session.common.fail(format!(
            "host {host} command {number} is answered though its controller has been reset"
        ));
    }
    let sized = check_size(session, kind, blocks, since, &result);
    if let Err(error) = &result {
        let compares = matches!(kind, Kind::CompareAndWrite | Kind::Compare);
        let differs = compares && is_compare_failure(error);
        let weak = || session.common.plan.weak_namespace(node);
        let place = (kind == Kind::Flush).then(weak).flatten();
        let place = place.or(Some((node, blocks.nsid)));
        if !differs && !sized && may_not_happen(&session.common, place, error) {
            session.common.fail(format!(
                "host {host} to appliance {node}, command {number}, {kind:?} {blocks:?}: {error}"
            ));
        }
    }
    result
}

/// Whether a command failed, as it may, for want of blocks; one that succeeded had them.
fn check_size(
    session: &Session,
    kind: Kind,
    blocks: Blocks,
    since: u64,
    result: &Result<(), Error>,
) -> bool {
    let first = match kind {
        Kind::Flush => return false,
        Kind::Copy { from } => from.max(blocks.at),
        _ => blocks.at,
    };
    let end = first + blocks.count;
    let model = session.model(blocks.nsid).borrow();
    match result {
        Ok(()) if !model.sizes_since(since).any(|size| size >= end) => {
            session.common.fail(format!(
                "a command on {blocks:?} works, whose namespace is smaller"
            ));
            false
        }
        Err(error) if is_out_of_range(kind, error) => {
            model.sizes_since(since).any(|size| size < end)
        }
        _ => false,
    }
}

fn is_out_of_range(kind: Kind, error: &Error) -> bool {
    let is = |status| matches!(error, Error::Status(told) if told.same_as(status));
    // Where it is the second half's, the first one is told that it was aborted with it.
    let halves = kind == Kind::CompareAndWrite && is(Status::ABORTED_FAILED_FUSED);
    is(Status::LBA_OUT_OF_RANGE) || halves
}

/// What a command ended with, as a number for the trace.
fn outcome(result: &Result<(), Error>) -> u64 {
    match result {
        Ok(()) => 1,
        Err(Error::Status(status)) => 2 | u64::from(status.bits()) << 8,
        Err(_) => 0,
    }
}

fn choose_kind(rng: &mut Rng, weights: &[u64; COMMANDS]) -> Kind {
    let mut drawn = rng.below(weights.iter().sum());
    let chosen = weights.iter().position(|weight| match drawn < *weight {
        true => true,
        false => {
            drawn -= weight;
            false
        }
    });
    match chosen {
        Some(1) => Kind::Write { fua: false },
        Some(2) => Kind::Write { fua: true },
        Some(3) => Kind::Flush,
        Some(4) => Kind::CompareAndWrite,
        Some(5) => Kind::Zeroes {
            fua: rng.once_in(3),
            deallocate: rng.once_in(2),
        },
        Some(6) => Kind::Deallocate,
        Some(7) => Kind::Compare,
        Some(8) => Kind::Copy { from: 0 },
        Some(9) => Kind::Verify,
        Some(10) => Kind::Spoil,
        _ => Kind::Read,
    }
}

fn choose(session: &Session, rng: &mut Rng) -> (Kind, Blocks) {
    let workload = &session.common.plan.workload;
    let mut kind = choose_kind(rng, &workload.weights);
    let all_namespaces = session.namespaces();
    let index = usize::try_from(rng.below(all_namespaces.len() as u64)).unwrap_or(0);
    let (bytes, all) = (
        all_namespaces[index].block_size.bytes(),
        all_namespaces[index].blocks,
    );
    // Half of the commands meet on a few blocks.
    let blocks = match rng.once_in(2) || workload.only_hot {
        true => all.min(workload.hot_blocks),
        false => all,
    };
    let most = ((BYTES_MAX / bytes) as u64).min(blocks);
    let mut count = match (kind, rng.below(4)) {
        (Kind::CompareAndWrite | Kind::Compare, _) => 1,
        (_, 0) => 1 + rng.below(most),
        _ => 1 + rng.below(most.min(4)),
    };
    let mut at = rng.below(blocks - count + 1);
    if let Kind::Copy { from } = &mut kind {
        // Source and destination lie beside each other, in either order.
        let all = blocks.max(2);
        count = count.min(all / 2);
        *from = rng.below(all - 2 * count + 1);
        at = *from + count + rng.below(all - *from - 2 * count + 1);
        if rng.once_in(2) {
            std::mem::swap(from, &mut at);
        }
    }
    let blocks = Blocks {
        nsid: index as u32 + 1,
        at,
        count,
        bytes,
    };
    (kind, blocks)
}

async fn buffer(session: &Session, blocks: Blocks) -> Buffer {
    let bytes = usize::try_from(blocks.count).unwrap_or(0) * blocks.bytes;
    session.host.buffers().allocate(bytes).await
}

/// A buffer, cut into several windows now and then.
fn windows(buffer: &Buffer, blocks: Blocks) -> Vec<Buffer> {
    match blocks.count >= 3 && blocks.at % 2 == 1 {
        true => vec![
            buffer.slice(0..blocks.bytes),
            buffer.slice(blocks.bytes..buffer.len()),
        ],
        false => vec![buffer.clone()],
    }
}

async fn read(session: &Session, queue: &Queue, blocks: Blocks) -> Result<(), Error> {
    read_blocks(session, queue, blocks).await.map(drop)
}

async fn read_blocks(session: &Session, queue: &Queue, blocks: Blocks) -> Result<Buffer, Error> {
    let into = buffer(session, blocks).await;
    let model = session.model(blocks.nsid);
    let ticket = model.borrow_mut().begin(session.index);
    let parts = windows(&into, blocks);
    let count = blocks.count as u32;
    let result = queue.read(blocks.nsid, blocks.at, count, &parts).await;
    if result.is_ok() {
        let bytes = into.bytes();
        for (block, at) in bytes.chunks(blocks.bytes).zip(blocks.at..) {
            let checked = content::read(block, blocks.nsid)
                .map_err(|what| format!("namespace {} block {at} is corrupt: {what}", blocks.nsid))
                .and_then(|value| {
                    session.common.trace.mark([event::VALUE, at, value]);
                    model.borrow_mut().check_read(ticket, at, value)
                });
            if let Err(what) = checked {
                session.common.fail(what);
            }
        }
    }
    if let (Err(error), 1) = (&result, blocks.count)
        && is_lost(error)
    {
        check_lost_read(session, blocks, ticket);
    }
    model.borrow_mut().end(ticket);
    drop(parts);
    result.map(|()| into)
}

async fn flush(session: &Session, queue: &Queue, nsid: u32) -> Result<(), Error> {
    let model = session.model(nsid);
    let ticket = model.borrow_mut().begin(session.index);
    let result = queue.flush(nsid).await;
    let mut model = model.borrow_mut();
    match result {
        Ok(()) => model.end_flush(ticket),
        Err(_) => model.end(ticket),
    }
    result
}

/// Flushes all namespaces of the appliance, which must all be attached.
async fn flush_all(session: &Session, queue: &Queue) -> Result<(), Error> {
    let count = session.namespaces().len() as u32;
    let begin = |nsid| session.model(nsid).borrow_mut().begin(session.index);
    let tickets: Vec<_> = (1..=count).map(begin).collect();
    let result = queue.flush(NSID_ALL).await;
    for (nsid, ticket) in (1..).zip(tickets) {
        let mut model = session.model(nsid).borrow_mut();
        match result {
            Ok(()) => model.end_flush(ticket),
            Err(_) => model.end(ticket),
        }
    }
    result
}

async fn write(session: &Session, queue: &Queue, kind: Kind, blocks: Blocks) -> Result<(), Error> {
    let value = match kind {
        Kind::Write { .. } => session.common.new_value(),
        Kind::Spoil => LOST,
        _ => ZEROES,
    };
    let data = match kind {
        Kind::Write { .. } => Some(filled(session, blocks, value).await),
        _ => None,
    };
    let model = session.model(blocks.nsid);
    let (nsid, at, count) = (blocks.nsid, blocks.at, blocks.count as u32);
    let association = session.association();
    let ticket = match kind {
        Kind::Copy { from } => model
            .borrow_mut()
            .begin_copy(session.index, from, at, blocks.count),
        _ => model
            .borrow_mut()
            .begin_write(session.index, at, blocks.count, value),
    };
    let cache_off = session.is_cache_off();
    let result = match (kind, data) {
        (Kind::Write { fua }, Some(data)) => {
            let parts = windows(&data, blocks);
            queue.write(nsid, at, count, &parts, fua).await
        }
        (Kind::Zeroes { fua, deallocate }, _) => {
            queue.write_zeroes(nsid, at, count, deallocate, fua).await
        }
        (Kind::Copy { from }, _) => {
            let range = CopyRangeFormat0::new(from, count);
            queue.copy(nsid, at, &[range]).await
        }
        (Kind::Spoil, _) => queue.write_uncorrectable(nsid, at, count).await,
        _ => {
            // In two ranges, where there are two blocks.
            let half = count / 2;
            let ranges = [
                DsmRange::new(at, count - half),
                DsmRange::new(at + u64::from(count - half), half),
            ];
            let ranges = &ranges[..if half == 0 { 1 } else { 2 }];
            queue.deallocate(nsid, ranges).await
        }
    };
    let asked = matches!(
        kind,
        Kind::Write { fua: true } | Kind::Zeroes { fua: true, .. }
    );
    // Whoever turned the cache off, and still has the association for which he did, needs no flush.
    let cached = matches!(kind, Kind::Spoil) || !(cache_off && session.is_cache_off());
    if association != session.association() || result.is_err() {
        model.borrow_mut().repeated(at, blocks.count, value);
    }
    let end = end_of(session, &result);
    let mut model = model.borrow_mut();
    model.end_write(ticket, asked || !cached, end);
    result
}

/// Reads blocks and compares them with what it read.
async fn compare(session: &Session, queue: &Queue, block: Blocks) -> Result<(), Error> {
    let old = read_blocks(session, queue, block).await?;
    let Ok(expected) = content::read(&old.bytes(), block.nsid) else {
        // The read has reported it.
        return Ok(());
    };
    let model = session.model(block.nsid);
    let ticket = model.borrow_mut().begin(session.index);
    let parts = std::slice::from_ref(&old);
    let result = queue.compare(block.nsid, block.at, 1, parts).await;
    let mut model = model.borrow_mut();
    let checked = match &result {
        Ok(()) => model.check_read(ticket, block.at, expected),
        Err(error) if is_compare_failure(error) => model.check_differs(ticket, block.at, expected),
        Err(_) => Ok(()),
    };
    model.end(ticket);
    if let Err(what) = checked {
        session.common.fail(what);
    }
    result
}

async fn filled(session: &Session, blocks: Blocks, value: u64) -> Buffer {
    let mut data = buffer(session, blocks).await;
    let mut bytes = data.bytes_mut();
    for (block, at) in bytes.chunks_mut(blocks.bytes).zip(blocks.at..) {
        content::fill(block, blocks.nsid, content::mark(value, at));
    }
    drop(bytes);
    data
}

/// Reads a block and replaces what it read, if nobody else has.
async fn compare_and_write(session: &Session, queue: &Queue, block: Blocks) -> Result<(), Error> {
    let old = read_blocks(session, queue, block).await?;
    let parts = std::slice::from_ref(&old);
    let Ok(expected) = content::read(&old.bytes(), block.nsid) else {
        // The read has reported it.
        return Ok(());
    };
    let value = session.common.new_value();
    let new = filled(session, block, value).await;
    let model = session.model(block.nsid);
    let ticket = model
        .borrow_mut()
        .begin_write(session.index, block.at, 1, value);
    let cache_off = session.is_cache_off();
    let result = queue
        .compare_and_write(block.nsid, block.at, 1, parts, std::slice::from_ref(&new))
        .await;
    let mut model = model.borrow_mut();
    let (checked, end) = match &result {
        Ok(()) => {
            let checked = model.check_replaced(ticket, block.at, expected);
            (checked, WriteEnd::Done)
        }
        Err(error) if is_compare_failure(error) => {
            let checked = model.check_differs(ticket, block.at, expected);
            (checked, WriteEnd::Refused)
        }
        Err(_) => (Ok(()), end_of(session, &result)),
    };
    if let Err(what) = checked {
        session.common.fail(what);
    }
    model.end_write(ticket, cache_off && session.is_cache_off(), end);
    result
}

fn is_compare_failure(error: &Error) -> bool {
    matches!(error, Error::Status(status) if status.same_as(Status::COMPARE_FAILURE))
}

fn end_of(session: &Session, result: &Result<(), Error>) -> WriteEnd {
    match result {
        Ok(()) => WriteEnd::Done,
        // What was sent again after a loss may have been executed by both associations.
        Err(Error::Status(_)) if !matches!(session.plan.after_loss, AfterLoss::Replay(_)) => {
            WriteEnd::Failed
        }
        Err(_) => {
            session.has_lost.set(true);
            WriteEnd::Lost
        }
    }
}
