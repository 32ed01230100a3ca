//! Commands that execute: each is a task, in a slot of its core.
//!
//! Invariant: a command that executes has its entry until it is completed, whatever becomes of its
//! connection.

use std::rc::Rc;

use corebay_core::buffer::Buffer;
use corebay_nvme::spec::{command::SubmissionEntry, status::Status};

use super::{Done, EntryId, Operation, Outcome, Queue, Stage, Wire};
use crate::{admin, environment::Environment, fabrics, io};

/// The first half of a fused command, when the second executes for both.
pub(super) type FirstHalf<E> = (EntryId, io::Operation<E>, Option<Buffer>);

impl<E: Environment, W: Wire> Queue<E, W> {
    /// Lets a command execute, for which there is a slot. What does not have to wait for its disk
    /// is over when this returns.
    pub(super) fn start(
        self: &Rc<Self>,
        id: EntryId,
        operation: Operation<E>,
        buffer: Option<Buffer>,
        first: Option<FirstHalf<E>>,
    ) {
        self.set_stage(id, Stage::Running);
        self.running.set(self.running.get() + 1);
        self.share().run(1);
        let reactor = &self.core.reactor;
        let started = match (operation, first) {
            (Operation::Io(operation), None) => {
                reactor.start(|| run_io(self.clone(), id, operation, buffer))
            }
            (Operation::Io(second), Some(first)) => {
                reactor.start(|| run_fused(self.clone(), first, id, second, buffer))
            }
            // They may end the connection that is being received from: not from within.
            (Operation::Admin, _) => reactor.spawn(run_admin(self.clone(), id, buffer)).is_ok(),
            (Operation::Fabrics, _) => reactor.spawn(run_fabrics(self.clone(), id, buffer)).is_ok(),
        };
        assert!(started, "a slot was free");
    }

    fn end_job(self: &Rc<Self>, id: EntryId, outcome: Outcome) {
        match outcome {
            Outcome::Done(done) => self.finish(id, done),
            Outcome::Parked => self.park(id),
            Outcome::Moved => self.release(id),
        }
        self.job_ended();
    }

    fn sqe(&self, id: EntryId) -> SubmissionEntry {
        let entries = self.entries.borrow();
        entries
            .get(id)
            .expect("a running command has its entry")
            .sqe
    }
}

/// The task of an I/O command.
async fn run_io<E: Environment, W: Wire>(
    queue: Rc<Queue<E, W>>,
    id: EntryId,
    operation: io::Operation<E>,
    data: Option<Buffer>,
) {
    let binding = queue.connected();
    #[cfg(corebay_fault)]
    if let io::Operation::Write(..) = operation
        && crate::fault::is(crate::fault::Fault::AckBeforeWrite)
    {
        queue.finish(id, Done::SUCCESS);
        io::execute(&queue.core, binding, &operation, data).await;
        queue.job_ended();
        return;
    }
    let done = io::execute(&queue.core, binding, &operation, data).await;
    queue.finish(id, done);
    queue.job_ended();
}

/// The task of a fused command.
async fn run_fused<E: Environment, W: Wire>(
    queue: Rc<Queue<E, W>>,
    first: FirstHalf<E>,
    id: EntryId,
    second: io::Operation<E>,
    data: Option<Buffer>,
) {
    let (first_id, compare, first_data) = first;
    let data = (first_data, data);
    let binding = queue.connected();
    let (first, second) =
        io::fused::compare_and_write(&queue.core, binding, compare, second, data).await;
    queue.finish(first_id, first);
    queue.finish(id, second);
    queue.job_ended();
}

/// The task of an admin command.
async fn run_admin<E: Environment, W: Wire>(
    queue: Rc<Queue<E, W>>,
    id: EntryId,
    data: Option<Buffer>,
) {
    let sqe = queue.sqe(id);
    let outcome = if queue.is_reset() {
        Done::status(Status::ABORT_REQUESTED).into()
    } else {
        admin::execute(&queue, queue.connected(), &sqe, data).await
    };
    queue.end_job(id, outcome);
}

/// The task of a fabrics command.
async fn run_fabrics<E: Environment, W: Wire>(
    queue: Rc<Queue<E, W>>,
    id: EntryId,
    data: Option<Buffer>,
) {
    let sqe = queue.sqe(id);
    let outcome = fabrics::execute(&queue, &sqe, data).await;
    queue.end_job(id, outcome);
}
