//! Admin commands: checked, executed, answered. Fabrics commands are in [`fabrics`](crate::fabrics).
//!
//! Everything here is control path: it may allocate and take the registry's locks.

mod commands;
mod feature;
mod identify;
mod log;

use std::rc::Rc;

use corebay_core::buffer::Buffer;
use corebay_nvme::spec::{
    command::{
        Fuse, SubmissionEntry,
        admin::{self, ABORT_NOT_ABORTED, Abort, GetFeatures, GetLogPage, SetFeatures},
    },
    identify::IDENTIFY_BYTES,
    status::Status,
};

use crate::{
    core::Reply,
    environment::Environment,
    limits::ASYNC_EVENT_REQUESTS_MAX,
    queue::{Binding, Done, Operation, Outcome, Prepared, Queue, QueueControl, Transfer, Wire},
};

/// Checks an admin command.
///
/// # Errors
/// The status to answer it with.
pub fn prepare<E: Environment, W: Wire>(
    queue: &Queue<E, W>,
    binding: &Binding<E>,
    sqe: &SubmissionEntry,
) -> Result<Prepared<E>, Status> {
    if sqe.fuse() != Fuse::Normal {
        return Err(Status::INVALID_FIELD.with_dnr());
    }
    let discovery = binding.controller.subsystem.is_discovery();
    let transfer = match sqe.opc {
        admin::IDENTIFY => Transfer::ToHost(IDENTIFY_BYTES),
        admin::GET_LOG_PAGE => {
            let bytes = usize::try_from(GetLogPage::from(sqe).bytes()).unwrap_or(usize::MAX);
            if bytes > queue.core.limits.transfer_bytes_max {
                return Err(Status::INVALID_FIELD.with_dnr());
            }
            Transfer::ToHost(bytes)
        }
        admin::GET_FEATURES => {
            let command = GetFeatures::from(sqe);
            match feature::data_bytes(command.fid) {
                Some(bytes) if command.sel != feature::SEL_CAPABILITIES => Transfer::ToHost(bytes),
                _ => Transfer::None,
            }
        }
        admin::SET_FEATURES => match feature::data_bytes(SetFeatures::from(sqe).fid) {
            Some(bytes) if feature::takes_data(SetFeatures::from(sqe).fid) => {
                Transfer::FromHost(bytes)
            }
            _ => Transfer::None,
        },
        admin::ASYNC_EVENT_REQUEST | admin::KEEP_ALIVE => Transfer::None,
        admin::ABORT if !discovery => Transfer::None,
        _ => return Err(Status::INVALID_OPCODE.with_dnr()),
    };
    Ok(Prepared {
        operation: Operation::Admin,
        transfer,
    })
}

/// Executes an admin command.
pub async fn execute<E: Environment, W: Wire>(
    queue: &Rc<Queue<E, W>>,
    binding: &Binding<E>,
    sqe: &SubmissionEntry,
    data: Option<Buffer>,
) -> Outcome {
    match (sqe.opc, data) {
        (admin::IDENTIFY, Some(data)) => {
            let page = identify::page(&queue.core, binding, sqe);
            page.map_or_else(Done::status, |page| answer(data, &page, 0))
                .into()
        }
        (admin::GET_LOG_PAGE, Some(data)) => get_log_page(queue, binding, sqe, data).into(),
        (admin::GET_FEATURES, data) => {
            feature::get(&queue.core, binding, &GetFeatures::from(sqe), data).into()
        }
        (admin::SET_FEATURES, data) if feature::disables_write_cache(&SetFeatures::from(sqe)) => {
            let command = SetFeatures::from(sqe);
            let done = feature::set(&queue.core, binding, sqe.nsid.get(), &command, data).await;
            if !done.status.is_success() {
                return done.into();
            }
            // What the cache holds is on the medium before the host relies on it.
            Done::from(crate::io::flush_for_host(binding, None).await).into()
        }
        (admin::SET_FEATURES, data) => feature::set(
            &queue.core,
            binding,
            sqe.nsid.get(),
            &SetFeatures::from(sqe),
            data,
        )
        .await
        .into(),
        (admin::ASYNC_EVENT_REQUEST, _) => {
            if queue.parked_count() >= ASYNC_EVENT_REQUESTS_MAX {
                return Done::status(Status::AER_LIMIT_EXCEEDED.with_dnr()).into();
            }
            Outcome::Parked
        }
        // Its arrival has restarted the timer already.
        (admin::KEEP_ALIVE, _) => Done::SUCCESS.into(),
        (admin::ABORT, _) => abort(queue, binding, &Abort::from(sqe)).await.into(),
        _ => Done::status(Status::INTERNAL_ERROR).into(),
    }
}

/// Fills the host's buffer with `page` from `offset` on, and with zeroes behind its end.
fn answer(mut data: Buffer, page: &[u8], offset: usize) -> Done {
    let rest = page.get(offset..).unwrap_or(&[]);
    let count = rest.len().min(data.len());
    {
        let mut bytes = data.bytes_mut();
        bytes[..count].copy_from_slice(&rest[..count]);
        bytes[count..].fill(0);
    }
    Done::with_data(data)
}

fn get_log_page<E: Environment, W: Wire>(
    queue: &Rc<Queue<E, W>>,
    binding: &Binding<E>,
    sqe: &SubmissionEntry,
    data: Buffer,
) -> Done {
    let command = GetLogPage::from(sqe);
    let offset = usize::try_from(command.offset).unwrap_or(usize::MAX);
    if command.ot || offset % 4 != 0 {
        return Done::status(Status::INVALID_FIELD.with_dnr());
    }
    let read = |command: &GetLogPage| {
        let local = queue.wire.local_address();
        let page = log::page(&queue.core, binding, sqe, command, local)?;
        if offset > page.len() {
            return Err(Status::INVALID_FIELD.with_dnr());
        }
        Ok(page)
    };
    let page = if command.rae {
        read(&command)
    } else {
        // A command that is refused reads nothing, so it re-arms no event. One that is not re-arms it
        // before its page is made: what changes from here on is reported again.
        let looks = GetLogPage {
            rae: true,
            ..command
        };
        read(&looks).and_then(|_| {
            binding.controller.unmask(command.lid);
            read(&command)
        })
    };
    page.map_or_else(Done::status, |page| answer(data, &page, offset))
}

/// Aborts a command of any of the controller's queues, if it has not begun to execute.
async fn abort<E: Environment, W: Wire>(
    queue: &Rc<Queue<E, W>>,
    binding: &Binding<E>,
    command: &Abort,
) -> Done {
    let controller = &binding.controller;
    let cid = command.cid;
    let target = controller
        .queues()
        .into_iter()
        .find(|queue| queue.qid == command.sqid);
    let Some(target) = target else {
        return Done::with_result(u64::from(ABORT_NOT_ABORTED));
    };
    if !controller.begin_abort() {
        return Done::status(Status::ABORT_LIMIT_EXCEEDED);
    }
    let key = target.key;
    let aborted = if target.core == queue.core.id() {
        queue.core.queue(key).is_some_and(|queue| queue.abort(cid))
    } else {
        let ask = move |core: &Rc<crate::core::Core<E>>, reply: Reply<bool>| {
            let aborted = core
                .queue(key)
                .is_some_and(|queue: Rc<dyn QueueControl>| queue.abort(cid));
            reply.send(core, aborted);
        };
        queue.core.call(target.core, ask).await
    };
    controller.end_abort();
    Done::with_result(if aborted {
        0
    } else {
        u64::from(ABORT_NOT_ABORTED)
    })
}
