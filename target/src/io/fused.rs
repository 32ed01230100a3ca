//! Fused Compare and Write: atomic to every write of every core.
//!
//! The namespace's home core (its NSID modulo the cores) lets one fused command at a time have the
//! namespace; that one then locks its blocks at every core's write gate, which waits for the writes
//! that execute there, compares, writes, and unlocks. Other commands pay for this only while a fused
//! command executes.
//!
//! Invariant: a fused command that waits for its turn or for a lock holds the task slot that it runs
//! in, and its scratch piece, but no slot of another core; and whoever has the turn waits for disks
//! alone. So the turns of several namespaces, with homes on several cores, form no circle.

use std::rc::Rc;

use corebay_core::{buffer::Buffer, disk::Disk, units::CoreId};
use corebay_nvme::spec::status::Status;

#[cfg(corebay_fault)]
use crate::fault;

use super::{Blocks, Operation, failed, range};
use crate::{
    controller::IoCounters,
    core::{Core, Lock},
    environment::Environment,
    queue::{Binding, Done},
    subsystem::SubsystemId,
};

/// Compares, and where that succeeds writes; gives the completions of both halves.
pub async fn compare_and_write<E: Environment>(
    core: &Rc<Core<E>>,
    binding: &Binding<E>,
    compare: Operation<E>,
    second: Operation<E>,
    data: (Option<Buffer>, Option<Buffer>),
) -> (Done, Done) {
    let both = |status| (Done::status(status), Done::status(status));
    for (namespace, cost) in compare.cost().into_iter().chain(second.cost()) {
        namespace.disk.admit(cost, core.reactor.now());
    }
    let (Operation::Compare(blocks, _), Operation::Write(_, durability, _)) = (compare, second)
    else {
        return both(Status::INVALID_FIELD.with_dnr());
    };
    let (Some(expected), Some(new)) = data else {
        return both(Status::INTERNAL_ERROR);
    };
    // Scratch memory before the lock: a Copy that holds scratch may wait for the lock's end.
    let mut piece = core.memory.scratch_piece().await;
    let lock = Exclusive::take(core, binding.controller.subsystem.id, &blocks).await;
    let compared = range::compare_by(core, &mut piece, &blocks, &expected, &binding.counters).await;
    drop(piece);
    let outcome = match compared {
        Err(status) => (
            Done::status(status),
            Done::status(Status::ABORTED_FAILED_FUSED),
        ),
        Ok(()) => {
            let disk = &blocks.namespace.disk;
            let written = disk
                .write(blocks.at, std::slice::from_ref(&new), durability)
                .await;
            IoCounters::add(&binding.counters.writes, 1);
            match written {
                Ok(()) => {
                    IoCounters::add(&binding.counters.written_bytes, new.len() as u64);
                    (Done::SUCCESS, Done::SUCCESS)
                }
                Err(error) => (Done::SUCCESS, failed(&binding.counters, error)),
            }
        }
    };
    lock.release();
    outcome
}

/// A namespace's blocks, kept from all writes but the holder's.
struct Exclusive<'a, E: Environment> {
    core: &'a Rc<Core<E>>,
    home: CoreId,
    subsystem: SubsystemId,
    lock: Lock,
}

impl<'a, E: Environment> Exclusive<'a, E> {
    async fn take(core: &'a Rc<Core<E>>, subsystem: SubsystemId, blocks: &Blocks<E>) -> Self {
        let lock = Lock {
            id: core.new_lock_id(),
            nsid: blocks.namespace.spec.nsid,
            at: blocks.at,
            blocks: blocks.count,
        };
        let home = CoreId(lock.nsid as usize % core.count());
        let taken = Self {
            core,
            home,
            subsystem,
            lock,
        };
        #[cfg(corebay_fault)]
        if fault::is(fault::Fault::FusedUnlocked) {
            return taken;
        }
        #[cfg(corebay_fault)]
        let own = core.id();
        core.call(home, move |home, reply| {
            home.take_fused_turn(subsystem, lock.nsid, reply);
        })
        .await;
        core.call_all(move |each, reply| {
            #[cfg(corebay_fault)]
            if fault::is(fault::Fault::FusedLocksOneCore) && each.id() != own {
                reply.send(each, ());
                return;
            }
            each.lock_blocks(subsystem, lock, reply);
        })
        .await;
        taken
    }

    /// Unlocks everywhere, and then lets the next fused command have its turn. Nobody waits for it:
    /// the messages to each core keep their order.
    fn release(self) {
        let Lock { id, nsid, .. } = self.lock;
        for each in 0..self.core.count() {
            self.core
                .send(CoreId(each), move |core| core.unlock_blocks(id));
        }
        let subsystem = self.subsystem;
        self.core
            .send(self.home, move |home| home.end_fused_turn(subsystem, nsid));
    }
}
