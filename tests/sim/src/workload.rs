//! The commands that hosts send, and what each outcome tells the model.

use std::time::Duration;

use corebay_core::{buffer::Buffer, rng::Rng};
use corebay_nvme::{
    fabrics::{Error, IoQueue},
    spec::{command::nvm::DsmRange, status::Status},
};

use crate::{
    client::{Shared, may_not_happen},
    content::{self, ZEROES},
    model::WriteEnd,
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    Write { fua: bool },
    Zeroes { fua: bool, deallocate: bool },
    Deallocate,
    Flush,
    CompareAndWrite,
}

/// One worker: one command after the other.
pub async fn work(shared: &Shared, worker: usize, mut rng: Rng) {
    for turn in 0..shared.plan.commands {
        if shared.common.stopping.get() {
            return;
        }
        let Some(queue) = shared.queue(worker + turn).await else {
            return;
        };
        shared.fence();
        if !command(shared, &queue, &mut rng).await {
            shared.reactor().sleep(AFTER_FAILURE).await;
        }
        if rng.once_in(4) {
            let pause = Duration::from_micros(rng.below(2_000));
            shared.reactor().sleep(pause).await;
        }
    }
}

/// Reads every block, and tries again where a connection is lost.
pub async fn check_all(shared: &Shared) {
    for (index, model) in shared.common.models.iter().enumerate() {
        let options = shared.common.plan.media[index];
        let blocks = model.borrow().blocks();
        let step = (BYTES_MAX / options.block_size.bytes()) as u64;
        let mut at = 0;
        while at < blocks {
            let Some(queue) = shared.queue(0).await else {
                shared.reactor().sleep(Duration::from_millis(10)).await;
                continue;
            };
            shared.fence();
            let part = Blocks {
                nsid: index as u32 + 1,
                at,
                count: step.min(blocks - at),
                bytes: options.block_size.bytes(),
            };
            match read(shared, &queue, part).await {
                Err(Error::Transport(_) | Error::TimedOut | Error::Closed) => {
                    shared.reactor().sleep(AFTER_FAILURE).await;
                }
                // A block of them is lost: the others are looked at one by one.
                Err(_) => {
                    for at in part.at..part.at + part.count {
                        let one = Blocks {
                            at,
                            count: 1,
                            ..part
                        };
                        let _ = read(shared, &queue, one).await;
                    }
                    at += part.count;
                }
                Ok(()) => at += part.count,
            }
        }
    }
}

/// Sends one command; false where it failed.
async fn command(shared: &Shared, queue: &Queue, rng: &mut Rng) -> bool {
    let kind = match rng.below(100) {
        0..35 => Kind::Read,
        35..64 => Kind::Write { fua: false },
        64..74 => Kind::Write { fua: true },
        74..80 => Kind::Flush,
        80..90 => Kind::CompareAndWrite,
        90..95 => Kind::Zeroes {
            fua: rng.once_in(3),
            deallocate: rng.once_in(2),
        },
        _ => Kind::Deallocate,
    };
    let blocks = choose(shared, rng, kind);
    let number = shared.common.new_command();
    let what = format!("{kind:?} {blocks:?}");
    let host = shared.index;
    let words = [event::COMMAND, number, blocks.at];
    let trace = &shared.common.trace;
    trace.note(words, || format!("host {host} command {number}: {what}"));
    shared.under_way.borrow_mut().insert(number, what);
    let result = match kind {
        Kind::Read => read(shared, queue, blocks).await,
        Kind::Flush => flush(shared, queue, blocks.nsid).await,
        Kind::CompareAndWrite => compare_and_write(shared, queue, blocks).await,
        Kind::Write { .. } | Kind::Zeroes { .. } | Kind::Deallocate => {
            write(shared, queue, kind, blocks).await
        }
    };
    shared.under_way.borrow_mut().remove(&number);
    let words = [event::COMPLETION, number, u64::from(result.is_ok())];
    trace.note(words, || {
        format!("host {host} command {number} ends: {result:?}")
    });
    let good = result.is_ok();
    if let Err(error) = result {
        let differs = kind == Kind::CompareAndWrite && is_compare_failure(&error);
        if !differs && may_not_happen(&shared.common, &error) {
            shared.common.fail(format!(
                "host {host} command {number}, {kind:?} {blocks:?}: {error}"
            ));
        }
    }
    good
}

fn choose(shared: &Shared, rng: &mut Rng, kind: Kind) -> Blocks {
    let media = &shared.common.plan.media;
    let index = usize::try_from(rng.below(media.len() as u64)).unwrap_or(0);
    let bytes = media[index].block_size.bytes();
    // Half of the commands meet on a few blocks.
    let blocks = match rng.once_in(2) {
        true => media[index].blocks.min(6),
        false => media[index].blocks,
    };
    let most = ((BYTES_MAX / bytes) as u64).min(blocks);
    let count = match (kind, rng.below(4)) {
        (Kind::CompareAndWrite, _) => 1,
        (_, 0) => 1 + rng.below(most),
        _ => 1 + rng.below(most.min(4)),
    };
    Blocks {
        nsid: index as u32 + 1,
        at: rng.below(blocks - count + 1),
        count,
        bytes,
    }
}

