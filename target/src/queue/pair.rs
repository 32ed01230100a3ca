//! The halves of fused commands: brought together, and ended together.
//!
//! Invariants:
//! - A first half is followed by its second, or answered without it: at the next command of its queue,
//!   when its second half fails, or once the host has left it alone for the stall time-out.
//! - Fused commands are counted from their first half's arrival to its end, over the core and over
//!   the host, so that nobody keeps the others from theirs.

use std::rc::Rc;

use corebay_core::units::Time;
use corebay_nvme::spec::{
    command::{Fuse, SubmissionEntry},
    status::Status,
};

use super::{
    Done, Operation, Queue, Wire,
    entry::{EntryId, Stage},
};
use crate::environment::Environment;

impl<E: Environment, W: Wire> Queue<E, W> {
    /// Brings the halves of a fused command together. False where the command has been answered.
    pub(super) fn pair(self: &Rc<Self>, id: EntryId, fuse: Fuse) -> bool {
        let first = self.fused_first.take();
        match (fuse, first) {
            (Fuse::Normal, None) => true,
            (Fuse::Normal, Some(first)) => {
                self.fused_alone(first, Status::ABORTED_MISSING_FUSED);
                true
            }
            (Fuse::First, first) => {
                if let Some(first) = first {
                    self.fused_alone(first, Status::ABORTED_MISSING_FUSED);
                }
                if !self.core.shares.begin_fused(self.share()) {
                    self.finish(id, Done::status(Status::COMMAND_INTERRUPTED));
                    return false;
                }
                self.with_entry(id, |entry| entry.counts_as_fused = true);
                self.fused_first.set(Some(id));
                self.fused_since.set(self.core.reactor.now());
                true
            }
            (Fuse::Second | Fuse::Reserved, None) | (Fuse::Reserved, Some(_)) => {
                self.finish(id, Done::status(Status::ABORTED_MISSING_FUSED));
                false
            }
            (Fuse::Second, Some(first)) => {
                let same = {
                    let entries = self.entries.borrow();
                    let range = |id| match entries.get(id).and_then(|e| e.operation.as_ref()) {
                        Some(Operation::Io(operation)) => operation.range(),
                        _ => None,
                    };
                    range(first).is_some() && range(first) == range(id)
                };
                if !same {
                    self.fused_alone(first, Status::INVALID_FIELD.with_dnr());
                    self.finish(id, Done::status(Status::INVALID_FIELD.with_dnr()));
                    return false;
                }
                self.with_entry(first, |entry| entry.partner = Some(id));
                self.with_entry(id, |entry| entry.partner = Some(first));
                true
            }
        }
    }

    /// A command that failed its checks was one half of a fused pair, or came between two.
    pub(super) fn pair_failed(self: &Rc<Self>, sqe: &SubmissionEntry) {
        if let Some(first) = self.fused_first.take() {
            let status = match sqe.fuse() {
                Fuse::Second => Status::ABORTED_FAILED_FUSED,
                _ => Status::ABORTED_MISSING_FUSED,
            };
            self.fused_alone(first, status);
        }
    }

    /// The first half of a fused command is not followed by its second.
    pub(super) fn fused_alone(self: &Rc<Self>, first: EntryId, status: Status) {
        let stage = self.entries.borrow().get(first).map(|entry| entry.stage);
        match stage {
            // Its data are on their way: it is answered when they are here.
            Some(Stage::Data) => self.with_entry(first, |entry| entry.verdict = Some(status)),
            Some(Stage::Memory | Stage::Partner) => {
                self.forget_waiting(first);
                self.finish(first, Done::status(status));
            }
            _ => {}
        }
    }

    /// One half of a pair has failed: so does the other.
    pub(super) fn partner_failed(self: &Rc<Self>, id: EntryId) {
        let partner = self
            .entries
            .borrow()
            .get(id)
            .and_then(|entry| entry.partner);
        if let Some(partner) = partner {
            self.with_entry(partner, |entry| entry.partner = None);
            self.fused_alone(partner, Status::ABORTED_FAILED_FUSED);
        } else if self.fused_first.get() == Some(id) {
            self.fused_first.set(None);
        }
    }

    /// A first half whose second does not come is answered without it.
    pub(super) fn forsake_first(self: &Rc<Self>, now: Time) {
        let Some(first) = self.fused_first.get() else {
            return;
        };
        let waits = self
            .entries
            .borrow()
            .get(first)
            .is_some_and(|entry| entry.stage == Stage::Partner);
        if waits && now.since(self.fused_since.get()) > self.core.limits.stall_timeout {
            self.fused_first.set(None);
            self.fused_alone(first, Status::ABORTED_MISSING_FUSED);
        }
    }
}