async fn buffer(shared: &Shared, blocks: Blocks) -> Buffer {
    let bytes = usize::try_from(blocks.count).unwrap_or(0) * blocks.bytes;
    shared.host.buffers().allocate(bytes).await
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

async fn read(shared: &Shared, queue: &Queue, blocks: Blocks) -> Result<(), Error> {
    read_blocks(shared, queue, blocks).await.map(drop)
}

async fn read_blocks(shared: &Shared, queue: &Queue, blocks: Blocks) -> Result<Buffer, Error> {
    let into = buffer(shared, blocks).await;
    let model = &shared.common.models[blocks.nsid as usize - 1];
    let ticket = model.borrow_mut().begin();
    let parts = windows(&into, blocks);
    let count = blocks.count as u32;
    let result = queue.read(blocks.nsid, blocks.at, count, &parts).await;
    if result.is_ok() {
        let bytes = into.bytes();
        for (block, at) in bytes.chunks(blocks.bytes).zip(blocks.at..) {
            let checked = content::value(block, blocks.nsid, at)
                .map_err(|what| format!("namespace {} block {at} is corrupt: {what}", blocks.nsid))
                .and_then(|value| model.borrow_mut().check_read(ticket, at, value));
            if let Err(what) = checked {
                shared.common.fail(what);
            }
        }
    }
    model.borrow_mut().end(ticket);
    drop(parts);
    result.map(|()| into)
}

async fn flush(shared: &Shared, queue: &Queue, nsid: u32) -> Result<(), Error> {
    let model = &shared.common.models[nsid as usize - 1];
    let ticket = model.borrow_mut().begin();
    let result = queue.flush(nsid).await;
    let mut model = model.borrow_mut();
    match result {
        Ok(()) => model.end_flush(ticket),
        Err(_) => model.end(ticket),
    }
    result
}

async fn write(shared: &Shared, queue: &Queue, kind: Kind, blocks: Blocks) -> Result<(), Error> {
    let value = match kind {
        Kind::Write { .. } => shared.common.new_value(),
        _ => ZEROES,
    };
    let data = match kind {
        Kind::Write { .. } => Some(filled(shared, blocks, value).await),
        _ => None,
    };
    let model = &shared.common.models[blocks.nsid as usize - 1];
    let associations = shared.associations();
    let ticket = model
        .borrow_mut()
        .begin_write(blocks.at, blocks.count, value);
    let (nsid, at, count) = (blocks.nsid, blocks.at, blocks.count as u32);
    let result = match (kind, data) {
        (Kind::Write { fua }, Some(data)) => {
            let parts = windows(&data, blocks);
            queue.write(nsid, at, count, &parts, fua).await
        }
        (Kind::Zeroes { fua, deallocate }, _) => {
            queue.write_zeroes(nsid, at, count, deallocate, fua).await
        }
        _ => queue.deallocate(nsid, &[DsmRange::new(at, count)]).await,
    };
    let durable = matches!(
        kind,
        Kind::Write { fua: true } | Kind::Zeroes { fua: true, .. }
    );
    if associations != shared.associations() || result.is_err() {
        model.borrow_mut().repeated(value);
    }
    let end = end_of(shared, &result);
    let mut model = model.borrow_mut();
    model.end_write(ticket, blocks.at, blocks.count, durable, end);
    result
}

async fn filled(shared: &Shared, blocks: Blocks, value: u64) -> Buffer {
    let mut data = buffer(shared, blocks).await;
    let mut bytes = data.bytes_mut();
    for (block, at) in bytes.chunks_mut(blocks.bytes).zip(blocks.at..) {
        content::fill(block, blocks.nsid, at, value);
    }
    drop(bytes);
    data
}

/// Reads a block and replaces what it read, if nobody else has.
async fn compare_and_write(shared: &Shared, queue: &Queue, block: Blocks) -> Result<(), Error> {
    let old = read_blocks(shared, queue, block).await?;
    let parts = std::slice::from_ref(&old);
    let Ok(expected) = content::value(&old.bytes(), block.nsid, block.at) else {
        // The read has reported it.
        return Ok(());
    };
    let value = shared.common.new_value();
    let new = filled(shared, block, value).await;
    let model = &shared.common.models[block.nsid as usize - 1];
    let ticket = model.borrow_mut().begin_write(block.at, 1, value);
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
        Err(_) => (Ok(()), end_of(shared, &result)),
    };
    if let Err(what) = checked {
        shared.common.fail(what);
    }
    model.end_write(ticket, block.at, 1, false, end);
    result
}

fn is_compare_failure(error: &Error) -> bool {
    matches!(error, Error::Status(status) if status.same_as(Status::COMPARE_FAILURE))
}

fn end_of(shared: &Shared, result: &Result<(), Error>) -> WriteEnd {
    match result {
        Ok(()) => WriteEnd::Done,
        // What was sent again after a loss may have been executed by both associations.
        Err(Error::Status(_)) if !matches!(shared.plan.after_loss, AfterLoss::Replay(_)) => {
            WriteEnd::Failed
        }
        Err(_) => {
            shared.has_lost.set(true);
            WriteEnd::Lost { host: shared.index }
        }
    }
}
